"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

AXES = {
    "size": "Named sizes, 256 tokens in 7 AR steps",
    "tokens": "Growth with the number of tokens, 4 AR steps",
    "ar_steps": "Growth with the number of AR steps, 256 tokens, even steps",
    "batch": "Growth with the images at once, 256 tokens, 4 AR steps",
}


def markdown(report: dict[str, Any]) -> str:
    parts = {"reference": _reference, "growth": _growth, "input": _input}
    lines = ["# What it costs", ""]
    for name, write in parts.items():
        if name in report:
            lines += [*write(report[name]), ""]
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [[_cell(value) for value in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (list(header), ["---"] * len(header), *cells)]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _machine(facts: dict[str, Any]) -> str:
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s {name}" for name, rate in facts["gemm_rate"].items())
    return (
        f"{facts['processor']}, {facts['threads']} threads, {facts['clock']} clock, torch {facts['torch']}, "
        f"load {facts['load']:.1f} at the beginning; matrix products {rates}; copying "
        f"{facts['copy_rate'] / 1e9:.1f} GB/s."
    )


def _reference(section: dict[str, Any]) -> list[str]:
    model, rows = section["model"], []
    for found in section["results"]:
        for variant, timing in found["timings"].items():
            naive = found["timings"]["naive"]["median"]
            rows.append(
                [
                    found["workload"],
                    found["precision"],
                    variant,
                    timing["median"],
                    timing["best"],
                    timing["needed_share_median"],
                    timing["share_median"],
                    f"{naive / timing['median']:.2f}x",
                    timing["peak_memory"] / 1e9,
                    f"{timing['differs_by']:.0e}",
                ]
            )
    header = [
        "workload", "precision", "path", "s (median)", "s (best)", "share", "dense share", "speed-up",
        "peak GB", "differs by",
    ]  # fmt: skip
    counted = [
        f"- {f['workload']} {f['precision']}: {f['flops']['dense'] / 1e9:.0f} GFLOP dense, "
        f"{f['flops']['needed'] / 1e9:.0f} needed; matrix rate of the run {f['gemm_rate'] / 1e9:.0f} GFLOP/s."
        for f in section["results"]
    ]
    return [
        "## Against the naive path",
        "",
        _machine(section["machine"]),
        f"Width {model['hidden_size']}, depth {model['depth']}, {model['num_heads']} heads, "
        f"{model['grid_height'] * model['grid_width']} tokens, {model['num_class_tokens']} class tokens, "
        f"batch {section['batch_size']}; mean over {len(section['splits'])} splits; sampling with S = "
        f"{section['sample']['num_ar_steps']}, {section['sample']['diffusion_steps'][0]} diffusion steps, "
        "guidance 2.",
        *counted,
        "",
        *table(header, rows),
        "",
        "Share: the arithmetic that the result depends on over time, of the best matrix product measured "
        "between the turns. Dense share: the same of all pairs and rows, part of which is never computed. "
        "Differs by: largest difference from the naive path in a step's loss, or in any number of the "
        "images, relative to the largest. Peak: resident memory of the process.",
    ]


def _growth(section: dict[str, Any]) -> list[str]:
    lines = ["## Sizes and growth"]
    for axis, title in AXES.items():
        points = [p for p in section["points"] if p["axis"] == axis]
        if not points:
            continue
        header = [
            axis.replace("_", " "), "precision", "images at once", "s a step", "images/s", "GFLOP dense",
            "GFLOP needed", "share", "dense share", "peak GB", "estimated GB", "sampling, images/s",
            "sampling, share",
        ]  # fmt: skip
        found = {p["precision"]: max(q["gemm_rate"] for q in points if q["precision"] == p["precision"])
                 for p in points}  # fmt: skip
        rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s {name}" for name, rate in found.items())
        machine = f"Matrix products {rates}; load {points[0]['load']:.1f} at the beginning."
        lines += ["", f"### {title}", "", machine, "", *table(header, [_row(p) for p in points])]
    return [
        *lines,
        "",
        "Training in these columns unless they say sampling. Peak: of the tensors alive in a train step, "
        "weights and optimizer included, counted exactly; estimated: what `causalfusion estimate` says.",
    ]


def _row(point: dict[str, Any]) -> list[object]:
    train, sample, images = point["train"], point.get("sample"), point["batch_size"]
    sampling = [images / sample["seconds"], sample["share_needed"]] if sample else ["", ""]
    return [
        str(point["value"]), point["precision"], images, train["seconds"], images / train["seconds"],
        train["dense"] / 1e9, train["needed"] / 1e9, train["share_needed"], train["share_dense"],
        point["peak_bytes"] / 1e9, point["estimated_bytes"] / 1e9, *sampling,
    ]  # fmt: skip


def _input(section: dict[str, Any]) -> list[str]:
    rows = [[w["data"], w["images_per_second"], f"{w['waiting_share']:.1%}"] for w in section["waiting"]]
    return [
        "## The input path",
        "",
        _machine(section["machine"]),
        "",
        *table(
            ["one process", "latents/s"],
            [
                [
                    f"reading {section['latents']:,} cached latents of {section['bytes_each']:,} bytes",
                    section["read_per_second"],
                ],
                ["the same as normalised tokens with labels", section["latents_per_second"]],
                ["writing the cache (`causalfusion encode`, pixels)", section["written_per_second"]],
            ],
        ),
        "",
        *table(["training on", "images/s", "of the time spent waiting for data"], rows),
    ]
