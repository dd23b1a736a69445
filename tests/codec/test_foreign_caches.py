"""MAR's and LightningDiT's caches of latents train as our own cache of the same images does."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from causalfusion.codec.autoencoder import open_autoencoder
from causalfusion.codec.cache import check_cache, open_cache
from causalfusion.codec.encode import encode_to_cache
from causalfusion.config import CodecConfig, DataConfig, RunConfig, TrainConfig
from causalfusion.data import guess_source
from causalfusion.data.names import is_image
from causalfusion.errors import UserError
from causalfusion.machine.processes import World
from causalfusion.train.feed import open_training_data

WORLD = World(rank=0, size=1, device=torch.device("cpu"))
COUNT = 9
LABELS = np.array([0] * 5 + [1] * 4)
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
FLIPPED = DataConfig(flip=True, holdout=0.2)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    AutoencoderKL(
        norm_num_groups=4, latent_channels=2, block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


@pytest.fixture(scope="module")
def moments(autoencoder: str) -> list[np.ndarray]:
    """The autoencoder's outputs (N, 2c, h, w) for the images, and for their mirror images."""
    network, images = open_autoencoder(autoencoder).network, torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    images = images.float() / 127.5 - 1
    with torch.no_grad():
        return [network.encode(x).latent_dist.parameters.numpy() for x in (images, images.flip(-1))]


@pytest.fixture(scope="module")
def mar(moments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As MAR's main_cache.py writes them."""
    folder = tmp_path_factory.mktemp("mar")
    for number, label in enumerate(LABELS):
        (folder / str(label)).mkdir(exist_ok=True)
        values = {"moments": moments[0][number], "moments_flip": moments[1][number]}
        np.savez(folder / str(label) / f"n{number:03d}.JPEG.npz", **values)
    return folder


@pytest.fixture(scope="module")
def lightning(moments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As LightningDiT's extract_features.py writes them, here with means for draws."""
    folder = tmp_path_factory.mktemp("lightning")
    means, mirrored = (torch.from_numpy(values[:, :2].copy()) for values in moments)
    for number, rows in enumerate((slice(0, 4), slice(4, COUNT))):
        tensors = {
            "latents": means[rows].contiguous(),
            "latents_flip": mirrored[rows].contiguous(),
            "labels": torch.from_numpy(LABELS[rows].copy()),
        }
        save_file(tensors, folder / f"latents_rank00_shard{number:03d}.safetensors")
    (folder / "latents_stats.pt").write_bytes(b"a pickle, which is not read")
    return folder


def ours(folder: Path, autoencoder: str, latents: str) -> RunConfig:
    """Settings with a cache that `causalfusion encode` made of the same images."""
    np.savez(folder / "x.npz", images=PIXELS, labels=LABELS)
    codec = CodecConfig(autoencoder=autoencoder, latents=latents)  # pyright: ignore[reportArgumentType]
    data = replace(FLIPPED, source="npz", path=str(folder / "x.npz"))
    config = RunConfig(data=data, codec=codec, train=TrainConfig(batch_size=4))
    encode_to_cache(config, folder / "cache", dtype="float32", device="cpu")
    return replace(config, data=replace(data, cache=str(folder / "cache")))


@pytest.mark.parametrize(("kind", "latents"), [("mar", "sample"), ("mar", "mode"), ("lightning", "mode")])
@pytest.mark.parametrize("normalization", ["given", "measured"])
def test_training_sees_the_same_tokens(kind, latents, normalization, autoencoder, tmp_path: Path, request):
    folder: Path = request.getfixturevalue(kind)
    assert guess_source(str(folder)) == "cache" and not any(is_image(p.name) for p in folder.rglob("*"))
    config = ours(tmp_path, autoencoder, latents)
    config = replace(config, codec=replace(config.codec, normalization=normalization))
    codec = replace(config.codec, latents="sample") if kind == "lightning" else config.codec
    other = replace(config, data=replace(FLIPPED, cache=str(folder)), codec=codec)
    a, b = (open_training_data(c, WORLD) for c in (config, other))
    assert a.class_names == b.class_names == ["0", "1"] and a.config.model == b.config.model
    assert b.codec.config.scale == pytest.approx(a.codec.config.scale, rel=1e-5)
    assert b.codec.config.shift == pytest.approx(a.codec.config.shift, rel=1e-5, abs=1e-6)
    for x, y, _ in zip(a.batches(16), b.batches(16), range(4), strict=False):
        assert torch.equal(x.labels, y.labels) and torch.equal(x.sample_indices, y.sample_indices)
        torch.testing.assert_close(x.tokens, y.tokens, atol=1e-5, rtol=1e-4)
    for x, y in zip(a.evaluation_batches(5), b.evaluation_batches(5), strict=True):
        torch.testing.assert_close(x.tokens, y.tokens, atol=1e-5, rtol=1e-4)
    again = pickle.loads(pickle.dumps(open_cache(str(folder))))
    assert again.manifest == open_cache(str(folder)).manifest


@pytest.mark.parametrize(
    ("codec", "data", "answer"),
    [
        ({"autoencoder": ""}, {}, "holds latents of an autoencoder; give the one .*--codec.autoencoder"),
        ({"latents": "mode"}, {}, "made with codec.latents = sample, the run has mode"),
        ({}, {"image_size": 16}, "made with data.image_size = 8x8, the run has 16"),
    ],
)
def test_what_does_not_fit_is_refused(codec, data, answer, lightning, autoencoder):
    settings = CodecConfig(**{"autoencoder": autoencoder, **codec})
    with pytest.raises(UserError, match=answer):
        check_cache(open_cache(str(lightning)), settings, DataConfig(cache=str(lightning), **data))


def test_damaged_files_are_named(mar: Path, lightning: Path, autoencoder: str, tmp_path: Path):
    for number, shape in enumerate([(4, 4, 4), (4, 4, 2)]):
        (tmp_path / "mar" / "cat").mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path / "mar" / "cat" / f"{number}.npz", moments=np.zeros(shape, np.float32))
    cache = open_cache(str(tmp_path / "mar"))
    with pytest.raises(UserError, match=r"1\.npz: moments is \(4, 4, 2\); expected \(4, 4, 4\)"):
        cache.read(np.arange(2), None, None)
    with pytest.raises(UserError, match="holds no mirrored images"):
        cache.read(np.arange(1), np.array([True]), None)
    with pytest.raises(UserError, match="have the variance 0; they are damaged"):
        open_cache(str(lightning_of(tmp_path, torch.zeros(3, 2, 4, 4)))).statistics("sample")
    with pytest.raises(UserError, match=r"latents have 3 channels, those of the autoencoder .* have 2"):
        folder = str(lightning_of(tmp_path, torch.zeros(3, 3, 4, 4)))
        check_cache(open_cache(folder), CodecConfig(autoencoder=autoencoder), DataConfig(cache=folder))


def lightning_of(folder: Path, latents: torch.Tensor) -> Path:
    place = folder / f"lightning-{latents.shape[1]}"
    place.mkdir()
    labels = torch.zeros(len(latents), dtype=torch.int64)
    save_file({"latents": latents, "labels": labels}, place / "x.safetensors")
    return place
