"""The facts that a run takes from its data before it trains: grids, statistics of latents, a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from causalfusion.codec.cache import LatentCache
from causalfusion.codec.codec import Codec, measure_statistics
from causalfusion.codec.tokenizer import Tokenizer, open_tokenizer, train_tokenizer
from causalfusion.config import RunConfig
from causalfusion.data.labels import fit_classes, map_classes
from causalfusion.data.loader import load_indices
from causalfusion.data.sizes import grids_of, groups_of
from causalfusion.data.source import ImageSource, UnreadableImage, captions_of, spread
from causalfusion.errors import UserError
from causalfusion.train.prior import Mixed

_STATISTICS_IMAGES = 2048
TOKENIZER_IMAGES = 10_000
"""At most so many, evenly spread, are what a statistic, or a tokenizer, is made from."""


def open_grids(
    config: RunConfig, source: ImageSource | LatentCache, codec: Codec, *, show_progress: bool
) -> np.ndarray | None:
    """Rows and columns of tokens of every image, (N, 2) int32, (0, 0) for one that is left out; None where
    all have one size. Raises UserError for settings that need one size."""
    if not config.data.native:
        return None
    if isinstance(source, LatentCache):
        grids = source.grids(codec.config.patch_size)
    else:
        grids = grids_of(source, config.data.fit(codec.cell), show_progress=show_progress)
    tokens = grids[grids[:, 0] > 0].prod(1)
    plan, least, most = config.factorization, int(tokens.min()), int(tokens.max())
    what, room = "", config.data.packed_tokens
    if config.data.batches == "packed" and 0 < room < most:
        raise UserError(
            f"data.packed_tokens is {room}; expected at least {most}, the tokens of the largest image"
        )
    if config.model.head.ask == "previous" and plan.num_ar_steps:
        what = f"factorization.num_ar_steps is {plan.num_ar_steps}, not 0, an AR step for each token"
    elif plan.given_order:
        what = "factorization.given_order is the order of one grid"
    elif plan.distribution == "fixed" and plan.num_ar_steps > least:
        what = f"factorization.num_ar_steps is {plan.num_ar_steps}, and the smallest image has {least} tokens"
    if what:
        raise UserError(f"data.image_size is native; {what}: give images of one size, or change that")
    return grids


def large_enough(
    grids: np.ndarray | None, train_indices: np.ndarray, held_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The training and held-out images that have a grid; all where they have one size. Raises UserError where
    none is left to train on."""
    if grids is None:
        return train_indices, held_out
    train, held = (indices[grids[indices, 0] > 0] for indices in (train_indices, held_out))
    if not len(train):
        raise UserError(
            f"of the {len(train_indices)} images to train on, none can be used, as they are smaller than a "
            f"token or cannot be read, and {len(held_out)} are held out: give more images, or a smaller "
            "data.holdout"
        )
    return train, held


def tokenizer_of(
    config: RunConfig, source: ImageSource | LatentCache, train_indices: np.ndarray
) -> Tokenizer:
    """The one that the settings name, or one trained on the captions."""
    if not source.has_captions:
        where = source.folder if isinstance(source, LatentCache) else source.name
        raise UserError(
            f"{where} has no captions; expected some, for text.tokenizer {config.text.tokenizer}: leave it "
            "out to train without text"
        )
    if config.text.tokenizer != "train":
        return open_tokenizer(config.text.tokenizer)
    return train_tokenizer(some_captions(source, train_indices), config.text.vocab_size)


def some_captions(source: ImageSource | LatentCache, indices: np.ndarray) -> Iterator[str]:
    """All captions of at most TOKENIZER_IMAGES of these images, evenly spread."""
    for captions in captions_among(source, spread(indices, TOKENIZER_IMAGES)):
        yield from captions


def captions_among(source: ImageSource | LatentCache, indices: np.ndarray) -> Iterable[Sequence[str]]:
    """All captions of each of these images."""
    if isinstance(source, LatentCache):
        return source.captions(indices)
    return (readable_captions(source, index) for index in indices.tolist())


def readable_captions(source: ImageSource, index: int) -> tuple[str, ...]:
    """All captions of an image; none where they are damaged."""
    try:
        return captions_of(source, index)
    except UnreadableImage:  # the loader counts and names it when its turn comes
        return ()


def classes_of(
    config: RunConfig, source: ImageSource | LatentCache, names: list[str]
) -> tuple[RunConfig, list[str], np.ndarray | None]:
    """(settings, class names, the model's class for each of the data's): by name where a model is fine-tuned,
    else by number."""
    model, finetune = config.model, config.finetune
    if not finetune.base:
        try:
            fitted = fit_classes(getattr(source, "classes", None), names, model.num_classes)
        except UserError as error:
            if not config.distill.teacher:
                raise
            raise UserError(
                f"the data have {max(len(names), 1)} classes; expected the {model.num_classes} of "
                f"the teacher {config.distill.teacher}, on whose data a student is trained"
            ) from error
        return config, *fitted
    if finetune.task == "classify":
        return config, names, None
    used = model.num_class_tokens > 0 or model.conditioning == "adaln_zero"
    mapped, table = map_classes(names, finetune.classes, keep=finetune.keep_classes, used=used)
    if isinstance(source, Mixed) and table is not None:  # own images without a class are of the null class
        table = np.append(table, max(len(mapped), 1) if used else 0)
    new = [name for name in mapped if name not in finetune.classes]
    return replace(config, finetune=replace(finetune, new_classes=new)), mapped, table


def measured(
    codec: Codec,
    source: ImageSource | LatentCache,
    train_indices: np.ndarray,
    config: RunConfig,
    grids: np.ndarray | None,
) -> Codec:
    """The codec with scale and shift measured on (at most 2048 of) the training images, evenly spread."""
    if isinstance(source, LatentCache):
        return codec.with_statistics(*source.statistics(codec.config.latents))
    chosen = spread(train_indices, _STATISTICS_IMAGES)
    fit = config.data.fit(codec.cell)
    batches = (
        load_indices(source, chosen[group[start : start + 64]], config.data, fit, grids).images.to(
            codec.device
        )
        for group in groups_of(grids, chosen)
        for start in range(0, len(group), 64)
    )
    mean, std = measure_statistics(codec, batches)
    return codec.with_statistics(mean, std)


def with_facts_of_data(
    config: RunConfig, codec: Codec, num_classes: int, tokenizer: Tokenizer | None, num_examples: int
) -> RunConfig:
    """The settings with those filled in that follow from the data. Raises UserError for one that is given and
    does not fit."""
    config = replace(config, train=config.train.for_examples(num_examples))
    derived = {
        "vocab_size": 0 if tokenizer is None else tokenizer.vocab_size,
        "num_classes": max(num_classes, 1),
        "token_dim": codec.token_dim,
        "predicts_variance": config.diffusion.variance == "learned_range",
        "grid_height": codec.grid_height,
        "grid_width": codec.grid_width,
    }
    for name, value in derived.items():
        given = getattr(config.model, name)
        if given not in (0, value):
            raise UserError(f"model.{name} is {given}, the data make it {value}; leave it out")
    return replace(config, codec=codec.config, model=replace(config.model, **derived))
