"""From a data set to batches of clean tokens: images encoded on the way, or latents from a cache.

Also where the settings that follow from the data are filled in (`open_training_data`).

Shape letters: B images, L image tokens, P token dimension.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from causalfusion.codec.cache import LatentCache, check_cache, open_cache
from causalfusion.codec.codec import Codec, measure_statistics, open_codec
from causalfusion.codec.tokenizer import Tokenizer, open_tokenizer, train_tokenizer
from causalfusion.config import RunConfig
from causalfusion.data import open_source
from causalfusion.data.labels import fit_classes
from causalfusion.data.loader import Loader, load_indices, split_holdout, stream
from causalfusion.data.source import ImageSource, UnreadableImage
from causalfusion.errors import UserError
from causalfusion.machine.processes import World
from causalfusion.rng import derive_generator
from causalfusion.train.arrange import caption_limit
from causalfusion.train.step import TokenBatch

_STATISTICS_IMAGES = 2048
_TOKENIZER_IMAGES = 10_000
"""At most so many, evenly spread, are what a statistic, or a tokenizer, is made from."""


@dataclass(frozen=True)
class TrainingData:
    """The data of a run: `config` has every setting that follows from it filled in."""

    config: RunConfig
    codec: Codec
    class_names: list[str]
    source: ImageSource | LatentCache
    train_indices: np.ndarray
    held_out: np.ndarray
    world: World
    tokenizer: Tokenizer | None = None
    """None: a run without text."""
    class_table: np.ndarray | None = None
    """(classes of the data,) the model's label for each; None: the same."""
    cut_captions: Counter[str] = field(default_factory=Counter)
    """Captions `seen`, and those `cut`, as they are longer than there is room for."""

    def batches(self, images_seen: int) -> Iterator[TokenBatch]:
        """This process's share of every train step's batch, from that place of the stream on, for ever."""
        if isinstance(self.source, LatentCache):
            yield from self._cached_batches(self.source, images_seen)
            return
        data, train = self.config.data, self.config.train
        loader = Loader(
            self.source,
            data,
            seed=train.seed,
            batch_size=train.batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            indices=self.train_indices,
            flip=data.flip,
        )
        for batch in loader.iterate(images_seen):
            noise = self._latent_noise(batch.sample_indices)
            tokens = self.codec.encode_tokens(batch.images.to(self.world.device), noise)
            labels = self._labels(batch.labels)
            yield TokenBatch(tokens, labels, batch.sample_indices, self._ids(batch.captions))

    def evaluation_batches(self, batch_size: int) -> Iterator[TokenBatch]:
        """Held-out examples (training ones, if none are held out); always the same, their latents at the
        posterior's mode, with the first of their captions. They are numbered from 0."""
        count = self.config.train.evaluate_images
        if len(self.held_out):
            chosen = self.held_out[:count]
        else:
            chosen = self.train_indices[:: -(-len(self.train_indices) // count)]
        for start in range(0, len(chosen), batch_size):
            indices = chosen[start : start + batch_size]
            if isinstance(self.source, LatentCache):
                raw = self.source.read(indices, None, None).to(self.world.device)
                tokens = self.codec.to_tokens(self.codec.normalise(raw))
                labels = torch.from_numpy(self.source.labels[indices])
                with_text = self.tokenizer is not None
                found = self.source.captions(indices) if with_text else [()] * len(indices)
                captions = [each[0] if each else None for each in found]
            else:
                batch = load_indices(self.source, indices, self.config.data)
                tokens = self.codec.encode_tokens(batch.images.to(self.world.device), None)
                labels, captions = batch.labels, batch.captions
            places = torch.arange(start, start + len(indices))
            yield TokenBatch(tokens, self._labels(labels), places, self._ids(captions)).to(self.world.device)

    def held_out_captions(self, count: int) -> list[list[int]]:
        """Token ids of the first captions of held-out images (of training images, if none are held out), at
        most so many and each cut to the room of a sequence; none in a run without text."""
        if self.tokenizer is None:
            return []
        chosen = self.held_out if len(self.held_out) else self.train_indices
        chosen = chosen[:count]
        if isinstance(self.source, LatentCache):
            found = self.source.captions(chosen)
        else:
            found = [_captions_of(self.source, index) for index in chosen.tolist()]
        return list(self._ids([captions[0] if captions else None for captions in found]) or ())

    def _cached_batches(self, cache: LatentCache, images_seen: int) -> Iterator[TokenBatch]:
        train = self.config.train
        share = train.batch_size // self.world.size
        while True:
            first = images_seen + self.world.rank * share
            places = np.arange(first, first + share)
            indices, flips, epochs = stream(
                places, self.train_indices, seed=train.seed, flip=self.config.data.flip
            )
            sample_indices = torch.from_numpy(places)
            raw = cache.read(indices, flips, self._latent_noise(sample_indices)).to(self.world.device)
            tokens = self.codec.to_tokens(self.codec.normalise(raw))
            ids = None
            if self.tokenizer is not None:
                ids = self._ids(cache.draw_captions(indices, epochs, seed=train.seed))
            labels = self._labels(torch.from_numpy(cache.labels[indices]))
            yield TokenBatch(tokens, labels, sample_indices, ids)
            images_seen += train.batch_size

    def _labels(self, labels: Tensor) -> Tensor:
        return labels if self.class_table is None else torch.from_numpy(self.class_table)[labels]

    def _ids(self, captions: list[str | None]) -> tuple[list[int], ...] | None:
        """The captions' token ids, cut to what a sequence has room for, which is said; None in a run without
        text."""
        if self.tokenizer is None:
            return None
        config = self.config
        limit = caption_limit(config.model.max_text_tokens, config.text.examples_per_sequence)
        ids = [self.tokenizer.encode(caption or "") for caption in captions]
        cut, known = sum(len(each) > limit for each in ids), self.cut_captions["cut"]
        self.cut_captions.update(seen=len(ids), cut=cut)
        if cut and not known:
            longest = max(map(len, ids))
            room = config.model.max_text_tokens + (longest - limit) * config.text.examples_per_sequence
            warnings.warn(
                f"captions are longer than the {limit} tokens there is room for, and cut: {cut} of the first "
                f"{self.cut_captions['seen']}, the longest of {longest} tokens; model.max_text_tokens {room} "
                "makes room",
                stacklevel=2,
            )
        return tuple(each[:limit] for each in ids)

    def _latent_noise(self, sample_indices: Tensor) -> Tensor | None:
        """Noise for drawing latents from the autoencoder's posterior, by place in the stream."""
        config = self.config.codec
        if config.kind == "pixels" or config.latents == "mode":
            return None
        draws = [
            self.codec.draw_noise(derive_generator(self.config.train.seed, "latent", n))
            for n in sample_indices.tolist()
        ]
        return torch.stack(draws).to(self.world.device)


def open_training_data(config: RunConfig, world: World, tokenizer: Tokenizer | None = None) -> TrainingData:
    """Open the source or the cache and the codec, hold images out, and fill the settings in. A resumed run
    gives its `tokenizer`; else it is the one that the settings name."""
    group = config.text.examples_per_sequence
    parts = world.size * config.train.grad_accumulation * group
    if config.train.batch_size % parts:
        what = "processes x train.grad_accumulation" + " x text.examples_per_sequence" * (group > 1)
        raise UserError(
            f"train.batch_size is {config.train.batch_size}; expected a multiple of {parts} ({what})"
        )
    if config.data.cache:
        source: ImageSource | LatentCache = open_cache(config.data.cache)
        class_names = source.class_names
        codec = check_cache(source, config.codec, config.data)
    else:
        source = open_source(config.data)
        class_names = source.class_names
        first = load_indices(source, np.arange(1), config.data)
        channels, height, width = first.images.shape[1:]
        codec = open_codec(config.codec, image_shape=(channels, height, width))
    codec = codec.to(world.device)
    train_indices, held_out = split_holdout(len(source), config.data.holdout)
    if config.codec.normalization == "measured":
        codec = _measured(codec, source, train_indices, config)
    if config.text.tokenizer and tokenizer is None:
        tokenizer = _tokenizer(config, source, train_indices)
    class_names, class_table = fit_classes(
        getattr(source, "classes", None), class_names, config.model.num_classes
    )
    if config.train.epochs:
        images = max(round(config.train.epochs * len(train_indices)), config.train.batch_size)
        config = replace(config, train=replace(config.train, images=images))
    derived = {
        "vocab_size": 0 if tokenizer is None else tokenizer.vocab_size,
        "num_classes": max(len(class_names), 1),
        "token_dim": codec.token_dim,
        "predicts_variance": config.diffusion.variance == "learned_range",
        "grid_height": codec.grid_height,
        "grid_width": codec.grid_width,
    }
    for name, value in derived.items():
        given = getattr(config.model, name)
        if given not in (0, value):
            raise UserError(f"model.{name} is {given}, the data make it {value}; leave it out")
    config = replace(config, codec=codec.config, model=replace(config.model, **derived))
    if tokenizer is not None:
        if config.data.flip and config.data.source == "shapes":
            raise UserError(
                "data.flip is on; expected it off for shapes with text, as the captions say left and right"
            )
        caption_limit(config.model.max_text_tokens, config.text.examples_per_sequence)
        _check_room_for_images(config)
    return TrainingData(
        config, codec, class_names, source, train_indices, held_out, world, tokenizer, class_table
    )


def _check_room_for_images(config: RunConfig) -> None:
    count = config.text.examples_per_sequence
    if config.model.max_images < count:
        raise UserError(
            f"model.max_images is {config.model.max_images}; expected at least {count}, as "
            "text.examples_per_sequence says"
        )


def _tokenizer(config: RunConfig, source: ImageSource | LatentCache, train_indices: np.ndarray) -> Tokenizer:
    """The one that the settings name, or one trained on the captions."""
    if not source.has_captions:
        where = source.folder if isinstance(source, LatentCache) else source.name
        raise UserError(
            f"{where} has no captions; expected some, for text.tokenizer {config.text.tokenizer}: leave it "
            "out to train without text"
        )
    if config.text.tokenizer != "train":
        return open_tokenizer(config.text.tokenizer)
    chosen = train_indices[:: -(-len(train_indices) // _TOKENIZER_IMAGES)]
    if isinstance(source, LatentCache):
        captions = source.captions(chosen)
    else:
        captions = (_captions_of(source, index) for index in chosen.tolist())
    return train_tokenizer((text for texts in captions for text in texts), config.text.vocab_size)


def _captions_of(source: ImageSource, index: int) -> tuple[str, ...]:
    try:
        return source.read(index).captions
    except UnreadableImage:  # the loader counts and names it when its turn comes
        return ()


def _measured(
    codec: Codec, source: ImageSource | LatentCache, train_indices: np.ndarray, config: RunConfig
) -> Codec:
    """The codec with scale and shift measured on (at most 2048 of) the training images, evenly spread."""
    if isinstance(source, LatentCache):
        return codec.with_statistics(*source.statistics(codec.config.latents))
    chosen = train_indices[:: -(-len(train_indices) // _STATISTICS_IMAGES)]
    batches = (
        load_indices(source, chosen[start : start + 64], config.data).images.to(codec.device)
        for start in range(0, len(chosen), 64)
    )
    mean, std = measure_statistics(codec, batches)
    return codec.with_statistics(mean, std)
