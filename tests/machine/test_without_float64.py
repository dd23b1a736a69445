"""Nothing moves a float64 tensor to a device that has none, such as Apple's: there it is an error. The
device here is `meta`, told to have none, and every operation's outputs are looked at."""

from typing import get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from causalfusion.codec.codec import Codec, measure_statistics
from causalfusion.config import CodecConfig, DiffusionConfig, ModelConfig, RopeConfig, WriteConfig
from causalfusion.config.parts import RopeExtrapolation
from causalfusion.diffusion.process import make_process
from causalfusion.diffusion.segments import Segments
from causalfusion.generate.write import choose_tokens
from causalfusion.machine import runtime
from causalfusion.model.positions import rotation_at, sincos_at
from causalfusion.model.transformer import Transformer

META = torch.device("meta")


class NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device == META and tensor.dtype == torch.float64:
                raise TypeError(f"{func} made a float64 tensor on a device that has none")
        return out


@pytest.fixture(autouse=True)
def without_float64(monkeypatch):
    monkeypatch.setattr(runtime, "_WITHOUT_FLOAT64", frozenset({"mps", "meta"}))
    with NoFloat64():
        yield


def test_the_watch_sees_one():
    with pytest.raises(TypeError, match="float64"):
        torch.zeros(2, device=META).double()
    with pytest.raises(TypeError, match="float64"):
        torch.zeros(2, dtype=torch.float64).to(META)


def test_positions():
    places = torch.zeros(2, 5, 2, dtype=torch.int64, device=META)
    assert sincos_at(places, 32).dtype == torch.float32
    grid = torch.ones(2, 2, dtype=torch.int64, device=META)
    assert rotation_at(places, grid, RopeConfig(axes="raster"), 16, (4, 4)).dtype == torch.float32
    for rule in get_args(RopeExtrapolation):
        turned = rotation_at(places, grid, RopeConfig(extrapolation=rule), 16, (4, 4))
        assert turned.shape == (2, 2, 5, 16) and turned.dtype == torch.float32


@pytest.mark.parametrize(
    "config", [DiffusionConfig(), DiffusionConfig(path="rectified_flow", prediction_type="velocity")]
)
def test_noise(config):
    process = make_process(config)
    clean = torch.zeros(2, 3, 4, device=META)
    drawn = process.draw_levels((2, 3), torch.Generator().manual_seed(0)).to(META)
    noised = process.signal(drawn, clean) * clean + process.noise_scale(drawn, clean)
    assert noised.device == META and process.levels_at(process.shares(drawn)).shape == (2, 3)
    assert process.weight(drawn).device == process.timesteps(drawn).device == META
    segments = Segments.of(process, 2, 3)
    at = torch.ones(4, dtype=torch.int64, device=META)
    assert segments.share(at, at, at).device == META


def test_statistics_of_latents_and_draws_of_tokens():
    codec = Codec(CodecConfig(image_height=8, image_width=8, image_channels=3))
    codec.device = META
    with pytest.raises(RuntimeError, match="item"):  # the sum is read: what leads to it was float32
        measure_statistics(codec, [torch.zeros(1, 3, 8, 8)])
    config = WriteConfig(text_temperature=1.0)
    assert choose_tokens(torch.zeros(2, 9, device=META), config, torch.zeros(2, device=META)).shape == (2,)


@pytest.mark.parametrize("positions", ["sincos", "learnable", "rope"])
def test_a_model_moves_whole(positions):
    config = ModelConfig(
        hidden_size=32, depth=1, num_heads=2, num_classes=3, token_dim=4, grid_height=2, grid_width=2,
        position_embedding=positions,
    )  # fmt: skip
    model = Transformer(config).to(META)
    assert all(tensor.dtype == torch.float32 for tensor in (*model.parameters(), *model.buffers()))
