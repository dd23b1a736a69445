"""The training runs that a study needs. Runs with equal settings are one run, shared by all studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from causalfusion.config import RunConfig, SampleConfig
from causalfusion.config.earlier import rename_settings
from causalfusion.config.recipes import load_facts, load_layers, merge
from causalfusion.config.serialize import flat, from_dict, to_dict
from causalfusion.files import hash_of
from causalfusion.study.budget import require_images, shares_of, shortened
from causalfusion.study.recipe import Study, StudyData, Variant, fill_in


@dataclass(frozen=True)
class Job:
    """A training run, and the numbers of AR steps at which its model is evaluated."""

    variant: str
    seed: int
    config: RunConfig
    ar_steps: tuple[int, ...]
    sample: dict[str, Any] = field(default_factory=dict)
    """Sampling settings of the study and the variant, which override those of the data file."""
    budgets: tuple[float, ...] = ()
    """Shares of the training at which figures are measured too."""

    @property
    def folder(self) -> Path:
        return Path(self.config.out)

    def sampling(self, study_data: StudyData, num_ar_steps: int) -> SampleConfig:
        """Settings of generation with this number of AR steps, in the token order of the training."""
        trained = self.config.factorization
        sample = from_dict(SampleConfig, merge([to_dict(study_data.sample), self.sample]), "sample.")
        return sample.changed(
            num_ar_steps=num_ar_steps,
            order=trained.order,
            block_size=trained.block_size,
            given_order=list(trained.given_order),
        )


LONGEST_NAME = 100
"""Longest name of a run's folder made of its settings; instead of a longer one, the recipes and a hash."""


def jobs_of(study: Study, study_data: StudyData, seeds: Sequence[int], out: Path) -> list[Job]:
    """One job for every variant and seed; all variants with the first seed come first."""
    settings = {
        (v.name, seed): _settings(study, v, study_data, seed) for seed in seeds for v in study.variants
    }
    configs = {v.name: settings[v.name, seeds[0]][1] for v in study.variants}
    shares = shares_of(study, configs, load_facts(study_data.recipes))
    jobs = [
        Job(
            variant.name,
            seed,
            _run_config(study, variant, *settings[variant.name, seed], shares[variant.name], out),
            study.ar_steps_of(variant, study_data.num_tokens),
            _sampling(study, variant),
            tuple(study.budgets),
        )
        for seed in seeds
        for variant in study.variants
    ]
    return _apart(jobs)


def _apart(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, of which runs with different settings have different folders: two settings may have one name
    there, such as the depth of the model and that of its head."""
    runs: dict[Path, list[str]] = {}
    for job in jobs:
        runs.setdefault(job.folder, []).append(hash_of([to_dict(job.config)]))
    apart = []
    for job in jobs:
        if len(set(runs[job.folder])) > 1:
            run = hash_of([to_dict(replace(job.config, train=replace(job.config.train, seed=0), out=""))])
            place = job.folder.parent.with_name(f"{job.folder.parent.name}-{run[:8]}") / job.folder.name
            job = replace(job, config=replace(job.config, out=str(place)))
        apart.append(job)
    return apart


def _sampling(study: Study, variant: Variant) -> dict[str, Any]:
    """The sampling settings of a variant's recipes, of the study and of the variant, later over earlier."""
    of_recipes = load_layers(variant.recipes).get("sample", {}) if variant.recipes else {}
    return merge([of_recipes, study.sample, variant.sample])


def _settings(
    study: Study, variant: Variant, study_data: StudyData, seed: int
) -> tuple[RunConfig, RunConfig]:
    """The settings of the data file's own training, and those of a variant of the same length."""
    base = [
        load_layers(study_data.recipes),
        study_data.settings,
        {"sample": study.sample, "train": {"seed": seed}},
    ]
    layers = [load_layers(variant.recipes)] if variant.recipes else []
    layers += [fill_in(layer, study_data.num_tokens) for layer in (study.settings, variant.settings)]
    plain, config = (
        from_dict(RunConfig, rename_settings(merge(tables), "study")) for tables in (base, [*base, *layers])
    )
    return plain, config


def _run_config(
    study: Study, variant: Variant, plain: RunConfig, config: RunConfig, share: float, out: Path
) -> RunConfig:
    """The settings of a variant's training, on this share of the images of `config`, in a folder named after
    what differs from the data file's own, `plain`."""
    config, seed = shortened(config, share), plain.train.seed
    if study.budgets:  # a checkpoint at each, and at the end
        require_images(config, "budgets")
        steps = -(-config.train.images // config.train.batch_size)
        every = max(round(steps * study.budgets[0]), 1)
        train = replace(
            config.train, checkpoint_every=every, checkpoint_minutes=0, keep_checkpoints=steps // every + 2
        )
        config = replace(config, train=train)
    return replace(config, out=str(out / "runs" / _name(plain, config, variant.recipes) / f"seed-{seed}"))


def _name(plain: RunConfig, config: RunConfig, recipes: Sequence[str]) -> str:
    """The settings that differ from the data file's own training, as a folder's name: "decay=0.8"."""
    before, now = flat(to_dict(plain)), flat(to_dict(config))
    changed = [f"{key.rpartition('.')[2]}={now[key]}" for key in sorted(now) if now[key] != before[key]]
    name = ",".join(changed).replace(" ", "").replace("/", "-") or "as-given"
    return name if len(name) <= LONGEST_NAME else f"{'-'.join(recipes) or 'settings'}-{hash_of(changed)[:8]}"
