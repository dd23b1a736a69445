"""A model that the planner measures, with its settings and its prompts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from causalfusion.config import DataConfig, SampleConfig
from causalfusion.config.serialize import to_dict
from causalfusion.config.sizes import parse_size
from causalfusion.data import open_source
from causalfusion.data.source import spread
from causalfusion.errors import UserError
from causalfusion.files import hash_of, sha256_of
from causalfusion.generate.output import check_prompts, uses_classes
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.prompts import prompt_ids
from causalfusion.generate.settings import check_settings
from causalfusion.planner.request import PlanRequest
from causalfusion.train.from_data import readable_captions

PROMPTS = 1000
"""Largest number of captions of the reference that serve as prompts."""


@dataclass(frozen=True)
class Candidate:
    """A model with the settings to try with it."""

    pipeline: Pipeline
    folder: Path
    settings: list[SampleConfig]
    name: str = ""
    """A further model, as it was given; empty: the one that is planned for."""
    prompts: list[str] | None = None
    """What its images are made of; None for a model without text."""

    @cached_property
    def _weights(self) -> list[str]:
        """The hash of a further model's weights."""
        return [sha256_of(self.folder / "model.safetensors")] if self.name else []

    def can(self, settings: SampleConfig) -> bool:
        """True for settings that the model has."""
        try:
            self.check(settings)
        except UserError:
            return False
        return True

    def check(self, settings: SampleConfig) -> None:
        """Raises UserError for settings that the model does not have."""
        pipeline = self.pipeline
        check_settings(settings, pipeline.model.config, pipeline.spec.diffusion, pipeline.grid)

    def key(self, settings: SampleConfig) -> str:
        """The name of one of its settings in `plan.json`; that of a further model has its weights in it."""
        return hash_of([to_dict(settings), *self._weights])


def open_candidate(request: PlanRequest, pipeline: Pipeline, folder: Path, name: str = "") -> Candidate:
    """Raises UserError for settings that the model does not have."""
    if request.size:
        pipeline = pipeline.at(*parse_size(request.size, "--size"))
    model, num_tokens = pipeline.model.config, pipeline.codec.num_tokens
    if name:
        settings = request.sweep.settings_of_other(pipeline.default_sampling, model, num_tokens)
    else:
        settings = request.sweep.settings(request.sample, model, num_tokens, pipeline.spec.diffusion.path)
    if not settings:
        raise UserError("no setting is left to try; expected --diffusion-steps of at least --ar-steps")
    candidate = Candidate(pipeline, folder, settings, name)
    for setting in settings:
        candidate.check(setting)
    return candidate


def prompts_for(
    pipeline: Pipeline, data: DataConfig, count: int = PROMPTS, *, other: bool = False
) -> list[str] | None:
    """Captions of the reference as prompts for `count` images of a model that generates from text; None for
    other models. They are spread over the reference, which may be sorted. `other`: of other images, where
    there are enough of them."""
    if pipeline.tokenizer is None or uses_classes(pipeline):
        return None
    source = open_source(data)
    if not source.has_captions:
        raise UserError(
            f"the model makes images of texts, and {source.name} has no captions; expected a --reference "
            "with captions, such as shapes:test"
        )
    every, most = np.arange(len(source)), min(count, PROMPTS)
    some = spread(every, most)
    others = np.setdiff1d(every, some)
    if other and len(others):
        some = spread(others, most)
    captions = [readable_captions(source, index) for index in some.tolist()]
    prompts = [texts[0] for texts in captions if texts and _is_prompt(pipeline, texts[0])]
    left_out = f"{len(captions) - len(prompts)} of {len(captions)} captions of {source.name}"
    why = "they are empty, of unreadable images, or longer than the model has room for"
    if not prompts:
        raise UserError(f"{left_out} can be no prompts: {why}; give another --reference")
    if len(prompts) < len(captions):
        warnings.warn(f"{left_out} are left out as prompts: {why}", stacklevel=2)
    check_prompts(pipeline, prompts)
    return prompts


def _is_prompt(pipeline: Pipeline, text: str) -> bool:
    try:
        prompt_ids(text, pipeline.with_text(), pipeline.model.config)
    except UserError:
        return False
    return True
