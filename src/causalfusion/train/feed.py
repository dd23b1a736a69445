"""From a data set to batches of clean tokens: images encoded on the way, or latents from a cache.

Also where the settings that follow from the data are filled in (`open_training_data`).

Shape letters: B images, L image tokens, P token dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from causalfusion.codec.cache import LatentCache, check_cache, open_cache
from causalfusion.codec.codec import Codec, measure_statistics, open_codec
from causalfusion.config import RunConfig
from causalfusion.data import open_source
from causalfusion.data.loader import Loader, load_indices, split_holdout, stream
from causalfusion.data.source import ImageSource
from causalfusion.distributed import World
from causalfusion.errors import UserError
from causalfusion.rng import derive_generator
from causalfusion.train.step import TokenBatch

_STATISTICS_IMAGES = 2048


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

    def batches(self, images_seen: int) -> Iterator[TokenBatch]:
        """This process's share of every train step's batch, from that place of the stream on, for ever."""
        if isinstance(self.source, LatentCache):
            yield from self._cached_batches(self.source, images_seen)
            return
        config = self.config
        loader = Loader(
            self.source, config.data, seed=config.train.seed, batch_size=config.train.batch_size,
            rank=self.world.rank, world_size=self.world.size, indices=self.train_indices,
            flip=config.data.flip,
        )  # fmt: skip
        for batch in loader.iterate(images_seen):
            noise = self._latent_noise(batch.sample_indices)
            tokens = self.codec.encode_tokens(batch.images.to(self.world.device), noise)
            yield TokenBatch(tokens, batch.labels, batch.sample_indices)

    def evaluation_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Clean tokens (B, L, P) and labels of held-out images (of training images, if none are held out);
        always the same ones, their latents at the posterior's mode."""
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
            else:
                batch = load_indices(self.source, indices, self.config.data)
                tokens = self.codec.encode_tokens(batch.images.to(self.world.device), None)
                labels = batch.labels
            yield tokens, labels.to(self.world.device)

    def _cached_batches(self, cache: LatentCache, images_seen: int) -> Iterator[TokenBatch]:
        train = self.config.train
        share = train.batch_size // self.world.size
        while True:
            first = images_seen + self.world.rank * share
            places = np.arange(first, first + share)
            indices, flips = stream(places, self.train_indices, seed=train.seed, flip=self.config.data.flip)
            sample_indices = torch.from_numpy(places)
            raw = cache.read(indices, flips, self._latent_noise(sample_indices)).to(self.world.device)
            tokens = self.codec.to_tokens(self.codec.normalise(raw))
            yield TokenBatch(tokens, torch.from_numpy(cache.labels[indices]), sample_indices)
            images_seen += train.batch_size

    def _latent_noise(self, sample_indices: Tensor) -> Tensor | None:
        """Noise for drawing latents from the autoencoder's posterior, by place in the stream."""
        config = self.config.codec
        if config.kind == "pixels" or config.latents == "mode":
            return None
        draws = [
            torch.randn(
                self.codec.latent_shape, generator=derive_generator(self.config.train.seed, "latent", n)
            )
            for n in sample_indices.tolist()
        ]
        return torch.stack(draws).to(self.world.device)


def open_training_data(config: RunConfig, world: World) -> TrainingData:
    """Open the source or the cache and the codec, hold images out, and fill the settings in."""
    per_process = config.train.batch_size // config.train.grad_accumulation
    if per_process % world.size:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}; expected a multiple of "
            f"{world.size * config.train.grad_accumulation} (processes x train.grad_accumulation)"
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
    derived = {
        "num_classes": max(len(class_names), 1),
        "token_dim": codec.token_dim,
        "grid_height": codec.grid_height,
        "grid_width": codec.grid_width,
    }
    for name, value in derived.items():
        given = getattr(config.model, name)
        if given not in (0, value):
            raise UserError(f"model.{name} is {given}, the data make it {value}; leave it out")
    config = replace(config, codec=codec.config, model=replace(config.model, **derived))
    return TrainingData(config, codec, class_names, source, train_indices, held_out, world)


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
