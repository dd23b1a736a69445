"""The costs of a study's variants, and their quality after parts of the training: a table of each, a
picture of quality against time, and a result card for each variant."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from causalfusion.config import RunConfig
from causalfusion.config.serialize import to_dict
from causalfusion.diffusion.process import make_process
from causalfusion.estimate.memory import activation_bytes, parameters_of, state_bytes
from causalfusion.estimate.planned import assumed_text_tokens
from causalfusion.evaluate.cards.card import Card
from causalfusion.evaluate.features.open import open_extractor
from causalfusion.evaluate.measures.figure import WITHOUT_REFERENCE, Figure
from causalfusion.evaluate.quality import judged_by
from causalfusion.files import hash_of, write_whole
from causalfusion.generate.guidance import guidance_of_steps
from causalfusion.generate.settings import diffusion_steps, step_sizes
from causalfusion.model.arithmetic import expected_train_flops
from causalfusion.model.generation_arithmetic import generation_flops
from causalfusion.pictures.charts import axes_of
from causalfusion.saved.folder import checkpoints_of, load_spec
from causalfusion.study.grid import Job
from causalfusion.study.measure import read_budgets, read_figures
from causalfusion.study.recipe import Study, StudyData
from causalfusion.study.tables import row, show_distance, show_share


@dataclass(frozen=True)
class Costs:
    """The costs of one variant; arithmetic in needed FLOPs per image."""

    parameters: int
    training: float
    """Forward and backward pass."""
    memory: float
    """Bytes of the training's state and activations."""
    generation: dict[int, float]
    """Arithmetic of generating an image at each S, guidance included."""


def costs_of(job: Job, study_data: StudyData) -> Costs:
    """From the completed settings of the job's model. Formulas: `estimate`."""
    spec = load_spec(checkpoints_of(job.folder)[-1])
    config = replace(job.config, model=spec.model, codec=spec.codec, diffusion=spec.diffusion)
    batch, text_tokens = config.train.batch_size, assumed_text_tokens(spec.model)
    return Costs(
        parameters=parameters_of(spec.model)[0],
        training=expected_train_flops(config, batch, text_tokens).needed,
        memory=state_bytes(config, 1)
        + activation_bytes(config, batch, on_gpu=False, text_tokens=text_tokens),
        generation={s: _generation(job, study_data, config, s) for s in job.ar_steps},
    )


def _generation(job: Job, study_data: StudyData, config: RunConfig, num_ar_steps: int) -> float:
    settings = job.sampling(study_data, num_ar_steps)
    process, sizes = make_process(config.diffusion), step_sizes(settings, config.model.num_tokens, 0)
    steps, guided = diffusion_steps(settings, len(sizes), process), settings.guidance_scale != 1
    calls = [process.sampler(settings, count).shares for count in steps]  # of some samplers, two a step
    numbers = None
    if process.numbers_per_prediction == 2:
        numbers = torch.ones(config.model.token_dim, dtype=torch.bool)
    guided_steps = [
        sum(guidance.acts_at(share) for share in shares)
        for guidance, shares in zip(guidance_of_steps(settings, sizes, process, numbers), calls, strict=True)
    ]
    passes = [len(shares) for shares in calls]
    return generation_flops(config.model, sizes, passes, guided, guided_steps=guided_steps).needed


def write_systems(folder: Path, study: Study, study_data: StudyData, jobs: Sequence[Job]) -> None:
    """Add to `results.md`, and write `systems.png` and a card for each variant and seed."""
    by_variant: dict[str, list[Job]] = {}
    for job in jobs:
        by_variant.setdefault(job.variant, []).append(job)
    costs = {name: costs_of(of[0], study_data) for name, of in by_variant.items()}
    parts = [_budget_table(study, study_data, by_variant), _cost_table(study_data, by_variant, costs)]
    path = folder / "results.md"
    write_whole(path, "\n".join([path.read_text(encoding="utf-8"), *parts]))
    _save_picture(folder / "systems.png", study_data, by_variant)
    fingerprint = open_extractor(study_data.features, "cpu").fingerprint
    slugs = slugs_of(list(by_variant))
    for job in jobs:
        save_cards(job, study_data, fingerprint, folder / "cards", slugs[job.variant])


def _budget_table(study: Study, study_data: StudyData, by_variant: Mapping[str, Sequence[Job]]) -> str:
    """Quality after each share of the training, at each variant's own S."""
    budgets = study.budgets
    lines = [
        "After parts of the training, at each one's first S: Fréchet distance, and accuracy where known.\n\n"
    ]
    lines += [row(["", "S", *(f"{b:.0%} of the images" for b in budgets)]), row(["---"] * (2 + len(budgets)))]
    for name, jobs in by_variant.items():
        found = [read_budgets(job, study_data) for job in jobs]
        cells = []
        for budget in budgets:
            text = show_distance([f[budget]["frechet"] for f in found])
            right = [f[budget]["accuracy"] for f in found if "accuracy" in f[budget]]
            cells.append(f"{text}; {show_share(right)}" if right else text)
        lines.append(row([name, str(jobs[0].ar_steps[0]), *cells]))
    return "".join(lines)


def _cost_table(
    study_data: StudyData, by_variant: Mapping[str, Sequence[Job]], costs: Mapping[str, Costs]
) -> str:
    """The cost of each beside its quality; seconds as measured together with the figures."""
    head = [
        "",
        "S",
        "parameters",
        "training, GFLOP an image",
        "memory, MB",
        "an image, GFLOP",
        "an image, ms",
    ]
    lines = [
        "Costs: arithmetic that is needed; memory of a train step on a CPU; time of generation in batches, "
        "as measured on this machine.\n\n",
        row([*head, "Fréchet"]),
        row(["---"] * (len(head) + 1)),
    ]
    for name, jobs in by_variant.items():
        cost, found = costs[name], [read_figures(job, study_data) for job in jobs]
        for s in jobs[0].ar_steps:
            seconds = [f[s]["seconds"] for f in found if "seconds" in f[s]]
            lines.append(
                row(
                    [
                        name,
                        str(s),
                        f"{cost.parameters:,}",
                        f"{cost.training / 1e9:.3g}",
                        f"{cost.memory / 1e6:.0f}",
                        f"{cost.generation[s] / 1e9:.3g}",
                        f"{1e3 * statistics.median(seconds):.3g}" if seconds else "",
                        show_distance([f[s]["frechet"] for f in found]),
                    ]
                )
            )
    return "".join(lines)


def _save_picture(out: Path, study_data: StudyData, by_variant: Mapping[str, Sequence[Job]]) -> None:
    """Quality against the time of an image, a point for each variant and S; those of a variant joined."""
    all_times: list[float] = []
    all_distances: list[float] = []
    with axes_of(out, 1, (7.0, 4.8)) as (axes,):
        for place, (name, jobs) in enumerate(by_variant.items()):
            found = [read_figures(job, study_data) for job in jobs]
            steps = sorted(s for s in jobs[0].ar_steps if all("seconds" in f[s] for f in found))
            times = [1e3 * statistics.median(f[s]["seconds"] for f in found) for s in steps]
            distances = [statistics.fmean(f[s]["frechet"] for f in found) for s in steps]
            all_times += times
            all_distances += distances
            style = "o-" if place < 10 else "s--"  # ten colours, then again with other marks
            axes.plot(times, distances, style, color=f"C{place % 10}", label=name, markersize=5)
            for s, x, y in zip(steps, times, distances, strict=True):
                axes.annotate(f"S={s}", (x, y), fontsize=7, xytext=(4, 3), textcoords="offset points")
        for axis, values in ((axes.xaxis, all_times), (axes.yaxis, all_distances)):
            # Figures of earlier versions have no times.
            ratio = max(values) / min(values) if values and min(values) > 0 else 1.0
            if ratio > 3:
                (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}" if 3 < ratio < 10 else "")
        axes.set_xlabel("milliseconds an image")
        axes.set_ylabel("Fréchet distance")
        axes.set_title("Quality against time", fontsize=10)
        axes.legend(frameon=False, fontsize=8)


def slugs_of(variants: Sequence[str]) -> dict[str, str]:
    """The letters and digits of each variant's name, for names of files; with a hash where others have the
    same, such as "lr +" and "lr -", or there are none."""
    plain = {name: re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() for name in variants}
    shared = {slug for slug, count in Counter(plain.values()).items() if count > 1 or not slug}
    return {
        name: f"{slug}-{hash_of([name])[:8]}".lstrip("-") if slug in shared else slug
        for name, slug in plain.items()
    }


def save_cards(job: Job, study_data: StudyData, fingerprint: str, folder: Path, slug: str) -> None:
    """A result card of each of the job's figures, for `causalfusion compare`, in files whose names begin with
    `slug`; `fingerprint`: of the features."""
    folder.mkdir(parents=True, exist_ok=True)
    quantities = {"frechet": "frechet", "accuracy": "class_accuracy"}
    checkpoint = checkpoints_of(job.folder)[-1]
    codec = load_spec(checkpoint).codec
    images = judged_by(job.config.data, (codec.image_height, codec.image_width))
    reference = {"name": images.name, "features": study_data.features, "fingerprint": images.fingerprint()}
    for s, found in read_figures(job, study_data).items():
        figures = [
            Figure(
                quantity=quantities[name],
                value=value,
                count=study_data.count,
                features=study_data.features,
                features_fingerprint=fingerprint,
                reference=reference["fingerprint"] if quantities[name] not in WITHOUT_REFERENCE else "",
            )
            for name, value in found.items()
            if name in quantities
        ]
        samples = {
            "name": f"{job.variant} @ {s}, seed {job.seed}",
            "count": study_data.count,
            "seed": job.seed,
            "checkpoint": str(checkpoint),
            "settings": to_dict(job.sampling(study_data, s)),
        }
        card = Card(
            figures={figure.name: figure for figure in figures},
            samples=samples,
            references=[reference],
            features=[{"name": study_data.features, "fingerprint": fingerprint}],
            run={"seconds_per_image": found.get("seconds")},
        )
        card.save(folder / f"{slug}-s{s}-seed{job.seed}.json")
