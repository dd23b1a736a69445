"""A cost as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from causalfusion.config import RunConfig
from causalfusion.config.recipes import paper_size
from causalfusion.estimate.cost import Cost, estimate
from causalfusion.estimate.devices import USABLE, unmeasured_device
from causalfusion.estimate.optimizer import snapshots_of
from causalfusion.machine.progress import duration, in_digits
from causalfusion.model.arithmetic import Flops


def describe(cost: Cost, config: RunConfig, assumptions: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(quantity, value) of a cost, in the order of the output."""
    model, train, memory, flops = config.model, config.train, cost.memory, cost.of_image
    per_second = in_digits(train.batch_size / cost.step_seconds)
    conditions = f"{model.num_condition_tokens} class"
    if cost.text_tokens:
        conditions += f", {cost.text_tokens:g} text"
    of = "document" if config.data.has_documents else "image"
    again = f"; checkpointing adds {cost.recomputed:.0%} arithmetic" if cost.recomputed else ""
    shared = f" (shared by {cost.sharded_over})" if cost.sharded_over > 1 else ""
    rows = [
        ("model", f"{cost.parameters:,} parameters{paper_size(model)}"),
        (
            "sequence",
            f"{model.num_tokens:,} image tokens of {model.token_dim}, {conditions}; "
            f"{cost.sequence:,.0f} rows on average, {cost.longest:,} at most",
        ),
        ("arithmetic", f"{_two(flops)} {_a(of)}; {_two(cost.in_all)} for all {cost.images:,}"),
        ("device", f"{cost.count} x {_device(cost)}"),
        (
            "time",
            f"{_in_time(cost.step_seconds)} a step of {train.batch_size:,} {of}s, {per_second} "
            f"{of}s/s; {_long(cost.seconds)} in all{again}",
        ),
        (
            "memory",
            f"{_gb(memory.total)} of {_gb(cost.device.memory)} on each: {_gb(memory.state)} state{shared}, "
            f"{_gb(memory.activations)} activations of {cost.micro_batch} {of}s at once",
        ),
    ]
    if train.ema_widths:
        rows.append(("disk", _snapshots(config)))
    if not cost.fits:
        rows.append(("does not fit", remedy(cost)))
    return rows + [("assumed", note) for note in assumptions]


def announce(config: RunConfig, world_size: int, device: torch.device) -> list[str]:
    """Lines on the arithmetic and memory of a training that is about to begin; its time is measured later.
    The settings that follow from the data must be filled in; half of the text tokens that a sequence can hold
    are assumed."""
    text_tokens = config.model.max_text_tokens // 2 if config.model.vocab_size else 0
    this = unmeasured_device(device)
    cost = estimate(config, this, world_size, text_tokens=text_tokens)
    of = "document" if config.data.has_documents else "image"
    memory = f"about {_gb(cost.memory.total)} of {_gb(this.memory)} of memory for each process"
    if cost.micro_batch < config.train.batch_size // world_size:
        memory += f", {cost.micro_batch} {of}s at once"
    lines = [f"{_two(cost.of_image)} {_a(of)}; {memory}"]
    return lines + [f"on disk: {_snapshots(config)}"] * bool(config.train.ema_widths)


def _snapshots(config: RunConfig) -> str:
    """The disk space of EMA snapshots, in words."""
    (number, size), train = snapshots_of(config), config.train
    widths = " ".join(f"{width:g}" for width in train.ema_widths)
    every = f"every {train.ema_snapshot_images:,} images"
    in_all = f"{_si(number * size)}B for {number:,}"
    if train.minutes:  # which ends the run before its images are reached
        in_all = "as many as the time allows"
    return f"EMA snapshots of widths {widths}, {_si(size)}B {every}; {in_all}"


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def to_json(cost: Cost) -> dict[str, Any]:
    record = asdict(cost)
    record["in_all"] = asdict(cost.in_all)
    record["memory"]["total"] = cost.memory.total
    return record | {"fits": cost.fits}


def _device(cost: Cost) -> str:
    device = cost.device
    source = "measured" if device.measured else "data sheet"
    return (
        f"{device.name}: {_si(device.rate)}FLOP/s ({source}), of which training is assumed to reach "
        f"{device.share:.0%}; {_gb(device.memory)}, {_gb(device.bandwidth)}/s"
    )


def remedy(cost: Cost) -> str:
    """Advice to make a run fit, as the end of a sentence."""
    if cost.changes:
        return "give " + " ".join(cost.changes)
    if cost.memory.state > USABLE * cost.device.memory and cost.sharded_over == 1:
        return "the state alone is too large: several devices with --train.parallel fsdp"
    return "no smaller micro-batch or checkpointing makes it fit: more devices, or a smaller model or batch"


def _two(flops: Flops) -> str:
    return f"{_si(flops.needed)}FLOP ({_si(flops.dense)}FLOP dense)"


def _si(value: float) -> str:
    for prefix, unit in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= unit:
            return f"{value / unit:.3g} {prefix}" if value < 1000 * unit else f"{value / unit:,.0f} {prefix}"
    return f"{value:.3g} "


def _gb(number: float) -> str:
    return f"{number / 1e9:,.3g} GB" if number < 1e12 else f"{number / 1e9:,.0f} GB"


def _long(seconds: float) -> str:
    days, rest = divmod(seconds, 86400)
    return f"{days:,.0f} days {rest / 3600:.0f} h" if days >= 2 else duration(seconds)


def _in_time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{in_digits(seconds)} s"
