"""Finished tokens run through the model in the first pass of the next AR step, where nobody can tell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from causalfusion.config import DiffusionConfig, HeadConfig, ModelConfig, SampleConfig
from causalfusion.diffusion.process import make_process
from causalfusion.generate.ar_step import AutoregressiveStep
from causalfusion.generate.context import prefill
from causalfusion.generate.layout import draw_orders
from causalfusion.generate.noise import ImageNoise
from causalfusion.generate.settings import step_sizes
from causalfusion.generate.tokens import generate_tokens
from causalfusion.model.transformer import Transformer

CONFIG = ModelConfig(
    hidden_size=32, depth=3, num_heads=2, num_class_tokens=4, num_classes=5, token_dim=3, grid_height=4,
    grid_width=4,
)  # fmt: skip
MODELS: dict[str, ModelConfig] = {
    "joint": CONFIG,
    "adaln_zero": replace(CONFIG, conditioning="adaln_zero", position_embedding="rope"),
    "shared_heads": replace(CONFIG, num_heads=4, num_kv_heads=2),
    "per_token": replace(CONFIG, head=HeadConfig(kind="per_token", width=24, depth=2)),
}
PROCESS = make_process(DiffusionConfig())
LABELS = [0, 3]
FOUR = SampleConfig(num_ar_steps=4, diffusion_steps=[2], sampler="ddim")
ALL = SampleConfig(num_ar_steps=16, diffusion_steps=[2], sampler="ddim", order="raster")
SETTINGS = {
    "four steps": FOUR,
    "a token each": ALL,
    "growing steps": replace(FOUR, step_sizes="cosine", diffusion_steps=[3]),
    "a large last step": SampleConfig(sizes=[2, 2, 12], diffusion_steps=[2], sampler="dpm++"),
    "guided": replace(FOUR, guidance_scale=2.0, guidance_schedule="linear"),
    "guided at first alone": replace(FOUR, guidance_scale=2.0, guidance_interval=(0.5, 1.0)),
    "guided at last alone": replace(FOUR, guidance_scale=2.0, guidance_interval=(0.0, 0.5)),
}


def make_model(config: ModelConfig) -> Transformer:
    model, generator = Transformer(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15, generator=generator)
    return model.requires_grad_(False)


def generate(model: Transformer, config: SampleConfig, *, room: bool = False) -> tuple[Tensor, int]:
    """(tokens, number of the model's calls); with `room`, in a cache that all tokens fit in."""
    calls: list[Any] = []
    handle = model.register_forward_hook(lambda *call: calls.append(call))
    sizes, rows = step_sizes(config, 16, 0), range(len(LABELS))
    order, noise = draw_orders(config, 4, 4, 0, rows), ImageNoise(0, rows, 16, 3)
    context = prefill(model, torch.tensor(LABELS), config, sizes=None if room else sizes)
    tokens = generate_tokens(model, PROCESS, config, context, order, sizes, noise)
    handle.remove()
    return tokens, len(calls)


def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished tokens get a pass of their own."""
    together = AutoregressiveStep.finish

    def finish(step: AutoregressiveStep, tokens: Tensor) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(AutoregressiveStep, "finish", together)
            return step.append(tokens)

    monkeypatch.setattr(AutoregressiveStep, "finish", finish)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", MODELS)
def test_joined_passes_give_the_images_of_separate_ones(
    name: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = make_model(MODELS[name]), SETTINGS[setting]
    joined, calls = generate(model, config)
    roomy, _ = generate(model, config, room=True)
    apart(monkeypatch)
    separate, more_calls = generate(model, config, room=True)
    scale = separate.abs().max()
    assert (joined - separate).abs().max() <= 1e-6 * scale
    assert (roomy - separate).abs().max() <= 1e-6 * scale
    appended = len(step_sizes(config, 16, 0)) - 1
    unguided_first = setting == "guided at last alone" and name != "per_token"
    assert more_calls - calls == (0 if unguided_first else appended)


def test_a_third_of_the_calls_is_saved_at_two_diffusion_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(CONFIG)
    _, calls = generate(model, ALL)
    apart(monkeypatch)
    _, before = generate(model, ALL)
    assert (calls, before) == (1 + 2 * 16, 1 + 2 * 16 + 15)


def test_a_large_last_step_takes_no_room_in_the_cache() -> None:
    model, labels = make_model(CONFIG), torch.tensor(LABELS)

    def capacity(*sizes: int) -> int:
        return prefill(model, labels, SampleConfig(), sizes=sizes).cache.k.shape[3]

    assert (capacity(16), capacity(2, 2, 12), capacity(8, 8)) == (4, 8, 20)
