"""Completing a run's settings before its data are available.

Settings that follow from the data are taken from the data if they exist, else from the recipe, else they are
assumed, with a note.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.config import Dict

from causalfusion.config import CodecConfig, DataConfig, ModelConfig, RunConfig
from causalfusion.config.graft import grafted
from causalfusion.config.recipes import DataFacts, load_layers, merge
from causalfusion.config.sizes import default_side
from causalfusion.data.guess import is_there
from causalfusion.errors import UserError
from causalfusion.saved.folder import latest_model, load_spec

ELSEWHERE = "(elsewhere)"
"""Placeholder for a path that a recipe does not give."""
KNOWN_AUTOENCODERS = {0.2325: (16, 16), 0.18215: (4, 8)}
"""(latent channels, downsampling) by scale: the 16-channel KL autoencoder and SD's."""
ASSUMED_CLASSES = 1000


@dataclass(frozen=True)
class Planned:
    """A run with complete settings."""

    config: RunConfig
    text_tokens: float
    """Text tokens per sequence, markers included."""
    assumptions: tuple[str, ...]
    """Assumed values, each with the option that changes it."""


def read_settings(recipes: Sequence[str], overrides: Sequence[str]) -> RunConfig:
    """The settings of recipes, of which later ones override earlier ones, and of options, as in `train`,
    which override all; paths may be missing. Raises UserError or cyclopts' errors."""
    layers = merge([{"data": {"path": ELSEWHERE}}, load_layers(recipes)])  # recipes give no path
    if "finetune" in layers:
        raise UserError(
            f"{', '.join(recipes)}: a recipe to go on from a model (causalfusion finetune), whose size it "
            "does not say; expected recipes of a training"
        )
    app = App(name="estimate", result_action="return_value", help_flags=[], version_flags=[])
    app.default(_identity)
    app.config = (Dict(layers, source=", ".join(recipes)),)
    return app(list(overrides), exit_on_error=False, print_error=False)


def _identity(
    *,
    run: Annotated[RunConfig, Parameter(name="*", consume_multiple=True)] = RunConfig(),  # noqa: B008
) -> RunConfig:
    return run


def plan_run(
    config: RunConfig,
    text_tokens: float | None = None,
    facts: DataFacts = DataFacts(),  # noqa: B008
) -> Planned:
    """Complete the settings, as `open_training_data` does with the data themselves; `facts` are used if the
    data are missing. Raises UserError for a size that is unknown or does not fit."""
    notes: list[str] = []
    config = _with_epochs(_with_language(config, notes), notes)
    channels, height, width, classes = _images(config, facts, notes)
    of_any_size = replace(config.codec, max_area=config.data.max_area if config.data.native else 0)
    codec = _codec(of_any_size, (channels, height, width))
    model = _model(config, codec, classes, notes)
    if not model.vocab_size:
        if text_tokens:
            raise UserError(f"text-tokens is {text_tokens:g}; expected none, as this run has no text")
        text_tokens = 0
    elif text_tokens is None:
        text_tokens = assumed_text_tokens(model)
        notes.append(
            f"{text_tokens} text tokens in a sequence (half of model.max_text_tokens): --text-tokens"
        )
    if config.data.native:
        notes.append("images as large as data.max_area allows; smaller ones take less: --data.max-area")
    if config.codec.kind == "autoencoder" and not config.data.cache:
        notes.append("the latents are cached (causalfusion encode): encoding on the way is not counted")
    config = replace(config, codec=codec, model=model)
    return Planned(config, float(text_tokens or 0), tuple(notes))


def assumed_text_tokens(model: ModelConfig) -> int:
    """Text tokens of a sequence, markers included, where the texts are not known; 0 for a model without."""
    return model.max_text_tokens // 2 if model.vocab_size else 0


def _with_language(config: RunConfig, notes: list[str]) -> RunConfig:
    """The settings for a run that begins with a language model, if that is there."""
    if not config.train.init:
        return config
    try:
        model = load_spec(latest_model(Path(config.train.init))).model
    except UserError:
        notes.append(f"the sizes are those of the settings: {config.train.init} is no model that is there")
        return config
    return grafted(config, model)


def _with_epochs(config: RunConfig, notes: list[str]) -> RunConfig:
    """The settings with the number of images that their epochs mean, if the data are there."""
    data, train = config.data, config.train
    if not train.epochs:
        return config
    if not _is_there(data):
        notes.append(
            f"{train.images:,} images, as data.path {data.path} is not there, whose size train.epochs needs: "
            "--train.images, and no --train.epochs"
        )
        return config
    from causalfusion.data.loader import split_holdout

    train_indices, _ = split_holdout(_count(data), data.holdout)
    return replace(config, train=train.for_examples(len(train_indices)))


def _count(data: DataConfig) -> int:
    """Images, or documents, of data that are there."""
    if data.cache:
        from causalfusion.codec.cache import open_cache

        return len(open_cache(data.cache))
    from causalfusion.data import open_documents, open_source

    return len(open_documents(data) if data.has_documents else open_source(data))


def _images(config: RunConfig, facts: DataFacts, notes: list[str]) -> tuple[int, int, int, int]:
    """(channels, height, width, number of classes) of the images; adds assumptions to `notes`."""
    data, codec = config.data, config.codec
    if _is_there(data):
        return _found_images(data)
    if data.native:  # how many tokens an image has at most follows from the area alone
        side = math.isqrt(data.max_area)
        return codec.image_channels or 3, side, side, config.model.num_classes or facts.classes or 1
    side, fit = facts.image_size, data.fit()
    height, width = codec.image_height or fit.height or side, codec.image_width or fit.width or side
    if not height or not width:
        raise UserError(
            f"the size of the images is not known: data.path {data.path!r} is not there; give "
            "--data.image-size"
        )
    if facts.image_size and not data.image_size and not codec.image_height:
        notes.append(f"images of {height}x{width}, as the recipe says: {data.path} is not there")
    classes = config.model.num_classes or facts.classes
    if not classes:
        labelled = config.model.num_class_tokens > 0
        classes = ASSUMED_CLASSES if labelled else 1
        notes.extend([f"{ASSUMED_CLASSES} classes: --model.num-classes"] * labelled)
    return codec.image_channels or 3, height, width, classes


def _is_there(data: DataConfig) -> bool:
    if data.cache:
        return Path(data.cache, "manifest.json").is_file()
    return data.source in ("digits", "shapes", "in_context") or is_there(data.path)


def _found_images(data: DataConfig) -> tuple[int, int, int, int]:
    import numpy as np

    if data.cache:
        from causalfusion.codec.cache import open_cache

        cache = open_cache(data.cache)
        channels, height, width = (cache.manifest[f"image_{n}"] for n in ("channels", "height", "width"))
        return channels, height, width, max(len(cache.class_names), 1)
    from causalfusion.data import open_documents, open_source
    from causalfusion.data.document_source import DocumentImages, documents_with_images
    from causalfusion.data.loader import load_indices

    if data.has_documents:
        documents = open_documents(data)
        source = DocumentImages(documents, documents_with_images(documents))
    else:
        source = open_source(data)
    channels, height, width = load_indices(source, np.arange(1), data).images.shape[1:]
    return channels, height, width, max(len(source.class_names), 1)


def _codec(config: CodecConfig, image_shape: tuple[int, int, int]) -> CodecConfig:
    from causalfusion.codec.codec import Codec, open_codec

    if config.kind == "pixels" or Path(config.autoencoder).exists():
        return open_codec(config, image_shape=image_shape).config
    channels, down = KNOWN_AUTOENCODERS.get(config.scale, (0, 0))
    channels, down = config.latent_channels or channels, config.downsample or down
    if not channels or not down:
        raise UserError(
            f"codec.autoencoder {config.autoencoder!r} is not there, and none is known with scale "
            f"{config.scale:g}; give --codec.latent-channels and --codec.downsample"
        )
    _, height, width = image_shape
    cell = down * config.patch_size  # pixels along a token's side
    if config.max_area:
        height = width = default_side(config.max_area, cell)
    if height % cell or width % cell:
        raise UserError(
            f"images of {width}x{height} do not divide into cells of {cell} pixels (downsampling {down} x "
            f"patch size {config.patch_size}); change --data.image-size or --codec.patch-size"
        )
    config = replace(
        config,
        image_channels=image_shape[0],
        image_height=height,
        image_width=width,
        latent_channels=channels,
        downsample=down,
    )
    return Codec(config).config


def _model(config: RunConfig, codec: CodecConfig, classes: int, notes: list[str]) -> ModelConfig:
    model, cell = config.model, codec.downsample * codec.patch_size
    vocabulary = model.vocab_size
    if config.text.tokenizer and not vocabulary:
        vocabulary = _vocabulary(config, notes)
    return replace(
        model,
        num_classes=classes,
        token_dim=codec.patch_size**2 * codec.latent_channels,
        grid_height=codec.image_height // cell,
        grid_width=codec.image_width // cell,
        vocab_size=vocabulary,
    )


def _vocabulary(config: RunConfig, notes: list[str]) -> int:
    if config.text.tokenizer == "train":
        return config.text.vocab_size
    if Path(config.text.tokenizer).exists():
        from causalfusion.codec.tokenizer import open_tokenizer

        return open_tokenizer(config.text.tokenizer).vocab_size
    notes.append("a vocabulary of 32,000: --model.vocab-size")
    return 32_000
