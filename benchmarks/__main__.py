"""`python -m benchmarks`: what training and sampling cost on this machine, in one command.

Parts: `reference` (a training step and sampling, ours and the naive path, as shares of the machine's matrix
rate), `growth` (named sizes; tokens, AR steps, images at once) and `input` (latents a second, waiting for
data).
Each part replaces its own section of the results, and each axis of growth its own points, so that they can be
measured one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.input_path import measure_input
from benchmarks.measure import CLOCKS, DTYPES, Comparison, compare
from benchmarks.pictures import save_pictures
from benchmarks.points import AXES, measure_points
from benchmarks.reference import QUICK, REFERENCE, Reference
from benchmarks.tables import markdown
from causalfusion.config.serialize import to_dict
from causalfusion.machine.runtime import measure_copy_rate, measure_gemm_rate, tune_allocator

WORKLOADS = ("train", "sample")
PARTS = ("reference", "growth", "input")


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    tune_allocator()
    name = "quick" if arguments.quick else "results"
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
            measured = measure_points(arguments.quick, axes, CLOCKS[arguments.clock])
            section["points"] = kept + measured
        else:
            section |= measure_input(arguments.quick, CLOCKS[arguments.clock])
        report[part] = section
        file.write_text(json.dumps(report, indent=1) + "\n")
    (arguments.out / f"{name}.md").write_text(markdown(report))
    pictures = save_pictures(report, arguments.out, name)
    print(f"\n{markdown(report)}\nwritten: {file}, {name}.md, {', '.join(p.name for p in pictures)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small models, about a minute: does it all run?")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="of reference (default: both)")
    parser.add_argument(
        "--precision",
        choices=tuple(DTYPES),
        action="append",
        help="of reference (default: both; with --quick float32, as growth has both)",
    )
    parser.add_argument("--axis", choices=AXES, action="append", help="of growth (default: all)")
    parser.add_argument("--rounds", type=int, default=2, help="of reference (default: 2)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: on a busy machine")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads: expected at least 1")
    if arguments.clock == "cpu" and arguments.threads > 1:
        parser.error("--clock cpu: expected --threads 1, as waiting threads count as busy")
    return arguments


def _reference(arguments: argparse.Namespace) -> dict[str, Any]:
    reference: Reference = QUICK if arguments.quick else REFERENCE
    records = []
    for workload in arguments.workload or WORKLOADS:
        for precision in arguments.precision or (["float32"] if arguments.quick else DTYPES):
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


def _record(comparison: Comparison) -> dict[str, Any]:
    record = asdict(comparison)
    naive = comparison.timings["naive"]
    for variant, timing in comparison.timings.items():
        found = record["timings"][variant]
        for name, seconds in (("median", timing.median()), ("best", timing.best())):
            found[name] = seconds
            found[f"share_{name}"] = comparison.flops.dense / seconds / comparison.gemm_rate
        found["needed_share_median"] = comparison.flops.needed / found["median"] / comparison.gemm_rate
        found["differs_by"] = max(
            abs(a - b) / abs(b) for a, b in zip(timing.values, naive.values, strict=True)
        )
    return record


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """The machine and its load at this moment."""
    device, clock = torch.device("cpu"), CLOCKS[arguments.clock]
    return {
        "processor": _processor(), "threads": arguments.threads, "clock": arguments.clock,
        "torch": torch.__version__, "load": os.getloadavg()[0],
        "copy_rate": measure_copy_rate(device),
        "gemm_rate": {name: measure_gemm_rate(dtype, device, clock=clock) for name, dtype in DTYPES.items()},
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "MKL_", "GLIBC_"))},
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
