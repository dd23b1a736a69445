"""The parts of `python -m benchmarks`, measured and written down."""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.choices import AXES, PARTS, PRECISIONS, WORKLOADS, Precision
from benchmarks.input_path import measure_input
from benchmarks.measure import CLOCKS, DTYPES, Comparison, compare
from benchmarks.pictures import save_pictures
from benchmarks.points import measure_points
from benchmarks.reference import QUICK, REFERENCE, Reference
from benchmarks.tables import markdown
from causalfusion.config.serialize import to_dict
from causalfusion.machine.runtime import (
    computes_bfloat16,
    measure_copy_rate,
    measure_gemm_rate,
    tune_allocator,
)


def run(arguments: argparse.Namespace) -> None:
    """Measure what is asked for, and write the results, their tables and pictures."""
    arguments.threads = arguments.threads or torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    tune_allocator()
    name = "quick" if arguments.quick else "results"
    if not computes_bfloat16():
        print("bfloat16 is left out, as this CPU has no units for it; --precision bfloat16 measures it")
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"{name}.json"
    report: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    for part in arguments.part or PARTS:
        section: dict[str, Any] = {"machine": _machine(arguments)}
        if part == "reference":
            section |= _reference(arguments)
        elif part == "growth":
            axes = arguments.axis or AXES
            kept = [p for p in report.get(part, {}).get("points", []) if p["axis"] not in axes]
            measured = measure_points(arguments.quick, axes, _precisions(), CLOCKS[arguments.clock])
            section["points"] = kept + measured
        else:
            section |= measure_input(arguments.quick, CLOCKS[arguments.clock])
        report[part] = section
        file.write_text(json.dumps(report, indent=1) + "\n")
    (arguments.out / f"{name}.md").write_text(markdown(report))
    pictures = save_pictures(report, arguments.out, name)
    print(f"\n{markdown(report)}\nwritten: {file}, {name}.md, {', '.join(p.name for p in pictures)}")


def _reference(arguments: argparse.Namespace) -> dict[str, Any]:
    reference: Reference = QUICK if arguments.quick else REFERENCE
    records = []
    for workload in arguments.workload or WORKLOADS:
        for precision in arguments.precision or (["float32"] if arguments.quick else _precisions()):
            found = compare(
                workload, precision, reference, arguments.rounds, arguments.threads, arguments.clock
            )
            records.append(_record(found))
            timings = records[-1]["timings"]
            shown = ", ".join(f"{v} {t['median']:.3f} s" for v, t in timings.items())
            print(f"{workload} {precision}: {shown}", flush=True)
    return {
        "model": to_dict(reference.model), "batch_size": reference.batch_size,
        "splits": reference.splits, "sample": to_dict(reference.sample), "results": records,
    }  # fmt: skip


def _precisions() -> tuple[Precision, ...]:
    """Those that this CPU has units for."""
    return PRECISIONS if computes_bfloat16() else ("float32",)


def _record(comparison: Comparison) -> dict[str, Any]:
    record = asdict(comparison)
    naive = comparison.timings["naive"]
    for variant, timing in comparison.timings.items():
        found = record["timings"][variant]
        del found["values"]
        for name, seconds in (("median", timing.median()), ("best", timing.best())):
            found[name] = seconds
            found[f"share_{name}"] = comparison.flops.dense / seconds / comparison.gemm_rate
        found["needed_share_median"] = comparison.flops.needed / found["median"] / comparison.gemm_rate
        found["differs_by"] = max(
            float(np.abs(a - b).max() / np.abs(b).max())
            for a, b in zip(timing.values, naive.values, strict=True)
        )
    return record


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """The machine and its load at this moment."""
    device, clock = torch.device("cpu"), CLOCKS[arguments.clock]
    return {
        "processor": _processor(), "threads": arguments.threads, "clock": arguments.clock,
        "torch": torch.__version__, "load": os.getloadavg()[0],
        "copy_rate": measure_copy_rate(device),
        "gemm_rate": {p: measure_gemm_rate(DTYPES[p], device, clock=clock) for p in _precisions()},
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "MKL_", "GLIBC_"))},
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
