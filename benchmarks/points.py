"""How time, arithmetic and memory grow: with the model's size, tokens, AR steps and images at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.choices import Axis, Precision
from benchmarks.reference import REFERENCE, Reference, Sampling, TrainingStep
from causalfusion.config import ModelConfig, RunConfig, SampleConfig, TrainConfig
from causalfusion.config.recipes import load_layer
from causalfusion.estimate.allocated import Allocated
from causalfusion.estimate.memory import activation_bytes, parameters_of, state_bytes
from causalfusion.factorization import even_split
from causalfusion.machine.runtime import compute_dtype, measure_gemm_rate
from causalfusion.model.split_facts import split_facts

GROWTH_MODEL = replace(REFERENCE.model, depth=4, num_class_tokens=16)
QUICK_MODEL = replace(GROWTH_MODEL, hidden_size=128, num_heads=2, depth=2)
TOKENS, QUICK_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096), (64, 256)
STEPS, QUICK_STEPS = (1, 2, 4, 8, 16, 32, 64), (1, 8, 64)
BATCHES, QUICK_BATCHES = (1, 2, 4, 8, 16, 32), (1, 4)
SIZES, QUICK_SIZES = (("tiny", 8), ("S", 8), ("B", 4), ("L", 1)), (("tiny", 2),)
"""Names of presets, with the images at once."""
SPLIT = (53, 102, 3, 53, 31, 10, 4)
"""A split of the named sizes' 256 tokens, drawn with decay 0.9."""


@dataclass(frozen=True)
class Point:
    axis: Axis
    value: int | str
    model: ModelConfig
    split: tuple[int, ...]
    batch_size: int
    precision: Precision = "float32"
    sample: SampleConfig | None = None
    """Sample as well."""

    @property
    def reference(self) -> Reference:
        return Reference(self.model, (self.split,), self.batch_size, self.sample or REFERENCE.sample)


def points(quick: bool) -> Iterator[Point]:
    model = QUICK_MODEL if quick else GROWTH_MODEL
    for name, batch_size in QUICK_SIZES if quick else SIZES:
        named = replace(model, **{"num_class_tokens": 64, **load_layer(name)["model"]})
        for precision in ("float32", "bfloat16"):
            sample = SampleConfig(diffusion_steps=[2], guidance_scale=2.0)
            yield Point("size", name, named, SPLIT, batch_size, precision, sample)
    for tokens in QUICK_TOKENS if quick else TOKENS:
        height = 2 ** (tokens.bit_length() // 2)  # a square, or twice as high as wide
        grid = replace(model, grid_height=height, grid_width=tokens // height)
        images = min(16, max(1, 2048 // tokens))
        sample = SampleConfig(diffusion_steps=[2], num_ar_steps=4)
        yield Point("tokens", tokens, grid, tuple(even_split(tokens, 4)), images, sample=sample)
    for steps in QUICK_STEPS if quick else STEPS:
        sample = SampleConfig(diffusion_steps=[4], num_ar_steps=steps)
        yield Point("ar_steps", steps, model, tuple(even_split(256, steps)), 8, sample=sample)
    for images in QUICK_BATCHES if quick else BATCHES:
        sample = SampleConfig(diffusion_steps=[2], num_ar_steps=4)
        yield Point("batch", images, model, tuple(even_split(256, 4)), images, sample=sample)


def measure_point(point: Point, clock: Callable[[], float]) -> dict[str, Any]:
    """Seconds of a training step and of sampling, their arithmetic, and the peak of a step's memory."""
    reference, dtype = point.reference, compute_dtype(point.precision)
    rate = measure_gemm_rate(dtype, torch.device("cpu"), clock=clock)
    with Allocated() as allocated:
        step = TrainingStep(reference, dtype, naive=False)
        step(0)  # makes the optimizer's moments
        allocated.begin()
        step(0)
    seconds = _seconds(step, clock)
    record: dict[str, Any] = {
        "axis": point.axis, "value": point.value, "precision": point.precision,
        "tokens": point.model.num_tokens, "ar_steps": len(point.split), "batch_size": point.batch_size,
        "parameters": parameters_of(point.model)[0],
        "train": {"seconds": seconds, **asdict(reference.train_flops(0))},
        "peak_bytes": allocated.peak, "estimated_bytes": _estimated(point),
    }  # fmt: skip
    del step
    if point.sample is not None:
        sampling = Sampling(reference, dtype, naive=False)
        sampling(0)
        seconds = _seconds(sampling, clock)
        record["sample"] = {"seconds": seconds, **asdict(reference.sample_flops())}
    record["gemm_rate"] = max(rate, measure_gemm_rate(dtype, torch.device("cpu"), clock=clock))
    return record


def _seconds(run: Callable[[int], object], clock: Callable[[], float]) -> float:
    """The better of two runs; one, where it takes long."""
    best = float("inf")
    for _ in range(2):
        start = clock()
        run(0)
        best = min(best, clock() - start)
        if best > 4:
            break
    return best


def _estimated(point: Point) -> float:
    train = TrainConfig(batch_size=point.batch_size, precision=point.precision)
    config = RunConfig(model=point.model, train=train)
    split = split_facts(point.split)
    return state_bytes(config, 1) + activation_bytes(config, point.batch_size, on_gpu=False, split=split)


def measure_points(
    quick: bool,
    axes: Sequence[Axis],
    precisions: Sequence[Precision],
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Shares are of the best matrix rate that the whole run saw in that precision."""
    records, load = [], os.getloadavg()[0]
    for point in points(quick):
        if point.axis not in axes or point.precision not in precisions:
            continue
        records.append({"load": load, **measure_point(point, clock)})
        found = records[-1]
        print(
            f"{point.axis} {point.value} {point.precision}: {found['train']['seconds']:.3f} s a training "
            f"step, {found['peak_bytes'] / 1e9:.2f} GB",
            flush=True,
        )
    rates = {r["precision"]: max(o["gemm_rate"] for o in records if o["precision"] == r["precision"])
             for r in records}  # fmt: skip
    for record in records:
        for workload in ("train", "sample"):
            found = record.get(workload)
            if found:
                rate = rates[record["precision"]]
                found["share_dense"] = found["dense"] / found["seconds"] / rate
                found["share_needed"] = found["needed"] / found["seconds"] / rate
    return records
