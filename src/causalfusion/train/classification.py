"""Fine-tuning for classification, as a training with another objective: clean tokens in, classes out.

Images are mixed as tokens, here and not by a library: libraries mix pixels, before the autoencoder, which
cached latents no longer have; and a rectangle of tokens is one of pixels.

Shape letters: B examples, L image tokens, P token dimension, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.codec.tokenizer import Markers
from causalfusion.config import ClassifyConfig, RunConfig
from causalfusion.diffusion.process import Process
from causalfusion.generate.reading import Reading
from causalfusion.model.layers import readable
from causalfusion.rng import derive_generator
from causalfusion.saved.folder import ModelSpec
from causalfusion.train.arranged import Arranged, Errors
from causalfusion.train.batch import TokenBatch
from causalfusion.train.draws import Draws
from causalfusion.train.step import Objective


@dataclass(frozen=True, kw_only=True)
class ClassifyObjective(Objective):
    """Cross-entropy of the classes of images, with smoothed and mixed labels."""

    reading: Reading

    @classmethod
    def of(
        cls, config: RunConfig, process: Process, markers: Markers | None, multiple: int
    ) -> ClassifyObjective:
        """The objective of a run."""
        spec = ModelSpec(
            model=config.model,
            codec=config.codec,
            diffusion=config.diffusion,
            factorization=config.factorization,
            text=config.text,
        )
        grid = (config.model.grid_height, config.model.grid_width)
        return cls(config, process, markers, multiple, reading=Reading(spec, process, grid, markers))

    def draw(self, batch: TokenBatch, *, seed: int, split_index: int) -> Draws:
        """Nothing is noised, and no class stands before an image."""
        count, length = batch.tokens.shape[:2]
        plan = self.reading.plan(count, torch.device("cpu"))
        return Draws(plan, torch.zeros(count, 1), torch.zeros(count, 1, length, 0), torch.ones(count).bool())

    def arrange(self, batch: TokenBatch, draws: Draws, *, read: bool | None = None) -> Arranged:
        """The images, mixed as a function of the seed and of their first place in the stream."""
        config, count = self.config.classify, self.config.model.num_classes
        smooth = config.label_smoothing
        classes = F.one_hot(batch.labels.cpu(), count).float() * (1 - smooth) + smooth / count
        generator = derive_generator(self.config.train.seed, "mix", int(batch.sample_indices[0]))
        tokens, classes = mixed(batch.tokens, classes, config, self.reading.grid, generator)
        return Arranged(tokens, batch.labels, draws.plan, draws.levels, draws.noise, classes=classes)

    def errors(self, model: nn.Module, piece: Arranged, num_text: int = 0) -> Errors:
        """(N, 1, 1) cross-entropies in nats; no text."""
        assert piece.classes is not None, "an arranged classification"
        logits = self.logits(model, piece.tokens)
        found = F.cross_entropy(logits, piece.classes, reduction="none")
        return Errors(found[:, None, None], torch.zeros(0, 0, device=found.device))

    def logits(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """(B, K) float32 of clean tokens (B, L, P) in raster order."""
        plan = self.reading.plan(len(tokens), tokens.device)
        predictions = model(
            readable(self.reading.sequence(tokens, plan)), backend=self.config.train.attention
        )
        return predictions.classes.float()

    def image_loss(self, errors: Tensor, piece: Arranged) -> Tensor:
        return errors.mean() if len(errors) else errors.sum()


def mixed(
    tokens: Tensor,
    classes: Tensor,
    config: ClassifyConfig,
    grid: tuple[int, int],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Tokens (B, L, P), raster order, and classes (B, K), each with those of the image at the other end of
    the batch: as a weighted mean (mixup, 1710.09412), or with a rectangle from it (CutMix, 1905.04899)."""
    kinds = [name for name in ("mixup", "cutmix") if getattr(config, name)]
    if not kinds or len(tokens) < 2:
        return tokens, classes
    kind = kinds[int(torch.randint(len(kinds), (), generator=generator))]
    share = _beta(getattr(config, kind), generator)
    if kind == "mixup":
        tokens = share * tokens + (1 - share) * tokens.flip(0)
    else:
        inside = rectangle(grid, 1 - share, generator).flatten()
        tokens = torch.where(inside.to(tokens.device)[None, :, None], tokens.flip(0), tokens)
        share = 1 - float(inside.float().mean())
    return tokens, share * classes + (1 - share) * classes.flip(0)


def rectangle(grid: tuple[int, int], area: float, generator: torch.Generator) -> Tensor:
    """(rows, columns) bool: a rectangle of this share of the grid, of its shape, as far as it lies in the
    grid; its centre is any token."""
    inside = torch.ones(grid, dtype=torch.bool)
    for axis, length in enumerate(grid):
        side = round(length * area**0.5)
        centre = int(torch.randint(length, (), generator=generator))
        places = torch.arange(length) - (centre - side // 2)
        within = (places >= 0) & (places < side)
        inside &= within[:, None] if axis == 0 else within[None]
    return inside


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha); torch's own takes no generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.Generator(np.random.Philox(seed)).beta(alpha, alpha))


@dataclass(frozen=True)
class Accuracy:
    """The share of images whose class is the one of the largest logit, with its 95 % interval (Wilson)."""

    value: float
    low: float
    high: float
    images: int
    loss: float
    """Cross-entropy with the true class, nats."""

    def record(self) -> dict[str, object]:
        return {
            "accuracy": self.value,
            "low": self.low,
            "high": self.high,
            "images": self.images,
            "mean": self.loss,
        }

    def in_words(self) -> str:
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.value:.1f} % ({low:.1f} to {high:.1f}) of {self.images:,} held-out images"


@torch.no_grad()
def accuracy_of(objective: ClassifyObjective, model: nn.Module, batches: Iterable[TokenBatch]) -> Accuracy:
    """Of labelled batches."""
    from scipy.stats import binomtest

    hits, total, loss = 0, 0, 0.0
    for batch in batches:
        logits, labels = objective.logits(model, batch.tokens), batch.labels.to(batch.tokens.device)
        hits += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        total += len(labels)
    interval = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    return Accuracy(hits / total, float(interval.low), float(interval.high), total, loss / total)


def layer_factor(name: str, encoder_depth: int, depth: int, decay: float) -> float:
    """The learning rate of a weight as a share of the classifier's: decay**(number of blocks behind it + 1);
    what comes before the blocks counts as one more."""
    parts = name.split(".")
    if parts[0] in ("classifier", "norm_out", "image_norm_out", "modulation_out"):
        return 1.0
    if parts[0] == "blocks":
        return decay ** (depth - int(parts[1]))
    if parts[:2] == ["encoder", "blocks"]:
        return decay ** (depth + encoder_depth - int(parts[2]))
    return decay ** (depth + encoder_depth + 1)
