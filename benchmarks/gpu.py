"""`python -m benchmarks.gpu`: in one call, check every CUDA path against the CPU's and measure it.

Needs nothing but PyTorch >= 2.9 and this package's own dependencies. `--device cpu --quick` shows on any
machine that the script runs. Exit code 1 if a check fails; tables go to `--out` as JSON and Markdown.

Shape letters: B images, L image tokens, P token dimension.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.reference import QUICK, REFERENCE, Reference, build_model
from causalfusion.arithmetic import generation_flops, train_step_flops
from causalfusion.config import (
    DiffusionConfig,
    FactorizationConfig,
    ModelConfig,
    SampleConfig,
    TrainConfig,
)
from causalfusion.diffusion.schedule import NoiseSchedule
from causalfusion.factorization import Plan, ar_step_of
from causalfusion.generate.noise import ImageNoise
from causalfusion.generate.settings import step_sizes
from causalfusion.generate.tokens import generate_tokens, prefill
from causalfusion.model.attention import AttentionBackend
from causalfusion.model.transformer import Transformer
from causalfusion.presets import load_layer
from causalfusion.rng import derive_generator
from causalfusion.runtime import measure_copy_rate, measure_gemm_rate
from causalfusion.train.ema import EMA
from causalfusion.train.optimizer import make_optimizer
from causalfusion.train.step import Draws, token_errors, training_loss

SCHEDULE = NoiseSchedule.from_config(DiffusionConfig())
FACTORIZATION = FactorizationConfig()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small models only: does it all run?")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    report: dict[str, Any] = {"device": name, "torch": torch.__version__}
    report["checks"] = check(QUICK if arguments.quick else REFERENCE, device)
    rates = {str(d): measure_gemm_rate(d, device) for d in (torch.float32, torch.bfloat16)}
    report["rates"] = {"gemm": rates, "copy": measure_copy_rate(device)}
    report["training"], report["generation"] = [], []
    for size, batch_size, grid in sizes_to_measure(arguments.quick):
        config = model_of(size, grid)
        for measure, key in ((training, "training"), (generation, "generation")):
            row = {"size": size, "tokens": grid**2, "batch_size": batch_size}
            row |= measure(config, batch_size, device, rates[str(torch.bfloat16)])
            report[key].append(row)
            print(key, row, flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.out / "gpu.md").write_text(markdown(report))
    print(markdown(report))
    return 0 if all(row["ok"] for row in report["checks"]) else 1


def sizes_to_measure(quick: bool) -> list[tuple[str, int, int]]:
    """(size, batch size, side of the token grid)."""
    if quick:
        return [("tiny", 4, 8)]
    return [("L", 64, 16), ("XL", 32, 16), ("L", 16, 32), ("XL", 8, 32)]


def model_of(size: str, grid: int) -> ModelConfig:
    named = load_layer(size)["model"]
    return ModelConfig(
        **named, num_class_tokens=64, num_classes=1000, token_dim=16, grid_height=grid, grid_width=grid
    )


# --- checks -------------------------------------------------------------------------------------------


def check(reference: Reference, device: torch.device) -> list[dict[str, Any]]:
    """Predictions, gradients and generation on the device against the dense path in float32 on the CPU."""
    rows: list[dict[str, Any]] = []

    def add(name: str, value: Tensor, expected: Tensor, tolerance: float) -> None:
        error = float((value.cpu().double() - expected.double()).norm() / expected.double().norm())
        rows.append({"check": name, "error": error, "tolerance": tolerance, "ok": error <= tolerance})
        print(rows[-1], flush=True)

    expected = _training_pass(reference, torch.device("cpu"), "dense", False)
    backends: list[AttentionBackend] = ["dense", "segments", *(["flex"] if device.type == "cuda" else [])]
    for backend in backends:
        for bf16, tolerance in ((False, 2e-3 if device.type == "cuda" else 1e-5), (True, 3e-2)):
            label = f"{backend} {'bf16' if bf16 else 'float32'}"
            result = _training_pass(reference, device, backend, bf16)
            for key in ("predictions", "gradients"):
                factor = 1 if key == "predictions" else 5
                add(f"{key}, {label}", result[key], expected[key], tolerance * factor)
    for config in (
        SampleConfig(diffusion_steps=[8], sampler="ddim"),
        SampleConfig(diffusion_steps=[4], sampler="ddim", num_ar_steps=4, guidance_scale=2.0),
    ):
        images = [
            _generate(build_model(reference, False), config, 2, d) for d in (torch.device("cpu"), device)
        ]
        add(f"generation, S = {config.num_ar_steps}", images[1], images[0], 1e-2)
    return rows


def _draws(config: ModelConfig, sizes: tuple[int, ...], batch_size: int) -> tuple[Tensor, Tensor, Draws]:
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(config.num_tokens, generator=generator) for _ in range(batch_size)])
    shape = (batch_size, config.num_tokens, config.token_dim)
    tokens = torch.randn(shape, generator=generator)
    labels = torch.randint(config.num_classes, (batch_size,), generator=generator)
    timesteps = torch.randint(1000, (batch_size, 1), generator=generator)
    noise = torch.randn(batch_size, 1, *shape[1:], generator=generator)
    plan = Plan(order, ar_step_of(sizes)[None])
    return tokens, labels, Draws(plan, timesteps, noise, torch.zeros(batch_size, dtype=torch.bool))


def _training_pass(
    reference: Reference, device: torch.device, backend: AttentionBackend, bf16: bool
) -> dict[str, Tensor]:
    model = build_model(reference, False).to(device)
    tokens, labels, draws = _draws(reference.model, reference.splits[-1], 4)
    tokens, labels, draws = tokens.to(device), labels.to(device), draws.to(device)
    seen: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(output.image.detach()))
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        errors = token_errors(model, reference.model, SCHEDULE, "epsilon", tokens, labels, draws, backend)
    handle.remove()
    training_loss(errors, draws.plan, FACTORIZATION).backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {"predictions": seen[0].float().cpu(), "gradients": gradients.float().cpu()}


@torch.no_grad()
def _generate(model: Transformer, config: SampleConfig, batch_size: int, device: torch.device) -> Tensor:
    model = model.to(device).eval()
    total = model.config.num_tokens
    labels = torch.arange(batch_size, device=device)
    order = torch.randperm(total, generator=derive_generator(0)).expand(batch_size, -1).to(device)
    noise = ImageNoise(0, range(batch_size), total, model.config.token_dim)
    context = prefill(model, labels, config)
    sizes = step_sizes(config, total, 0)
    return generate_tokens(model, SCHEDULE, "epsilon", config, context, order, sizes, noise).cpu()


# --- measurements -------------------------------------------------------------------------------------


def training(config: ModelConfig, batch_size: int, device: torch.device, rate: float) -> dict[str, Any]:
    """One bf16 train step over splits drawn with decay 0.9: dense path and the automatic one."""
    model = Transformer(config).to(device)
    optimizer = make_optimizer(model.parameters(), TrainConfig())
    ema = EMA(model.named_parameters(), 0.9999)
    splits = _scaled_splits(config.num_tokens)
    result: dict[str, Any] = {}
    backends: tuple[AttentionBackend, ...] = ("dense", "auto")
    for backend in backends:
        batches = [tuple(x.to(device) for x in _draws(config, split, batch_size)) for split in splits]

        def step(batches: list[Any] = batches, backend: AttentionBackend = backend) -> None:
            for tokens, labels, draws in batches:
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(device.type, torch.bfloat16):
                    errors = token_errors(model, config, SCHEDULE, "epsilon", tokens, labels, draws, backend)
                training_loss(errors, draws.plan, FACTORIZATION).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
                optimizer.step()
                ema.update()

        seconds = _median_seconds(step, device) / len(splits)
        needed = sum(train_step_flops(config, split, batch_size).needed for split in splits) / len(splits)
        result[f"{backend}: images/s"] = batch_size / seconds
        result[f"{backend}: share of the bf16 GEMM rate"] = needed / seconds / rate
    if device.type == "cuda":
        result["peak memory, GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
    return result


def generation(config: ModelConfig, batch_size: int, device: torch.device, rate: float) -> dict[str, Any]:
    """S = 1 and S = 4, 25 diffusion steps in all, guidance 2, bf16."""
    model = Transformer(config).to(device).eval()
    result: dict[str, Any] = {}
    for num_ar_steps, steps in ((1, 25), (4, 6)):
        settings = SampleConfig(num_ar_steps=num_ar_steps, diffusion_steps=[steps], guidance_scale=2.0)

        def run(settings: SampleConfig = settings) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                _generate(model, settings, batch_size, device)

        seconds = _median_seconds(run, device)
        sizes = step_sizes(settings, config.num_tokens, 0)
        flops = generation_flops(config, sizes, [steps] * num_ar_steps, guided=True).needed * batch_size
        result[f"S = {num_ar_steps}: images/s"] = batch_size / seconds
        result[f"S = {num_ar_steps}: share of the bf16 GEMM rate"] = flops / seconds / rate
    return result


def _scaled_splits(num_tokens: int) -> list[tuple[int, ...]]:
    """The reference's splits, their steps stretched to this number of tokens."""
    splits = []
    for split in REFERENCE.splits:
        edges = [0]
        for size in split:
            edges.append(edges[-1] + size)
        scaled = sorted({round(edge * num_tokens / edges[-1]) for edge in edges})
        splits.append(tuple(b - a for a, b in pairwise(scaled)))
    return splits


def _median_seconds(run: Callable[[], None], device: torch.device, repeats: int = 5) -> float:
    times = []
    for _ in range(repeats + 1):  # the first compiles and warms up
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


def markdown(report: dict[str, Any]) -> str:
    lines = [f"# {report['device']}, PyTorch {report['torch']}", ""]
    for key in ("checks", "training", "generation"):
        rows = report[key]
        if rows:
            names = list(rows[0])
            lines += [f"## {key}", "", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
            lines += ["| " + " | ".join(_cell(row.get(name)) for name in names) + " |" for row in rows]
            lines.append("")
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
