"""Writing the results of a study as Markdown, CSV and a picture, with the paper's figures for comparison."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from causalfusion.files import write_whole
from causalfusion.study.picture import save_picture
from causalfusion.study.recipe import Study, StudyData, entry
from causalfusion.study.verdict import CONFIDENCE, Verdict, judge

Figures = Mapping[int, Mapping[str, float]]
"""Figures by S, then by name."""
Show = Callable[[Any], str]


def write_results(
    folder: Path,
    study: Study,
    study_data: StudyData,
    data_name: str,
    seeds: Sequence[int],
    figures: Mapping[tuple[str, int], Figures],
    images: Mapping[str, int],
) -> None:
    """Write `results.md`, `results.csv` and `results.png`; `figures` are by (variant, seed), `images` of
    the training by variant."""
    here = by_entry(figures, "frechet")
    paper = {
        entry(v.name, s): f for v in study.variants for s, f in zip(study.ar_steps, v.paper, strict=False)
    }
    verdicts = [v for claim in study.claims if (v := judge(claim, here, paper)) is not None]
    parts = [
        f"# {study.title}\n\n{study.question}\n",
        _setting(study, study_data, data_name, seeds) + _lengths(study, images),
        _table(study, study_data.num_tokens, here, paper, show_distance),
    ]
    accuracy = by_entry(figures, "accuracy")
    if accuracy:
        parts += ["Share of the images that the judge reads as their class:\n"]
        parts += [_table(study, study_data.num_tokens, accuracy, {}, show_share)]
    if verdicts:
        parts += [_verdicts(verdicts)]
    write_whole(folder / "results.md", "\n".join(parts))
    _write_csv(folder / "results.csv", study, data_name, figures)
    save_picture(folder / "results.png", study, here, paper, study_data.num_tokens)


def _setting(study: Study, study_data: StudyData, data_name: str, seeds: Sequence[int]) -> str:
    sample, count = study.sampling(study_data.sample), study_data.count
    return (
        f"Data: {data_name}. Fréchet distance in the features `{study_data.features}` of {count:,} "
        f"generated images ({sample.sampler}, {sample.diffusion_steps[0]} diffusion steps in each AR step, "
        f"guidance {sample.guidance_scale:g}); mean ± standard deviation over the seeds "
        f"{', '.join(map(str, seeds))}. Lower is better."
        + (f" Paper: {study.paper_figure}.\n" if any(v.paper for v in study.variants) else "\n")
        + _beyond(study, study_data)
    )


def _beyond(study: Study, study_data: StudyData) -> str:
    """A sentence on the values of S that are larger than the number of tokens; empty if there are none."""
    tokens = study_data.num_tokens
    left_out = [str(s) for s in study.ar_steps if s > tokens]
    return f"Left out, as there are {tokens} tokens: S = {', '.join(left_out)}.\n" if left_out else ""


def _lengths(study: Study, images: Mapping[str, int]) -> str:
    """A sentence on how long each variant was trained; empty if all saw the same number of images."""
    if len(set(images.values())) == 1:
        return ""
    shares = {variant.name: variant.share for variant in study.variants}
    each = [f"{name}: {n:,}" + _of(shares[name]) for name, n in images.items()]
    equal = "the same arithmetic" if study.equal == "arithmetic" else "the same images"
    return f"Training: {equal} for all, but for the shares named; images: {'; '.join(each)}.\n"


def _of(share: float) -> str:
    return "" if share == 1 else f" (a share of {share:g})"


def by_entry(figures: Mapping[tuple[str, int], Figures], name: str) -> dict[str, list[float]]:
    """The values of a figure, one per seed, by "variant @ S"."""
    found: dict[str, list[float]] = {}
    for (variant, _), of_ar_steps in figures.items():
        for num_ar_steps, values in of_ar_steps.items():
            if name in values:
                found.setdefault(entry(variant, num_ar_steps), []).append(values[name])
    return found


def _table(
    study: Study,
    num_tokens: int,
    here: Mapping[str, Sequence[float]],
    paper: Mapping[str, float],
    show: Show,
) -> str:
    all_steps = study.all_ar_steps(num_tokens)
    steps = [s for s in all_steps if any(entry(v.name, s) in here for v in study.variants)]
    of_paper = [
        s for s in dict.fromkeys(study.ar_steps) if any(entry(v.name, s) in paper for v in study.variants)
    ]
    header = ["", *(f"S = {s}" for s in steps), *(f"paper, S = {s}" for s in of_paper)]
    lines = [row(header), row(["---"] * len(header))]
    for variant in study.variants:
        cells = [show(here.get(entry(variant.name, s), ())) for s in steps]
        cells += [f"{paper[e]:g}" if (e := entry(variant.name, s)) in paper else "" for s in of_paper]
        lines.append(row([variant.name, *cells]))
    return "".join(lines)


def show_distance(values: Sequence[float]) -> str:
    return _with_spread(values, lambda value: f"{value:.3g}")


def show_share(values: Sequence[float]) -> str:
    return _with_spread(values, lambda value: f"{value:.1%}")


def _with_spread(values: Sequence[float], show: Show) -> str:
    if not values:
        return ""
    spread = f" ± {show(statistics.stdev(values))}" if len(values) > 1 else ""
    return show(statistics.fmean(values)) + spread


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    of_paper = any(compared.paper for verdict in verdicts for compared in verdict.comparisons)
    title = "What the paper found" if of_paper else "What was expected"
    lines = [
        f"{title}, and whether it holds here (ratios paired over the seeds, one-sided {CONFIDENCE:.0%}):\n\n",
        row(["finding", "comparison", "paper", "here", "verdict"]),
        row(["---"] * 5),
    ]
    for verdict in verdicts:
        for place, compared in enumerate(verdict.comparisons):
            first = place == 0
            paper = "" if compared.paper is None else "{:g} / {:g}".format(*compared.paper)
            lines.append(
                row(
                    [
                        verdict.claim.text if first else "",
                        f"{compared.better} / {compared.worse}",
                        paper,
                        "{:.3g} / {:.3g}".format(*compared.here) + f" {_SIGNS[compared.outcome]}",
                        f"**{verdict.in_words()}**" if first else "",
                    ]
                )
            )
    return "".join(lines)


_SIGNS = {"holds": "✓", "reversed": "✗", "unclear": "~"}


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


def _write_csv(path: Path, study: Study, data_name: str, figures: Mapping[tuple[str, int], Figures]) -> None:
    """Write one line for each figure."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["data", "variant", "seed", "ar_steps", "figure", "value", "paper"])
    for (variant, seed), of_ar_steps in figures.items():
        known = next(v.paper for v in study.variants if v.name == variant)
        for num_ar_steps, values in of_ar_steps.items():
            place = study.ar_steps.index(num_ar_steps) if num_ar_steps in study.ar_steps else len(known)
            for name, value in values.items():
                paper = known[place] if name == "frechet" and place < len(known) else ""
                writer.writerow([data_name, variant, seed, num_ar_steps, name, value, paper])
    write_whole(path, file.getvalue())
