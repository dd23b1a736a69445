"""Every path of a device against the dense one in float32 on the CPU: backends, bf16, compile, texts, cache.

Shape letters: B images, L image tokens, P token dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.naive import NaiveTransformer
from benchmarks.reference import Reference, build_model, naive_context, separate_passes
from causalfusion.codec.tokenizer import Markers
from causalfusion.config import DiffusionConfig, ModelConfig, RunConfig, SampleConfig, TrainConfig
from causalfusion.diffusion.process import make_process
from causalfusion.documents import Image, Text, lay_out, pack_documents
from causalfusion.factorization import Plan, ar_step_of
from causalfusion.generate.context import prefill
from causalfusion.generate.noise import ImageNoise
from causalfusion.generate.settings import step_sizes
from causalfusion.generate.tokens import generate_tokens
from causalfusion.model.attention import AttentionBackend
from causalfusion.model.compiled import compile_blocks
from causalfusion.model.transformer import Transformer
from causalfusion.rng import derive_generator
from causalfusion.train.draws import Draws
from causalfusion.train.step import Objective, TokenBatch

PROCESS = make_process(DiffusionConfig())
CPU = torch.device("cpu")
IMAGES = 4
Add = Callable[[str, Tensor, Tensor, float], None]


def check(reference: Reference, device: torch.device) -> list[dict[str, Any]]:
    """Predictions, gradients and generation on the device against the dense path in float32 on the CPU."""
    rows: list[dict[str, Any]] = []

    def add(name: str, value: Tensor, expected: Tensor, tolerance: float) -> None:
        error = float((value.cpu().double() - expected.double()).norm() / expected.double().norm())
        rows.append({"check": name, "error": error, "tolerance": tolerance, "ok": error <= tolerance})
        print(rows[-1], flush=True)

    _check_training(reference, device, add)
    _check_documents(reference, device, add)
    _check_generation(reference, device, add)
    return rows


def _check_generation(reference: Reference, device: torch.device, add: Add) -> None:
    """The naive path on the CPU against the cache, joined passes and compiled blocks on the device."""
    for config in (
        SampleConfig(diffusion_steps=[8], sampler="ddim"),
        SampleConfig(diffusion_steps=[4], sampler="ddim", num_ar_steps=4, guidance_scale=2.0),
    ):
        expected = generate(build_model(reference, naive=True), config, 2, CPU)
        model = build_model(reference, naive=False)
        add(f"generation, S = {config.num_ar_steps}", generate(model, config, 2, device), expected, 1e-2)
        compile_blocks(model, compiler_of(device))
        compiled = generate(model, config, 2, device)
        add(f"generation, S = {config.num_ar_steps}, compiled blocks", compiled, expected, 1e-2)


def backends_of(device: torch.device) -> list[AttentionBackend]:
    return ["dense", "segments", "flex"] if device.type == "cuda" else ["dense", "segments"]


def _check_training(reference: Reference, device: torch.device, add: Add) -> None:
    expected = _training_pass(reference, CPU, "dense", bf16=False)
    for backend in backends_of(device):
        for bf16, tolerance in ((False, 2e-3 if device.type == "cuda" else 1e-5), (True, 3e-2)):
            label = f"{backend} {'bf16' if bf16 else 'float32'}"
            result = _training_pass(reference, device, backend, bf16=bf16)
            add(f"predictions, {label}", result["predictions"], expected["predictions"], tolerance)
            add(f"gradients, {label}", result["gradients"], expected["gradients"], 5 * tolerance)
    few = replace(reference, model=replace(reference.model, depth=2))
    expected = _training_pass(few, CPU, "dense", bf16=False)
    result = _training_pass(few, device, "auto", bf16=False, compiled=True)
    for key, tolerance in (("predictions", 2e-3), ("gradients", 1e-2)):
        add(f"{key}, compiled blocks", result[key], expected[key], tolerance)


def compiler_of(device: torch.device) -> str:
    """The backend of torch.compile; on a CPU, where the script is only tried, one that generates no code."""
    return "inductor" if device.type == "cuda" else "aot_eager"


def objective_of(config: ModelConfig, backend: AttentionBackend) -> Objective:
    return Objective(RunConfig(model=config, train=TrainConfig(attention=backend)), PROCESS)


def batch_for(config: ModelConfig, sizes: tuple[int, ...], batch_size: int) -> tuple[TokenBatch, Draws]:
    """A batch and its draws from a fixed seed, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(config.num_tokens, generator=generator) for _ in range(batch_size)])
    shape = (batch_size, config.num_tokens, config.token_dim)
    tokens = torch.randn(shape, generator=generator)
    labels = torch.randint(config.num_classes, (batch_size,), generator=generator)
    timesteps = torch.randint(1000, (batch_size, 1), generator=generator)
    noise = torch.randn(batch_size, 1, *shape[1:], generator=generator)
    plan = Plan(order, ar_step_of(sizes)[None], config.grid_width)
    batch = TokenBatch(tokens, labels, torch.arange(batch_size))
    return batch, Draws(plan, timesteps, noise, torch.zeros(batch_size, dtype=torch.bool))


def _training_pass(
    reference: Reference,
    device: torch.device,
    backend: AttentionBackend,
    *,
    bf16: bool,
    compiled: bool = False,
) -> dict[str, Tensor]:
    model = build_model(reference, False).to(device)
    if compiled:
        compile_blocks(model, compiler_of(device))
    objective = objective_of(reference.model, backend)
    piece = objective.arrange(*batch_for(reference.model, reference.splits[-1], IMAGES)).to(device)
    seen: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(output.image.detach()))
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        errors = objective.errors(model, piece)
    handle.remove()
    objective.image_loss(errors.image, piece).backward()
    return {"predictions": seen[0].float().cpu(), "gradients": _gradients(model)}


def _gradients(model: nn.Module) -> Tensor:
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(found).float().cpu()


def _check_documents(reference: Reference, device: torch.device, add: Add) -> None:
    """Prompts before images and images before captions, packed into one sequence each."""
    config = replace(reference.model, vocab_size=64, num_class_tokens=0, depth=2)
    few = replace(reference, model=config)
    expected = _document_pass(few, CPU, "dense")
    for backend in backends_of(device):
        result = _document_pass(few, device, backend)
        for name, tolerance in (("image", 2e-3), ("text", 2e-3), ("gradients", 1e-2)):
            add(f"documents, {name}, {backend}", result[name], expected[name], tolerance)


def _document_pass(
    reference: Reference, device: torch.device, backend: AttentionBackend
) -> dict[str, Tensor]:
    config, sizes = reference.model, reference.splits[-1]
    model = build_model(reference, False).to(device)
    piece = objective_of(config, backend).arrange(*batch_for(config, sizes, 2)).to(device)
    documents = [[Text((9, 10, 11)), Image(0)], [Image(1), Text((12, 13))]]
    layout = lay_out(documents, Markers(0, 1, 2, 3, 4), [len(sizes)] * 2, ended=True).to(device)
    noised, timesteps = piece.tokens + piece.noise[:, 0], PROCESS.timesteps(piece.levels)
    sequence = pack_documents(layout, piece.labels, 0, piece.tokens, noised, piece.plan, timesteps)
    found = model(sequence, backend=backend)
    assert found.text is not None
    valid = torch.arange(found.text.shape[1], device=device) < layout.text_lengths[:, None]
    (found.image.square().mean() + found.text[valid].square().mean()).backward()
    return {
        "image": found.image.detach().float().cpu(),
        "text": found.text[valid].detach().float().cpu(),
        "gradients": _gradients(model),
    }


@torch.no_grad()
def generate(model: Transformer, config: SampleConfig, batch_size: int, device: torch.device) -> Tensor:
    """Image tokens (B, L, P), on the CPU."""
    model = model.to(device).eval()
    total = model.config.num_tokens
    labels = torch.arange(batch_size, device=device)
    order = torch.randperm(total, generator=derive_generator(0)).expand(batch_size, -1).to(device)
    noise = ImageNoise(0, range(batch_size), total, model.config.token_dim)
    context, sizes = prefill(model, labels, config), step_sizes(config, total, 0)
    if not isinstance(model, NaiveTransformer):
        return generate_tokens(model, PROCESS, config, context, order, sizes, noise).cpu()
    with separate_passes():
        return generate_tokens(model, PROCESS, config, naive_context(context), order, sizes, noise).cpu()
