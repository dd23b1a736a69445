"""`python -m benchmarks.gpu`: in one call, check every CUDA path against the CPU's and measure it.

Needs nothing but PyTorch and this package's own dependencies. `--device cpu --quick` shows on any machine
that the script runs. Exit code 1 if a check fails; tables go to `--out` as JSON and Markdown, after each
part, and the profile of training steps beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_checks import batch_for, check, compiler_of, generate, objective_of
from benchmarks.naive import NaiveTransformer
from benchmarks.reference import QUICK, REFERENCE
from causalfusion.config import ModelConfig, RunConfig, SampleConfig, TrainConfig
from causalfusion.config.recipes import load_layer
from causalfusion.estimate.memory import activation_bytes, state_bytes
from causalfusion.generate.settings import step_sizes
from causalfusion.machine.processes import World
from causalfusion.machine.runtime import measure_copy_rate, measure_gemm_rate
from causalfusion.model.arithmetic import train_step_flops
from causalfusion.model.attention import AttentionBackend
from causalfusion.model.compiled import compile_blocks
from causalfusion.model.generation_arithmetic import generation_flops
from causalfusion.model.split_facts import split_facts
from causalfusion.model.transformer import Transformer
from causalfusion.train.ema import EMA
from causalfusion.train.objectives import make_objective
from causalfusion.train.optimizer import make_optimizer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small models only: does it all run?")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    report: dict[str, Any] = {"device": name, "torch": torch.__version__}
    arguments.out.mkdir(parents=True, exist_ok=True)
    report["checks"] = check(QUICK if arguments.quick else REFERENCE, device)
    rates = {str(d): measure_gemm_rate(d, device) for d in (torch.float32, torch.bfloat16)}
    report["rates"] = {"gemm": rates, "copy": measure_copy_rate(device)}
    report["training"], report["generation"] = [], []
    for size, batch_size, grid in sizes_to_measure(arguments.quick):
        config = model_of(size, grid)
        for measure, key in ((training, "training"), (generation, "generation")):
            row = {"size": size, "tokens": grid**2, "batch_size": batch_size}
            try:
                row |= measure(config, batch_size, device, rates[str(torch.bfloat16)])
            except torch.OutOfMemoryError as error:  # the other sizes have their turn
                row["failed"] = str(error).splitlines()[0]
            report[key].append(row)
            print(key, row, flush=True)
        _write(report, arguments.out)
    size, batch_size, grid = sizes_to_measure(arguments.quick)[0]
    (arguments.out / "gpu-profile.txt").write_text(profile(model_of(size, grid), batch_size, device))
    print(markdown(report))
    return 0 if all(row["ok"] for row in report["checks"]) else 1


def _write(report: dict[str, Any], out: Path) -> None:
    (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "gpu.md").write_text(markdown(report))


def sizes_to_measure(quick: bool) -> list[tuple[str, int, int]]:
    """(size, batch size, side of the token grid)."""
    if quick:
        return [("tiny", 2, 4)]
    return [("L", 64, 16), ("XL", 32, 16), ("L", 16, 32), ("XL", 8, 32)]


def model_of(size: str, grid: int) -> ModelConfig:
    named = load_layer(size)["model"]
    return ModelConfig(
        **named, num_class_tokens=64, num_classes=1000, token_dim=16, grid_height=grid, grid_width=grid
    )


TRAINING_PATHS: dict[str, tuple[AttentionBackend, bool]] = {
    "dense": ("dense", False),
    "auto": ("auto", False),
    "auto, compiled": ("auto", True),
}
"""Attention, and whether the blocks are compiled; the last is what training does on a GPU."""


# --- measurements -------------------------------------------------------------------------------------


def training(config: ModelConfig, batch_size: int, device: torch.device, rate: float) -> dict[str, Any]:
    """One bf16 train step over splits drawn with decay 0.9, by each of the paths."""
    splits = _scaled_splits(config.num_tokens)
    needed = sum(train_step_flops(config, split, batch_size).needed for split in splits) / len(splits)
    result: dict[str, Any] = {}
    for name, (backend, compiled) in TRAINING_PATHS.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        step = _train_steps(config, batch_size, device, backend, compiled=compiled)
        seconds = _median_seconds(step, device) / len(splits)
        result[f"{name}: images/s"] = batch_size / seconds
        result[f"{name}: share of the bf16 GEMM rate"] = needed / seconds / rate
        if device.type == "cuda":
            result[f"{name}: peak memory, GB"] = torch.cuda.max_memory_allocated(device) / 1e9
        del step  # with its model and optimizer, which the next path's peak is not to hold
    run = RunConfig(model=config, train=TrainConfig(batch_size=batch_size, precision="bfloat16"))
    facts = [split_facts(split) for split in splits]
    on_gpu = device.type == "cuda"
    activations = max(activation_bytes(run, batch_size, on_gpu=on_gpu, split=f) for f in facts)
    result["estimated memory, GB"] = (state_bytes(run, 1) + activations) / 1e9
    return result


def _train_steps(
    config: ModelConfig, batch_size: int, device: torch.device, backend: AttentionBackend, *, compiled: bool
) -> Callable[[], None]:
    """A train step on each of the splits."""
    model = Transformer(config).to(device)
    if compiled:
        compile_blocks(model, compiler_of(device))
    optimizer = make_optimizer(model.parameters(), TrainConfig())
    ema = EMA(model.named_parameters())
    splits = _scaled_splits(config.num_tokens)
    run = RunConfig(model=config, train=TrainConfig(attention=backend))
    # The naive path takes lengths as they come; else they are those of a training on this device.
    of_training = make_objective(run, World(0, 1, device), None)
    objective = objective_of(config, backend) if backend == "dense" else of_training
    pieces = [objective.arrange(*batch_for(config, split, batch_size)).to(device) for split in splits]

    def steps() -> None:
        for piece in pieces:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16):
                errors = objective.errors(model, piece)
            objective.image_loss(errors.image, piece).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()
            ema.update(0.9999)

    return steps


def profile(config: ModelConfig, batch_size: int, device: torch.device) -> str:
    """Where the time of training steps goes, by operator."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    steps = _train_steps(config, batch_size, device, "auto", compiled=False)
    steps()  # compiles
    with torch.profiler.profile(activities=activities) as found:
        steps()
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return found.key_averages().table(sort_by=by, row_limit=30)


def generation(config: ModelConfig, batch_size: int, device: torch.device, rate: float) -> dict[str, Any]:
    """S = 1 and S = 4, 24 or 25 diffusion steps in all, guidance 2, bf16: the naive path, ours, and ours with
    compiled blocks, as `sample` has them for many images on a GPU."""
    model = Transformer(config).to(device).eval()
    naive = NaiveTransformer(config).to(device).eval()
    naive.load_state_dict(model.state_dict())
    result: dict[str, Any] = {}

    def measure(name: str, chosen: Transformer) -> None:
        for num_ar_steps, steps in ((1, 25), (4, 6)):
            settings = SampleConfig(num_ar_steps=num_ar_steps, diffusion_steps=[steps], guidance_scale=2.0)
            run = partial(_generate, chosen, settings, batch_size, device)
            seconds = _median_seconds(run, device)
            sizes = step_sizes(settings, config.num_tokens, 0)
            flops = generation_flops(config, sizes, [steps] * num_ar_steps, guided=True).needed * batch_size
            result[f"{name}, S = {num_ar_steps}: images/s"] = batch_size / seconds
            result[f"{name}, S = {num_ar_steps}: share of the bf16 GEMM rate"] = flops / seconds / rate

    measure("naive", naive)
    measure("ours", model)
    compile_blocks(model, compiler_of(device))
    measure("ours, compiled", model)
    return result


def _generate(model: Transformer, settings: SampleConfig, batch_size: int, device: torch.device) -> None:
    with torch.autocast(device.type, torch.bfloat16):  # anew each time, as in `sample`: it keeps casts
        generate(model, settings, batch_size, device)


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
            names = list(dict.fromkeys(name for row in rows for name in row))
            lines += [f"## {key}", "", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
            lines += ["| " + " | ".join(_cell(row.get(name)) for name in names) + " |" for row in rows]
            lines.append("")
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
