"""The page's model: what it can do, its recommended settings, and what an `Asked` means for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from causalfusion.app.asked import MOST_AR_STEPS, MOST_DIFFUSION_STEPS, MOST_GUIDANCE, MOST_PASSES, Asked
from causalfusion.app.request import AppRequest
from causalfusion.config import DataConfig, SampleConfig
from causalfusion.config.options import DEFAULT_MODEL
from causalfusion.config.serialize import from_dict
from causalfusion.data import open_source
from causalfusion.errors import UserError, printable
from causalfusion.evaluate.samples.open_images import data_config
from causalfusion.generate.output import check_prompts, read_labels, uses_classes
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.settings import check_settings
from causalfusion.machine.runtime import compute_dtype, select_device
from causalfusion.saved.folder import read_latest
from causalfusion.saved.sampling import read_sampling
from causalfusion.train.data_of_run import data_of_training
from causalfusion.train.from_data import readable_captions

_SCENES = "shapes:test"
"""Real images beside the packaged model's, none of its training."""
_EXAMPLES = (
    "a large red star",
    "a small green circle in the top left",
    "a small blue triangle to the left of a large orange square",
    "two shapes: a big cyan diamond and a tiny black star",
)
"""Prompts for models of captioned scenes."""
_NUM_EXAMPLES, _LONGEST_EXAMPLE = 4, 80


@dataclass(frozen=True)
class Opened:
    """A model as the page uses it."""

    pipeline: Pipeline
    name: str
    sampling: SampleConfig
    """As the model recommends."""
    reference: DataConfig | None = None
    """Real images to compare with; None: none are known."""
    device: str = "cpu"
    examples: tuple[str, ...] = ()
    """Prompts to begin with."""
    seed: int = 0
    """To begin with."""

    @property
    def adapters(self) -> list[str]:
        """The adapters in the model, with hashes and weights; a path that is not UTF-8 is written out."""
        return [printable(told) for told in self.pipeline.adapters]

    @property
    def reads_text(self) -> bool:
        return self.pipeline.tokenizer is not None

    @property
    def describes(self) -> bool:
        """True if it learned to write about images."""
        return self.pipeline.describes

    @property
    def class_names(self) -> list[str]:
        """The names of its classes, or their numbers; [] for a model that draws without them."""
        if not uses_classes(self.pipeline):
            return []
        numbers = [str(k) for k in range(self.pipeline.model.config.num_classes)]
        return list(self.pipeline.spec.class_names) or numbers

    @property
    def edits(self) -> bool:
        return self.pipeline.model.config.head.ask != "previous"

    @property
    def chooses_parts(self) -> bool:
        """True if the number of AR steps and the order are free."""
        return self.pipeline.model.config.head.ask != "previous"

    @property
    def can_be_guided(self) -> bool:
        """False if training never left the condition out, which guidance leads away from."""
        spec = self.pipeline.spec
        without_class = bool(self.class_names) and spec.class_dropout == 0
        without_text = self.reads_text and spec.text.caption_dropout == 0
        return bool(self.class_names or self.reads_text) and not (without_class or without_text)

    @property
    def most_ar_steps(self) -> int:
        return min(self.pipeline.codec.num_tokens, MOST_AR_STEPS)

    def defaults(self) -> Asked:
        """What the page begins with: the recommended settings, within its bounds."""
        own, tokens = self.sampling, self.pipeline.codec.num_tokens
        ar_steps = min(len(own.sizes) or own.num_ar_steps or tokens, self.most_ar_steps)
        counts = self.pipeline.process.num_steps(own)
        steps = round(sum(counts) / len(counts))
        return Asked(
            ar_steps=ar_steps,
            order=own.order,
            diffusion_steps=max(1, min(steps, MOST_DIFFUSION_STEPS, MOST_PASSES // ar_steps)),
            guidance=min(own.guidance_scale, MOST_GUIDANCE) if self.can_be_guided else 1.0,
            seed=self.seed,
        )

    def settings(self, asked: Asked) -> SampleConfig:
        """The sampling of a request: the recommended one with what the page lets choose."""
        return replace(
            self.sampling,
            num_ar_steps=asked.ar_steps,
            sizes=[],
            order=asked.order,
            given_order=[],
            diffusion_steps=[asked.diffusion_steps],
            respacing="",
            guidance_scale=asked.guidance,
        )

    def settings_for(self, asked: Asked, changed: int) -> SampleConfig:
        """The sampling where only some tokens change: in at most as many AR steps."""
        settings = self.settings(asked)
        return replace(settings, num_ar_steps=min(settings.num_ar_steps, changed))

    def check(self, asked: Asked) -> None:
        """Raise UserError, before any work is done, for what this model refuses."""
        pipeline = self.pipeline
        if asked.ar_steps > self.most_ar_steps:
            raise UserError(
                f"the number of parts is {asked.ar_steps}; expected at most {self.most_ar_steps}, as many as "
                "this model's pictures have"
            )
        check_settings(self.settings(asked), pipeline.model.config, pipeline.spec.diffusion, pipeline.grid)
        if self.reads_text and not self.class_names and not asked.prompt.strip():
            raise UserError("the description is empty; expected some words: say what the picture is to show")
        if asked.prompt.strip():
            check_prompts(pipeline, [asked.prompt])
        self.labels(asked, 1)

    def labels(self, asked: Asked, count: int) -> list[int] | None:
        """The classes of so many images; None for a model that follows the prompt alone. Raises UserError."""
        if asked.class_name:
            return read_labels(self.pipeline, [asked.class_name]) * count
        if self.class_names:
            return [k % len(self.class_names) for k in range(count)]
        return None if self.reads_text else [self.pipeline.model.config.null_label] * count

    def prompts(self, asked: Asked, count: int) -> list[str] | None:
        """The prompts of so many images; None where there is none."""
        return [asked.prompt.strip()] * count if asked.prompt.strip() else None


def open_model(request: AppRequest) -> Opened:
    """Raises UserError."""
    device = select_device(request.device)

    def load(folder: Path) -> tuple[Pipeline, SampleConfig | None]:
        pipeline = Pipeline.load(
            folder,
            weights=request.weights,
            device=device,
            autocast_dtype=compute_dtype(request.precision),
            autoencoder=request.autoencoder,
            adapters=request.weighted_adapters(),
            quantize=request.quantize,
        )
        return pipeline, read_sampling(folder)

    (pipeline, sampling), folder = read_latest(request.model, load)
    reference = _reference(request, folder, pipeline)
    return Opened(
        pipeline,
        printable(request.model),  # a path that is not UTF-8 has no place on a page
        sampling or pipeline.default_sampling,
        reference,
        str(device),
        _examples(pipeline, reference),
        request.seed,
    )


def _reference(request: AppRequest, folder: Path, pipeline: Pipeline) -> DataConfig | None:
    """Real images: those that are named, those of the run's training, or the packaged model's scenes."""
    if request.reference:
        return data_config(request.reference, pipeline.image_size)
    found = data_of_training(str(request.model))
    if found:
        return from_dict(DataConfig, found)
    if request.model == DEFAULT_MODEL and folder != request.model:
        return data_config(_SCENES, pipeline.image_size)
    return None


def _examples(pipeline: Pipeline, reference: DataConfig | None) -> tuple[str, ...]:
    """Prompts to begin with: short captions of the real images, if they can be read."""
    if pipeline.tokenizer is None or reference is None:
        return ()
    if reference.source == "shapes":
        return _EXAMPLES
    try:
        source = open_source(reference)
        some = [readable_captions(source, index) for index in range(min(len(source), 8 * _NUM_EXAMPLES))]
    except (UserError, OSError):  # moved since the training; the page does without
        return ()
    captions = [texts[0] for texts in some if texts]
    short = dict.fromkeys(text for text in captions if 0 < len(text.strip()) <= _LONGEST_EXAMPLE)
    return tuple(short)[:_NUM_EXAMPLES]
