"""`python -m benchmarks`: the reference workloads, ours and the naive path, as shares of the GEMM rate."""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.measure import CLOCKS, DTYPES, Comparison, compare
from benchmarks.reference import QUICK, REFERENCE, Reference
from causalfusion.config_json import to_dict
from causalfusion.runtime import measure_copy_rate

WORKLOADS = ("train", "sample")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model, a few seconds: does it all run?")
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="default: all")
    parser.add_argument("--precision", choices=tuple(DTYPES), action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: on a busy machine")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads: expected at least 1")
    if arguments.clock == "cpu" and arguments.threads > 1:
        parser.error("--clock cpu: expected --threads 1, as waiting threads count as busy")
    torch.set_num_threads(arguments.threads)
    reference = QUICK if arguments.quick else REFERENCE
    copy_rate = measure_copy_rate(torch.device("cpu"))
    comparisons = []
    for workload in arguments.workload or WORKLOADS:
        for precision in arguments.precision or DTYPES:
            result = compare(
                workload, precision, reference, arguments.rounds, arguments.threads, arguments.clock
            )
            comparisons.append(result)
            print("\n".join(_rows(result)), flush=True)
    facts = {
        "processor": _processor(), "threads": arguments.threads, "clock": arguments.clock,
        "torch": torch.__version__,
        "copy_rate": copy_rate,
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "MKL_", "GLIBC_"))},
    }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = "quick" if arguments.quick else "reference"
    report = {
        "machine": facts,
        "model": to_dict(reference.model),
        "results": [_record(c) for c in comparisons],
    }
    (arguments.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    table = _markdown(comparisons, facts, reference)
    (arguments.out / f"{name}.md").write_text(table)
    print(f"\n{table}\nwritten to {arguments.out}/{name}.json and {name}.md")


def _record(comparison: Comparison) -> dict[str, object]:
    record = asdict(comparison)
    for variant, timing in comparison.timings.items():
        for name, seconds in (("median", timing.median()), ("best", timing.best())):
            record["timings"][variant][name] = seconds
            record["timings"][variant][f"share_{name}"] = (
                comparison.flops.dense / seconds / comparison.gemm_rate
            )
    return record


def _rows(comparison: Comparison) -> list[str]:
    rows, naive = [], comparison.timings["naive"]
    for variant, timing in comparison.timings.items():
        median, best = timing.median(), timing.best()
        peak = comparison.flops.dense / comparison.gemm_rate
        cells = [
            comparison.workload, comparison.precision, variant,
            f"{median:.3f}", f"{best:.3f}",
            f"{peak / median:.2f}", f"**{peak / best:.2f}**",
            f"{comparison.flops.needed / comparison.gemm_rate / best:.2f}",
            f"{naive.median() / median:.2f}×",
            f"{timing.peak_memory / 2**30:.2f}",
            f"{max(abs(a - b) / abs(b) for a, b in zip(timing.values, naive.values, strict=True)):.0e}",
        ]  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _markdown(comparisons: list[Comparison], facts: dict[str, object], reference: Reference) -> str:
    model = reference.model
    lines = [
        f"{facts['processor']}, {facts['threads']} threads, {facts['clock']} clock, torch {facts['torch']}; "
        f"copying {float(str(facts['copy_rate'])) / 1e9:.1f} GB/s.",
        f"Model: width {model.hidden_size}, depth {model.depth}, {model.num_heads} heads, {model.num_tokens} "
        f"tokens of {model.token_dim}, {model.num_class_tokens} class tokens; batch {reference.batch_size}. "
        f"Training: mean over {len(reference.splits)} splits. Sampling: S = 1, "
        f"{reference.sample.diffusion_steps[0]} diffusion steps, guidance 2.",
    ]
    for c in comparisons:
        lines.append(
            f"- {c.workload} {c.precision}: {c.flops.dense / 1e9:.0f} GFLOP dense, "
            f"{c.flops.needed / 1e9:.0f} needed; GEMM rate {c.gemm_rate / 1e9:.0f} GFLOP/s."
        )
    header = [
        "workload", "precision", "variant", "s (median)", "s (best)", "share (median)", "share (best)",
        "needed share", "speed-up", "peak GiB", "differs by",
    ]  # fmt: skip
    lines += ["", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for comparison in comparisons:
        lines += _rows(comparison)
    lines.append(
        "\nShare: dense arithmetic over time, as a fraction of the GEMM rate measured in the same run. "
        "Needed share: the same with only the arithmetic that the result depends on. Differs by: largest "
        "relative difference from the naive path in a step's loss or in the images' mean square."
    )
    return "\n".join(lines) + "\n"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
