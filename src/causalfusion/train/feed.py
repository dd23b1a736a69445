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
from causalfusion.codec.codec import Codec
from causalfusion.codec.for_source import open_codec_for
from causalfusion.codec.tokenizer import Tokenizer
from causalfusion.config import RunConfig
from causalfusion.data import open_source
from causalfusion.data.buckets import Buckets
from causalfusion.data.document_source import DocumentSource
from causalfusion.data.loader import Loader, Samples, load_indices, split_holdout, stream
from causalfusion.data.sizes import counts_of, groups_of, parts_of
from causalfusion.data.source import ImageSource, spread
from causalfusion.errors import UserError
from causalfusion.machine.processes import World
from causalfusion.rng import derive_generator
from causalfusion.train.arrange import caption_limit, check_room_for_images
from causalfusion.train.batch import TokenBatch, together
from causalfusion.train.from_data import (
    captions_among,
    classes_of,
    large_enough,
    measured,
    open_grids,
    some_captions,
    tokenizer_of,
    with_facts_of_data,
)
from causalfusion.train.image_features import Features
from causalfusion.train.prior import Mixed, with_own_images


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
    grids: np.ndarray | None = None
    """(images, 2) rows and columns of tokens of each image; None where all have one size."""
    features: Features | None = None
    """Features that come with the images, in a run with alignment."""
    cut_captions: Counter[str] = field(default_factory=Counter)
    """Captions `seen`, and those `cut`, as they are longer than there is room for."""

    @property
    def origin(self) -> ImageSource | LatentCache | DocumentSource:
        """The data by whose facts a resumed run knows them again."""
        return self.source.given if isinstance(self.source, Mixed) else self.source

    @property
    def examples(self) -> str:
        """The examples in words."""
        return "images"

    def batches(self, images_seen: int) -> Iterator[TokenBatch]:
        """This process's share of every train step's batch, from that place of the stream on, for ever."""
        if isinstance(self.source, LatentCache):
            read = self._cached_batches(self.source, images_seen)
        else:
            read = self._read_batches(self.source, images_seen)
        if not self.mixed:
            return read
        return together(read, self.config.train.batch_size // self.world.size)

    @property
    def mixed(self) -> bool:
        """Images of several sizes come together in a batch."""
        return self.grids is not None and self.config.data.batches != "buckets"

    def _read_batches(self, source: ImageSource, images_seen: int) -> Iterator[TokenBatch]:
        """Batches, or their parts of one grid, of images that are encoded now."""
        data, train = self.config.data, self.config.train
        loader = Loader(
            source,
            data,
            seed=train.seed,
            batch_size=train.batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            indices=self.train_indices,
            flip=data.flip,
            fit=data.fit(self.codec.cell),
            buckets=self.buckets(),
            grids=self.grids if self.mixed else None,
        )
        for batch in loader.iterate(images_seen):
            height, width = batch.images.shape[2:]
            codec = self.codec if self.grids is None else self.codec.at(height, width)
            noise = self._latent_noise(batch.sample_indices, codec)
            tokens = codec.encode_tokens(batch.images.to(self.world.device), noise)
            labels, captions = self._labels(batch.labels), self._ids(batch.captions)
            found = None
            if self.features is not None:
                indices = batch.image_indices.numpy()
                found = self.features.read(indices, batch.mirrored, batch.images)
            grid = self._grid(codec)
            yield TokenBatch(tokens, labels, batch.sample_indices, captions, grid, features=found)

    def buckets(self) -> Buckets | None:
        """The order of the data where batches hold images of one of several grids; None: the plain stream."""
        if self.grids is None or self.mixed:
            return None
        train = self.config.train
        return Buckets(
            self.grids,
            self.train_indices,
            batch_size=train.batch_size,
            seed=train.seed,
            flip=self.config.data.flip,
        )

    def frequent_sizes(self, count: int) -> list[tuple[int, int]]:
        """(height, width) in pixels of most training images, at most so many sizes, the most frequent first;
        none where all images have one size."""
        if self.grids is None:
            return []
        counts, cell = counts_of(self.grids, self.train_indices), self.codec.cell
        grids = sorted(counts, key=lambda grid: -counts[grid])[:count]
        return [(rows * cell, columns * cell) for rows, columns in grids]

    def _grid(self, codec: Codec) -> tuple[int, int] | None:
        return None if self.grids is None else (codec.grid_height, codec.grid_width)

    def _judged(self, count: int) -> np.ndarray:
        """At most so many held-out examples; evenly spread training ones, if none are held out."""
        return self.held_out[:count] if len(self.held_out) else spread(self.train_indices, count)

    def evaluation_batches(self, batch_size: int) -> Iterator[TokenBatch]:
        """Held-out examples (training ones, if none are held out); always the same, their latents at the
        posterior's mode, with the first of their captions. They are numbered from 0."""
        chosen = self._judged(self.config.train.evaluate_images)
        groups = groups_of(self.grids, chosen)
        parts = (g[start : start + batch_size] for g in groups for start in range(0, len(g), batch_size))
        for places in parts:
            indices = chosen[places]
            if isinstance(self.source, LatentCache):
                raw = self.source.read(indices, None, None).to(self.world.device)
                codec = self._codec_of(*raw.shape[2:])
                tokens = codec.to_tokens(codec.normalise(raw))
                labels = torch.from_numpy(self.source.labels[indices])
                with_text = self.tokenizer is not None
                found = self.source.captions(indices) if with_text else [()] * len(indices)
                captions = [each[0] if each else None for each in found]
            else:
                data = self.config.data
                batch = load_indices(self.source, indices, data, data.fit(self.codec.cell), self.grids)
                height, width = batch.images.shape[2:]
                codec = self.codec if self.grids is None else self.codec.at(height, width)
                tokens = codec.encode_tokens(batch.images.to(self.world.device), None)
                labels, captions = batch.labels, batch.captions
            yield TokenBatch(
                tokens, self._labels(labels), torch.from_numpy(places), self._ids(captions), self._grid(codec)
            ).to(self.world.device)

    def _codec_of(self, latent_height: int, latent_width: int) -> Codec:
        """The codec for images of latents of this size."""
        if self.grids is None:
            return self.codec
        down = self.codec.config.downsample
        return self.codec.at(latent_height * down, latent_width * down)

    def some_captions(self) -> list[str]:
        """All captions of some of the given training images, evenly spread."""
        source = self.source.given if isinstance(self.source, Mixed) else self.source
        indices = np.unique(self.train_indices[self.train_indices < len(source)])
        return list(some_captions(source, indices))

    def held_out_captions(self, count: int) -> list[list[int]]:
        """Token ids of the first captions of held-out images (of training images, if none are held out), at
        most so many and each cut to the room of a sequence; none in a run without text."""
        if self.tokenizer is None:
            return []
        chosen = self.held_out if len(self.held_out) else np.unique(self.train_indices)  # which may repeat
        found = captions_among(self.source, chosen[:count])
        return list(self._ids([captions[0] if captions else None for captions in found]) or ())

    def held_out_documents(self, count: int) -> list[list[str | Tensor]]:
        """The beginnings of some held-out documents, each up to its last image; none where an image is an
        example."""
        return []

    def _cached_batches(self, cache: LatentCache, images_seen: int) -> Iterator[TokenBatch]:
        """Batches, or their parts of one grid, of latents on the disk."""
        train = self.config.train
        for places, (indices, flips, epochs) in self._cached_requests(images_seen):
            codec = self.codec
            if self.grids is not None:
                assert cache.sizes is not None, "images of several sizes"
                codec = self._codec_of(*cache.sizes[indices[0]].tolist())
            sample_indices = torch.from_numpy(places)
            raw = cache.read(indices, flips, self._latent_noise(sample_indices, codec)).to(self.world.device)
            tokens = codec.to_tokens(codec.normalise(raw))
            ids = None
            if self.tokenizer is not None:
                ids = self._ids(cache.draw_captions(indices, epochs, seed=train.seed))
            labels = self._labels(torch.from_numpy(cache.labels[indices]))
            found = None if self.features is None else self.features.read(indices, flips, None)
            yield TokenBatch(tokens, labels, sample_indices, ids, self._grid(codec), features=found)

    def _cached_requests(self, images_seen: int) -> Iterator[tuple[np.ndarray, Samples]]:
        """(places, samples) of what is read together, without end."""
        train, buckets = self.config.train, self.buckets()
        share = train.batch_size // self.world.size
        places = images_seen + self.world.rank * share + np.arange(share)
        while True:
            if buckets is not None:
                yield places, buckets.samples(places)
            else:
                found = stream(places, self.train_indices, seed=train.seed, flip=self.config.data.flip)
                yield from parts_of(places, found, self.grids)
            places = places + train.batch_size

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

    def _latent_noise(self, sample_indices: Tensor, codec: Codec) -> Tensor | None:
        """Noise for drawing latents from the autoencoder's posterior, by place in the stream."""
        config = self.config.codec
        if config.kind == "pixels" or config.latents == "mode":
            return None
        draws = [
            codec.draw_noise(derive_generator(self.config.train.seed, "latent", n))
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
        codec = open_codec_for(source, config.data, config.codec)
    codec = codec.to(world.device)
    train_indices, held_out = split_holdout(len(source), config.data.holdout)
    if config.finetune.prior_preservation:
        if isinstance(source, LatentCache):
            raise UserError("--prior-preservation needs images; data.cache holds latents: give the images")
        source, train_indices = with_own_images(source, train_indices, config, world)
        class_names = source.class_names
    grids = open_grids(config, source, codec, show_progress=world.is_main)
    train_indices, held_out = large_enough(grids, train_indices, held_out)
    if config.codec.normalization == "measured":
        codec = measured(codec, source, train_indices, config, grids)
    if config.text.tokenizer and tokenizer is None:
        tokenizer = tokenizer_of(config, source, train_indices)
    config, class_names, class_table = classes_of(config, source, class_names)
    config = with_facts_of_data(config, codec, len(class_names), tokenizer, len(train_indices))
    if config.data.batches == "packed" and not config.data.packed_tokens:
        largest = config.data.max_area // codec.cell**2
        config = replace(config, data=replace(config.data, packed_tokens=largest))
    if tokenizer is not None:
        if config.data.flip and config.data.source == "shapes":
            raise UserError(
                "data.flip is on; expected it off for shapes with text, as the captions say left and right"
            )
        caption_limit(config.model.max_text_tokens, config.text.examples_per_sequence)
        check_room_for_images(config)
    return TrainingData(
        config, codec, class_names, source, train_indices, held_out, world, tokenizer, class_table, grids
    )
