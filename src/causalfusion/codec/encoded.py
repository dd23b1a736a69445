"""The images of a source encoded, batch by batch, for a latent cache.

Shape letters: B images, c latent channels, h and w latent pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from causalfusion.codec.codec import Codec
from causalfusion.codec.shard import Shard
from causalfusion.config import DataConfig
from causalfusion.config.sizes import Fit
from causalfusion.data import ImageSource
from causalfusion.data.loader import Batch, batch_of, leave_signals, read_indices, unchanged
from causalfusion.data.reader import Reads
from causalfusion.data.source import TracedSource, content_hashes
from causalfusion.errors import UserError


class Batches(Dataset):
    """A dataset of whole batches of images, for the workers of a `DataLoader`."""

    def __init__(
        self,
        source: ImageSource,
        data: DataConfig,
        batches: list[np.ndarray],
        fit: Fit | None = None,
        sizes: np.ndarray | None = None,
    ) -> None:
        self.source, self.data, self.batches, self.fit, self.sizes = source, data, batches, fit, sizes

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: int) -> tuple[Reads, np.ndarray] | UserError:
        """(images, hashes of their contents) of a batch, or the error that reading them raised. Arrays, as
        tensors would be sent through shared memory, which some containers lack."""
        indices = self.batches[place]
        try:
            reads = read_indices(self.source, indices, self.data, self.fit, self.sizes)
            if not isinstance(self.source, TracedSource):
                return reads, np.empty((0, 16), np.uint8)
            return reads, content_hashes(self.source, indices.tolist())
        except UserError as error:  # returned, as a DataLoader would wrap a raised one in a traceback
            return error


def encoded_batches(
    source: ImageSource,
    codec: Codec,
    data: DataConfig,
    shards: list[Shard],
    batch_size: int,
    identity: dict[str, Any],
    sizes: np.ndarray | None,
) -> Iterator[tuple[Batch, np.ndarray, np.ndarray]]:
    """(batch, stored moments (B, variants, moments, c, h, w), hashes of contents (B or 0, 16)) of all images
    of these shards, in the order in which they are stored. Raises UserError.

    A batch lies within one shard, so that batches are the same whether or not the run was interrupted.
    """
    batches = [batch for shard in shards for batch in shard.batches(batch_size)]
    reader = Batches(source, data, batches, data.fit(codec.cell), sizes)
    expected = tuple(identity[f"image_{name}"] for name in ("channels", "height", "width"))
    loader = DataLoader(
        reader,
        batch_size=None,
        num_workers=data.num_workers,
        collate_fn=unchanged,
        worker_init_fn=leave_signals,
        generator=torch.Generator(),  # by default it would draw from the global generator
    )
    for found in loader:
        if isinstance(found, UserError):
            raise found
        reads, hashes = found
        batch = batch_of(reads)
        if sizes is None and batch.images.shape[1:] != expected:
            raise UserError(
                f"image {int(batch.image_indices[0])} is {tuple(batch.images.shape[1:])} (channels, height, "
                f"width), the first image {expected}; expected one size: give --data.image-size"
            )
        images = batch.images.to(codec.device)
        variants = [images, images.flip(-1)] if identity["flip"] else [images]
        moments = [torch.stack(_moments(codec, variant, identity["moments"]), dim=1) for variant in variants]
        stored = _stored(torch.stack(moments, dim=1).float().cpu().numpy(), batch, identity["dtype"])
        yield batch, stored, hashes


def _moments(codec: Codec, images: torch.Tensor, number: int) -> list[torch.Tensor]:
    """[mean] of the raw latents, or [mean, standard deviation] for number = 2; each (B, c, h, w)."""
    mean, std = codec.moments(images)
    return [mean] if number == 1 or std is None else [mean, std]


def _stored(moments: np.ndarray, batch: Batch, dtype: str) -> np.ndarray:
    """The moments in the stored type. Raises UserError if they are not finite in it."""
    with np.errstate(over="ignore"):  # reported below
        stored = moments.astype(dtype)
    bad = ~np.isfinite(stored).reshape(len(stored), -1).all(axis=1)
    if bad.any():
        do = "give --dtype float32" if np.isfinite(moments).all() else "check the autoencoder"
        image = int(batch.image_indices[np.flatnonzero(bad)[0]])
        raise UserError(f"the latents of image {image} are not finite numbers in {dtype}; {do}")
    return stored
