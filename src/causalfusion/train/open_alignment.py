"""What a run with alignment has beside others: its encoder, and the features that come with its images."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from causalfusion.codec.cache import LatentCache
from causalfusion.config import RunConfig
from causalfusion.config.serialize import flat
from causalfusion.data import open_source
from causalfusion.data.reader import Reader
from causalfusion.data.source import ImageSource
from causalfusion.encoders.places import Encoder, open_encoder
from causalfusion.errors import UserError
from causalfusion.machine.processes import World
from causalfusion.train.feed import TrainingData
from causalfusion.train.image_features import ComputedFeatures, EncodedSource, stored_features
from causalfusion.train.resume import stored_settings


def open_alignment(
    config: RunConfig, checkpoint: Path | None, world: World
) -> tuple[RunConfig, Encoder | None]:
    """The settings with what follows from the encoder, and the encoder. Raises UserError where it is not the
    one that the run began with."""
    align = config.align
    if not align.encoder:
        return config, None
    encoder = open_encoder(align.encoder, world.device)
    begun = None if checkpoint is None else flat(stored_settings(checkpoint)).get("align.encoder_hash")
    if begun and begun != encoder.fingerprint:
        raise UserError(
            f"the encoder {align.encoder} is not the one that {config.out} was begun with (hash "
            f"{encoder.fingerprint}, was {begun}); give that one as --align.encoder, or another --out"
        )
    found = {"encoder_hash": encoder.fingerprint, "feature_dim": encoder.width}
    return replace(config, align=replace(align, **found)), encoder


def with_features(
    data: TrainingData, config: RunConfig, encoder: Encoder, world: World, *, show_progress: bool
) -> TrainingData:
    """The data whose batches come with features: kept ones, which are made here, or made for each batch.
    Raises UserError where a latent cache does not say where its images are."""
    source = data.source
    if isinstance(source, LatentCache):
        source = _images_behind(source, config)
    grid = (data.codec.grid_height, data.codec.grid_width)
    fit = config.data.fit(data.codec.cell)
    encoded = EncodedSource(encoder, Reader(source, fit, np.arange(len(source))), grid, world.device)
    if not config.align.cache:
        return replace(data, config=config, features=ComputedFeatures(encoded))
    folder = Path(config.align.cache).expanduser()
    found = stored_features(encoded, folder, world, mirrored=config.data.flip, show_progress=show_progress)
    return replace(data, config=config, features=found)


def _images_behind(cache: LatentCache, config: RunConfig) -> ImageSource:
    """The images whose latents a cache holds."""
    needs_path = config.data.source not in ("digits", "shapes")
    if needs_path and not config.data.path:
        raise UserError(
            f"align.encoder reads images, and data.cache {cache.folder} holds latents alone; expected "
            "data.path beside it: the images that were encoded"
        )
    source = open_source(replace(config.data, cache=""))
    if len(source) != len(cache):
        raise UserError(
            f"data.path {config.data.path} has {len(source)} images, data.cache {cache.folder} {len(cache)}; "
            "expected the images that were encoded"
        )
    if source.fingerprint() != str(cache.manifest["source"]):
        warnings.warn(
            f"files of {source.name} have changed since {cache.folder} was made; features are those of the "
            "files as they are",
            stacklevel=2,
        )
    return source
