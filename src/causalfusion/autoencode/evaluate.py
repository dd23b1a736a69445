"""`causalfusion codec evaluate`: figures of an autoencoder's reconstructions, on a card.

The reconstruction of an image decodes its latents' mode. Figures: absolute error, PSNR and SSIM, each the
mean over images; and, in the features of each extractor, the Fréchet distance between the reconstructions
and the same images themselves.

Shape letters: B images, H, W, C pixels and channels, D features.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from causalfusion.codec.codec import Codec, open_codec
from causalfusion.config import CodecConfig, DataConfig
from causalfusion.data import open_source
from causalfusion.data.loader import split_holdout
from causalfusion.data.sizes import check_one_size
from causalfusion.data.source import Example, ImageSource, captions_of, label_of
from causalfusion.errors import UserError
from causalfusion.evaluate.cards.card import FILE_NAME, Card
from causalfusion.evaluate.features.open import Extractor
from causalfusion.evaluate.measures.figure import Figure
from causalfusion.evaluate.measures.frechet import few_samples_warning, gaussian_frechet_distance
from causalfusion.evaluate.measures.gaussian import GaussianStatistics
from causalfusion.evaluate.measures.intervals import mean_interval
from causalfusion.evaluate.measures.similarity import (
    absolute_error,
    peak_signal_to_noise,
    structural_similarity,
)
from causalfusion.evaluate.run import GRID_FILE, open_extractors, run_facts
from causalfusion.evaluate.samples.images import SourceImages
from causalfusion.files import hash_of, in_use, write_whole
from causalfusion.generate.read import to_float
from causalfusion.machine.processes import World
from causalfusion.machine.progress import ProgressLine
from causalfusion.machine.runtime import select_device
from causalfusion.pictures.compose import framed, to_image_grid

PIXELS = "pixels"
"""The feature space on the card of figures of pixels themselves."""
_PIXELS_FINGERPRINT = hash_of(["pixels, uint8, compared one by one"])
_SIMILARITIES = {"l1": absolute_error, "psnr": peak_signal_to_noise, "ssim": structural_similarity}
_COLUMNS, _ROWS = 10, 4


@dataclass(frozen=True, kw_only=True)
class ReconstructionRequest:
    """Settings of an evaluation."""

    autoencoder: str
    data: DataConfig
    out: Path
    images: int | None = None
    held_out: bool = False
    features: Sequence[str] = ("pixels:8",)
    batch_size: int = 64
    device: str = "auto"
    show_progress: bool = True


@dataclass
class _Collected:
    """Figures of each image so far."""

    similarities: dict[str, list[np.ndarray]] = field(default_factory=lambda: {n: [] for n in _SIMILARITIES})
    ours: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Features of the reconstructions, each (B, D), by extractor."""
    theirs: dict[str, list[np.ndarray]] = field(default_factory=dict)
    shown: list[np.ndarray] = field(default_factory=list)
    """The first images and their reconstructions, (2, B, H, W, C)."""
    digest: Any = field(default_factory=hashlib.sha256)


class _Part:
    """Some images of a source."""

    def __init__(self, source: ImageSource, indices: np.ndarray, name: str) -> None:
        self.source, self.indices, self.name = source, np.sort(indices), name
        self.class_names, self.has_captions = source.class_names, source.has_captions

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Example:
        return self.source.read(int(self.indices[index]))

    def label(self, index: int) -> int | None:
        return label_of(self.source, int(self.indices[index]))

    def captions(self, index: int) -> tuple[str, ...]:
        return captions_of(self.source, int(self.indices[index]))

    def fingerprint(self) -> str:
        return hash_of([self.source.fingerprint(), self.indices.tobytes().hex()])


def evaluate_autoencoder(request: ReconstructionRequest) -> Card:
    """Reconstruct images and write a card and a picture to the folder `out`. Raises UserError."""
    if request.batch_size < 1:
        raise UserError(f"--batch-size is {request.batch_size}; expected at least 1")
    if request.images is not None and request.images < 2:
        raise UserError(f"images is {request.images}; expected at least 2")
    if request.data.cache:
        raise UserError(f"data.cache is {request.data.cache!r}; images are reconstructed: leave it out")
    start = time.monotonic()
    device = select_device(request.device)
    images = _open_images(request)
    height, width, channels = images.shape
    settings = CodecConfig(autoencoder=request.autoencoder)
    codec = open_codec(settings, image_shape=(channels, height, width)).to(device)
    extractors = open_extractors(request.features, device)
    with in_use(request.out, "the evaluation"):
        collected = _collect(images, codec, extractors, request)
        figures = _similarity_figures(collected) | _distance_figures(collected, extractors)
        figures = {name: replace(each, reference=images.fingerprint()) for name, each in figures.items()}
        facts = {name: getattr(codec.config, name) for name in ("latent_channels", "downsample")}
        card = Card(
            figures=figures,
            samples={
                "name": f"reconstructions by {request.autoencoder}",
                "count": next(iter(figures.values())).count,
                "image_shape": list(images.shape),
                "hash": collected.digest.hexdigest()[:16],
                "autoencoder": codec.autoencoder_fingerprint,
                "latents": "mode",
                **facts,
            },
            references=[
                {"name": images.name, "features": name, "fingerprint": images.fingerprint()}
                for name in (PIXELS, *(extractor.name for extractor in extractors))
            ],
            features=[
                {"name": PIXELS, "fingerprint": _PIXELS_FINGERPRINT},
                *({"name": e.name, "fingerprint": e.fingerprint} for e in extractors),
            ],
            warnings=[f"{name}: {figure.warning}" for name, figure in figures.items() if figure.warning],
            run=run_facts(World(0, 1, device), {"all": time.monotonic() - start}),
        )
        card.save(request.out / FILE_NAME)
        _draw(collected, request.out / GRID_FILE)
    return card


def _open_images(request: ReconstructionRequest) -> SourceImages:
    check_one_size(request.data)
    source: ImageSource = open_source(request.data)
    if request.held_out:
        _, indices = split_holdout(len(source), request.data.holdout)
        if not len(indices):
            raise UserError("data.holdout is 0; expected the share that training held out, for --held-out")
        source = _Part(source, indices, f"{source.name} (held out)")
    images = SourceImages(
        source,
        image_size=request.data.side,
        count=request.images,
        num_workers=request.data.num_workers,
        skip_damaged=True,
    )
    if len(images) < 2:
        raise UserError(f"{images.name} has {len(images)} image; expected at least 2")
    return images


def reconstruct(codec: Codec, pixels: np.ndarray) -> np.ndarray:
    """The reconstructions, (B, H, W, C) uint8, of images of that shape and type."""
    images = to_float(pixels).to(codec.device)
    return codec.to_uint8(codec.decode(codec.encode(images, None)))


def _collect(
    images: SourceImages, codec: Codec, extractors: Sequence[Extractor], request: ReconstructionRequest
) -> _Collected:
    found, done = _Collected(), 0
    line = ProgressLine(len(images), 0, enabled=request.show_progress)
    for batch in images.batches(request.batch_size):
        ours = reconstruct(codec, batch.pixels)
        for name, measure in _SIMILARITIES.items():
            found.similarities[name].append(measure(ours, batch.pixels))
        for extractor in extractors:
            found.ours.setdefault(extractor.name, []).append(extractor(ours).pool)
            found.theirs.setdefault(extractor.name, []).append(extractor(batch.pixels).pool)
        if done < _COLUMNS * _ROWS:
            found.shown.append(np.stack([batch.pixels, ours]))
        found.digest.update(ours.tobytes())
        done += len(ours)
        line.show(done, "reconstructions", force=done == len(images))
    line.close()
    return found


def _similarity_figures(found: _Collected) -> dict[str, Figure]:
    figures = {}
    for quantity, parts in found.similarities.items():
        values = np.concatenate(parts)
        interval = mean_interval(values)
        figure = Figure(
            quantity=quantity,
            value=float(values.mean()),
            count=len(values),
            features=PIXELS,
            features_fingerprint=_PIXELS_FINGERPRINT,
            low=interval.low,
            high=interval.high,
        )
        figures[figure.name] = figure
    return figures


def _distance_figures(found: _Collected, extractors: Sequence[Extractor]) -> dict[str, Figure]:
    figures = {}
    for extractor in extractors:
        ours, theirs = (np.concatenate(side[extractor.name]) for side in (found.ours, found.theirs))
        own, other = GaussianStatistics.of(ours), GaussianStatistics.of(theirs)
        figure = Figure(
            quantity="reconstruction_frechet",
            value=gaussian_frechet_distance(own, other),
            count=len(ours),
            features=extractor.name,
            features_fingerprint=extractor.fingerprint,
            warning=few_samples_warning(own.count, own.dim, "the reconstructions") or "",
        )
        figures[figure.name] = figure
    return figures


def _draw(found: _Collected, file: Path) -> None:
    """The first images, each row above the row of their reconstructions."""
    pairs = np.concatenate(found.shown, axis=1)[:, : _COLUMNS * _ROWS]
    rows = [side for part in _rows(pairs) for side in part]
    columns = len(rows[0])
    images = torch.cat([to_float(row) for row in rows])
    labels = ["images", "reconstructions"] * (len(rows) // 2)
    scale = max(1, 96 // images.shape[-1])
    write_whole(
        file,
        lambda stream: framed(to_image_grid(images, columns, scale=scale, row_labels=labels), 8).save(
            stream, "PNG"
        ),
    )


def _rows(pairs: np.ndarray) -> Iterator[np.ndarray]:
    """Parts (2, columns, H, W, C) of whole rows; of fewer images than a row has, all of them."""
    count = pairs.shape[1]
    columns = min(count, _COLUMNS)
    for start in range(0, count - columns + 1, columns):
        yield pairs[:, start : start + columns]
