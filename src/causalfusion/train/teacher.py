"""A distillation's teacher: the settings that its student has from it, and its identity.

A student is its teacher's model with its teacher's weights to begin with, trained as its teacher was but for
what a distillation changes.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from causalfusion.config import ModelConfig, RunConfig, SampleConfig
from causalfusion.config.serialize import flat, to_dict
from causalfusion.diffusion.process import make_process
from causalfusion.diffusion.segments import Segments, few_steps
from causalfusion.errors import UserError
from causalfusion.files import sha256_of
from causalfusion.saved.folder import (
    SAMPLING_FILE,
    ModelSpec,
    load_spec,
    read_latest,
)
from causalfusion.saved.sampling import read_sampling
from causalfusion.saved.started import autoencoder_place
from causalfusion.train.data_of_run import data_of_run
from causalfusion.train.finetuning import sizes_of
from causalfusion.train.resume import few, settings_of_run, stored_settings

IMAGES = 64_000
RATE = 0.128
"""Learning rate times the model's width, where the teacher's own is not known."""
_OF_RUN = ("batch_size", "lr", "eps")
"""Settings of the teacher's training that its student's has too; but for the rate of an adapter, which is
much higher than that of all weights."""


def settings_beneath(teacher: str) -> dict[str, Any]:
    """Tables of settings, and options of `distill`, to lay beneath those that are given: from the teacher's
    folder and, of a run's model, from its training. Raises UserError where there is no model."""
    spec, sampling, run, data = read_latest(Path(teacher), _read)[0]
    rate = min(RATE / spec.model.hidden_size, 1e-3)
    train = {"images": IMAGES, "batch_size": 32, "lr": rate, "eps": 1e-8, "precision": "auto"}
    finetune = run.get("finetune", {})
    adapts = finetune.get("base") and finetune.get("adapter") != "none"
    kept = [name for name in _OF_RUN if not (adapts and name == "lr")]
    train |= {name: value for name, value in run.get("train", {}).items() if name in kept}
    train |= {
        "lr_schedule": "cosine",
        "warmup_images": 50 * train["batch_size"],
        "ema_decay": 0.99,
        "class_dropout": 0.0,
        "sample_minutes": 0.0,
        "evaluate_every": 0,
    }
    text = {**to_dict(spec.text), "caption_dropout": 0.0}
    text["tokenizer"] = "init" if spec.model.vocab_size else ""
    return {
        "guidance_scale": sampling.guidance_scale,
        "data": data or sizes_of(spec, native=True),
        "factorization": to_dict(spec.factorization),
        "text": text,
        "train": train,
    }


def _read(folder: Path) -> tuple[ModelSpec, SampleConfig, dict[str, Any], dict[str, Any]]:
    """(settings of the model, its recommended sampling, the settings of its run and of that one's data, or
    none)."""
    spec, plain = load_spec(folder), SampleConfig()
    sampling = read_sampling(folder) or plain
    for name, value in to_dict(sampling).items():
        if name.startswith("guid") and name != "guidance_scale" and value != getattr(plain, name):
            warnings.warn(
                f"{folder / SAMPLING_FILE}: {name} {value} is not taken over; a student is guided alike "
                "at all levels, in all channels and AR steps, by --guidance-scale",
                stacklevel=2,
            )
    return spec, sampling, settings_of_run(folder), data_of_run(folder)


def student_of(config: RunConfig) -> RunConfig:
    """The settings of a distillation with everything that follows from its teacher: architecture, codec, path
    and prediction, where it begins, and how it is sampled. Raises UserError for a model that cannot be
    distilled."""
    if Path(config.out).resolve() == Path(config.distill.teacher).resolve():
        raise UserError(f"--out {config.out} is the teacher; give another folder")
    spec, folder = read_latest(Path(config.distill.teacher), load_spec)
    _refuse(spec.model, spec.text.image_context, folder)
    never = spec.text.caption_dropout == 0 if spec.model.vocab_size else spec.class_dropout == 0
    if never and config.distill.guidance_scale != 1:
        raise UserError(
            f"{folder} never saw an image without its condition, which guidance leads away from; expected "
            f"--guidance-scale 1, not {config.distill.guidance_scale:g}"
        )
    codec = replace(spec.codec, normalization="given")
    if codec.autoencoder:
        codec = replace(codec, autoencoder=autoencoder_place(folder, codec.autoencoder))
    even = {"level_distribution": "uniform", "level_shift": 1.0, "level_range": (0.0, 1.0)}
    diffusion = replace(spec.diffusion, **even)
    steps = config.distill.steps
    Segments.of(make_process(diffusion), steps, config.distill.teacher_steps)  # raises for too many points
    return replace(
        config,
        codec=codec,
        model=spec.model,
        diffusion=diffusion,
        sample=few_steps(make_process(diffusion), steps),
    )


def _refuse(model: ModelConfig, image_context: str, folder: Path) -> None:
    """Raises UserError for a model that cannot be distilled."""
    why = ""
    if model.text_only:
        why = "is a language model without images"
    elif model.per_token:
        why = "denoises tokens by a head of their own, where few diffusion steps save little"
    elif image_context == "noised":
        why = "has noised images before text (text.image_context), which a student would see otherwise"
    if why:
        raise UserError(f"{folder} {why}; expected a model whose noised tokens go through the transformer")


def with_teacher(config: RunConfig, checkpoint: Path | None) -> RunConfig:
    """The settings with the hash of the teacher's weights, which have to be those that the run began with.
    Raises UserError where they are not, or the student's model is another."""
    if not config.distill.teacher:
        return config
    spec, folder = read_latest(Path(config.distill.teacher), load_spec)
    _refuse(spec.model, config.text.image_context, folder)
    found = sha256_of(folder / "model.safetensors")
    begun = None if checkpoint is None else flat(stored_settings(checkpoint)).get("distill.teacher_hash")
    if begun and begun != found:
        raise UserError(
            f"the weights of {folder} are not those of the teacher that {config.out} was begun with (SHA-256 "
            f"{found[:16]}, was {begun[:16]}); give that one as --teacher, or another --out"
        )
    return replace(config, distill=replace(config.distill, teacher_hash=found))


def check_student(config: RunConfig, class_names: list[str]) -> None:
    """Raises UserError unless the model of a distillation, and its classes, are its teacher's."""
    if not config.distill.teacher:
        return
    spec, folder = read_latest(Path(config.distill.teacher), load_spec)
    ours, theirs = (flat(to_dict(one)) for one in (config.model, spec.model))
    for name in ours:
        if ours[name] != theirs[name]:
            raise UserError(
                f"model.{name} is {ours[name]}; expected {theirs[name]}, as in the teacher {folder}"
            )
    if config.model.num_class_tokens and spec.class_names and class_names != spec.class_names:
        raise UserError(
            f"the data's classes are {few(class_names)}; expected those of the teacher {folder}: "
            f"{few(spec.class_names)}"
        )
