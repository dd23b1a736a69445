"""The recorded autoencoders of fixed variance, replayed with our network."""

from pathlib import Path

import pytest
import torch

from causalfusion.errors import UserError
from causalfusion.interop.recording import Recording
from causalfusion.interop.systems.latentlm_autoencoder import convert_autoencoder, replay_fixed_variance

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "parity" / "neighbours" / "latentlm"


def recording(name: str) -> Recording:
    for folder in (FOLDER, Path("/work/shared/parity/neighbours/latentlm")):
        if folder.is_dir():
            return Recording(folder / f"{name}.vae.safetensors")
    pytest.skip("the recordings, ../shared/parity/neighbours/latentlm, are not here")


@pytest.mark.parametrize("name", ["A", "B"])
def test_recorded_tensors(name):
    found = recording(name)
    replay_fixed_variance(found)
    assert {"mean", "sample", "kl", "decoded"} <= {check.tensor for check in found.checks}
    assert [check for check in found.checks if not check.ok] == []
    assert found.unknown() == []


@pytest.mark.parametrize("name", ["A", "B"])
def test_gradients_of_a_bias_of_keys_are_zero(name):
    """Our qkv has a bias for keys, where the released vision transformer has none: it changes nothing."""
    found = recording(name)
    weights = {key: found[f"w/{key}"] for key in found.below("w/")}
    network = convert_autoencoder(weights, found.json("config"))
    image = found["image"]
    before = network.encode(image).latent_dist.mean
    for block in network.encoder.blocks:
        width = block.qkv.bias.shape[0] // 3
        block.qkv.bias[width : 2 * width] += torch.linspace(-3, 3, width)
    assert torch.allclose(network.encode(image).latent_dist.mean, before, atol=1e-5)


def test_weights_must_fit():
    found = recording("A")
    weights = {key: found[f"w/{key}"] for key in found.below("w/")}
    config = found.json("config")
    with pytest.raises(UserError, match=r"unexpected weight encoder.extra"):
        convert_autoencoder(weights | {"encoder.extra": torch.zeros(1)}, config)
    del weights["decoder.cls_token"]
    with pytest.raises(UserError, match=r"does not fit its configuration: .*decoder.class_token"):
        convert_autoencoder(weights, config)
