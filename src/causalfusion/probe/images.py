"""The labelled images of a probe: those to train on, and those held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import DataLoader

from causalfusion.config.sizes import Fit
from causalfusion.data import ImageSource, open_source
from causalfusion.data.loader import leave_signals, split_holdout, unchanged
from causalfusion.data.reader import Health, Reader, Reads, Samples
from causalfusion.errors import UserError
from causalfusion.evaluate.features.extractor import as_rgb
from causalfusion.evaluate.samples.open_images import data_config
from causalfusion.files import hash_of
from causalfusion.generate.read import to_grey
from causalfusion.probe.request import ProbeRequest
from causalfusion.rng import derive_seed


@dataclass(frozen=True)
class ProbeImages:
    """Labelled images of one source."""

    source: ImageSource
    indices: np.ndarray
    """(N,) int64, into the source."""
    fit: Fit
    class_of: np.ndarray
    """(classes of the source,) int64: the probe's class of each."""
    num_workers: int = 0
    channels: int = 3
    """Those of the model: grey images get three equal ones, coloured images their luminance."""

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, batch_size: int, first: int = 0) -> Iterator[Reads]:
        """The images from the `first` on. Raises UserError if too many are unreadable."""
        requests = [
            Samples.plain(self.indices[start : start + batch_size])
            for start in range(first, len(self), batch_size)
        ]
        loader = DataLoader(
            Reader(self.source, self.fit, self.indices),
            sampler=requests,  # pyright: ignore[reportArgumentType] - each is what one batch asks for
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=unchanged,
            worker_init_fn=leave_signals,
        )
        health = Health(len(self))
        for reads in loader:
            if isinstance(reads, UserError):
                raise reads
            health.note(len(reads.indices), reads.failures)
            pixels = with_channels(reads.pixels, self.channels)
            yield replace(reads, pixels=pixels, labels=self.class_of[reads.labels])

    def fingerprint(self) -> str:
        """A hash that the images, their order and their size decide."""
        return hash_of([self.source.fingerprint(), self.indices.tobytes().hex(), self.fit])


@dataclass(frozen=True)
class ProbeData:
    train: ProbeImages
    test: ProbeImages
    class_names: list[str]


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Images (B, H, W, 1 or 3) uint8 with 1 or 3 channels."""
    if pixels.shape[3] == channels:
        return pixels
    return as_rgb(pixels) if channels == 3 else np.stack([to_grey(image) for image in pixels])


def open_data(request: ProbeRequest, size: tuple[int, int], channels: int) -> ProbeData:
    """The images of a request, at (height, width), with the model's channels. Raises UserError for data
    without at least two classes, and for held-out images of other ones."""
    data, fit = replace(request.data, cache=""), Fit(*size)
    source = open_source(data)
    names = _classes(source)
    own, every = np.arange(len(names)), np.arange(len(source))
    if request.test:
        other = open_source(data_config(request.test, size))
        theirs = _classes(other)
        unknown = sorted(set(theirs) - set(names))
        if unknown:
            raise UserError(f"--test {request.test} has a class {unknown[0]!r}, which {source.name} has not")
        class_of = np.array([names.index(name) for name in theirs])
        test = ProbeImages(other, np.arange(len(other)), fit, class_of, data.num_workers, channels)
    else:
        every, held_out = split_holdout(len(source), data.holdout)
        if not len(held_out):
            raise UserError(
                "data.holdout is 0: no image is held out to measure accuracy on; give --test, or a holdout"
            )
        test = ProbeImages(source, np.sort(held_out), fit, own, data.num_workers, channels)
    if request.images is not None and request.images < len(every):
        random = np.random.default_rng(derive_seed(request.seed, "probe", "images"))
        every = np.sort(random.choice(every, request.images, replace=False))
    return ProbeData(ProbeImages(source, every, fit, own, data.num_workers, channels), test, names)


def _classes(source: ImageSource) -> list[str]:
    names = list(source.class_names)
    if len(names) < 2:
        found = f"one class alone, {names[0]!r}" if names else "no labels"
        raise UserError(f"{source.name} has {found}; expected images of two or more classes to tell apart")
    return names
