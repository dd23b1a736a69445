"""Functions that the generating commands share: loading a model, its conditions, messages, facts of a run."""

from __future__ import annotations

import platform
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from causalfusion import __version__
from causalfusion.codec.tokenizer import words_in_pieces
from causalfusion.config import RopeExtrapolation, SampleConfig
from causalfusion.config.options import GeneratingOptions
from causalfusion.config.serialize import to_dict
from causalfusion.errors import UserError
from causalfusion.files import write_whole
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.prompts import prompt_ids
from causalfusion.generate.request import CompileChoice, CompleteRequest, EditRequest, SampleRequest
from causalfusion.generate.settings import parse_classes, step_sizes
from causalfusion.generate.store import png_of
from causalfusion.machine.processes import World
from causalfusion.machine.runtime import compute_dtype
from causalfusion.model.compiled import compile_blocks
from causalfusion.saved.folder import read_latest

_UNTRAINED = (
    "guidance leads away from images without a {0}; this model was trained with {1}: it never saw one, "
    "so that guided images may come out wrong; use --guidance-scale 1, or train with 0.1"
)
IMAGES_TO_COMPILE = 1000
"""From so many images on, compiling takes less time than it saves."""
SMALL_VOCABULARY = 4096
"""Largest vocabulary that is taken for one of captions."""


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Write one image (H, W, 1 or 3) uint8 as a PNG file."""
    write_whole(path, png_of(pixels))


def load_pipeline(
    model: Path,
    options: GeneratingOptions,
    world: World,
    rope_extrapolation: RopeExtrapolation | None = None,
) -> tuple[Pipeline, Path]:
    """The pipeline, and the folder of its model: the latest checkpoint where `model` is a training run."""

    def load(folder: Path) -> Pipeline:
        pipeline = Pipeline.load(
            folder,
            weights=options.weights,
            device=world.device,
            autocast_dtype=compute_dtype(options.precision),
            autoencoder=options.autoencoder,
            adapters=options.weighted_adapters(),
            quantize=options.quantize,
        )
        if rope_extrapolation is not None:
            pipeline.extrapolate(rope_extrapolation)
        return pipeline

    return read_latest(model, load)


def compile_for(pipeline: Pipeline, images: int, choice: CompileChoice = "auto") -> None:
    """Compile the model's blocks; `auto`: on a GPU, from IMAGES_TO_COMPILE images on."""
    pays = pipeline.device.type == "cuda" and images >= IMAGES_TO_COMPILE
    if choice == "always" or (choice == "auto" and pays):
        compile_blocks(pipeline.model)


def flops_of_product(pipeline: Pipeline, settings: SampleConfig, images: int) -> float:
    """Arithmetic of the largest matrix product of a pass over an AR step of so many images."""
    config = pipeline.model.config
    tokens = images * max(step_sizes(settings, pipeline.codec.num_tokens, 0))
    return 2.0 * tokens * config.hidden_size * config.mlp_size


def read_labels(pipeline: Pipeline, names: Sequence[str]) -> list[int]:
    """Labels of classes, read by `parse_classes`. Raises UserError for a model that does not use classes."""
    model = pipeline.model.config
    if names and not uses_classes(pipeline):
        remedy = "give --prompt" if pipeline.tokenizer is not None else "leave the class out"
        raise UserError(f"this model has no class condition; {remedy} (class {names[0]!r} was given)")
    return parse_classes(names, pipeline.spec.class_names, model.num_classes)


def uses_classes(pipeline: Pipeline) -> bool:
    return pipeline.model.config.uses_classes


def warn_of_untrained_null(pipeline: Pipeline, settings: SampleConfig, labels: Iterable[int]) -> None:
    """Warn where generation uses a condition that the model never saw in training: no class, or no text."""
    spec, guided = pipeline.spec, settings.guidance_scale != 1
    null = pipeline.model.config.null_label
    given = [label != null for label in labels]
    if uses_classes(pipeline) and spec.class_dropout == 0:
        if not all(given):
            warnings.warn(
                "this model was trained with train.class_dropout 0: it never saw an image without a class, "
                "and its images may come out wrong; give classes",
                stacklevel=2,
            )
        elif guided:
            warnings.warn(_UNTRAINED.format("class", "train.class_dropout 0"), stacklevel=2)
    if pipeline.tokenizer is not None and guided and spec.text.caption_dropout == 0:
        warnings.warn(_UNTRAINED.format("caption", "text.caption_dropout 0"), stacklevel=2)


def check_prompts(pipeline: Pipeline, prompts: Iterable[str]) -> None:
    """Raise UserError, before any work is done, for prompts that this model cannot take."""
    tokenizer, each = pipeline.with_text(), list(dict.fromkeys(prompts))
    for prompt in each:
        prompt_ids(prompt, tokenizer, pipeline.model.config)
    if tokenizer.vocab_size > SMALL_VOCABULARY:
        return  # a large vocabulary is not that of the captions, and spells in pieces what its model knows
    strange = words_in_pieces(tokenizer, each)
    if strange:
        warnings.warn(
            f"words of the prompts that the model's captions hardly had, so that it spells them in pieces: "
            f"{strange}",
            stacklevel=2,
        )


def facts(
    pipeline: Pipeline, folder: Path, request: SampleRequest | EditRequest | CompleteRequest
) -> dict[str, Any]:
    """The model, the sampling settings and the versions of a run, for its settings file."""
    return {
        "model": str(folder),
        "images_seen": pipeline.spec.images_seen,
        "weights": request.weights,
        **({"adapters": list(pipeline.adapters)} if pipeline.adapters else {}),
        "seed": request.seed,
        "settings": to_dict(pipeline.process.settled(request.settings)),
        "precision": request.precision,
        **quantized(pipeline),
        "device": str(pipeline.device),
        "versions": versions(),
        "argv": sys.argv[1:],
    }


def quantized(pipeline: Pipeline) -> dict[str, str]:
    """Number format of the weights, where it is not that of the model's folder."""
    return {} if pipeline.quantize == "none" else {"quantize": pipeline.quantize}


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {
        "causalfusion": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def one_line(text: str) -> str:
    """A text on one line of a terminal: control characters, line breaks too, become spaces."""
    return "".join(" " if unicodedata.category(character) == "Cc" else character for character in text)


def say(text: str, end: str = "\n") -> None:
    """Print without buffering; characters that the terminal's encoding lacks become question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end=end, flush=True)
