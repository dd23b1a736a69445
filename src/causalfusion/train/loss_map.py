"""Where the loss is: by AR progress and by noise level (the paper's figure 4), and in the text.

Shape letters: B images, L image tokens, P token dimension.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from causalfusion.codec.tokenizer import Markers
from causalfusion.config import RunConfig
from causalfusion.diffusion.process import Process
from causalfusion.documents import NO_TARGET
from causalfusion.model.transformer import Transformer
from causalfusion.train.batch import TokenBatch
from causalfusion.train.step import Arranged, Errors, Objective

PROGRESS_BUCKETS: tuple[str, ...] = ("no context", "0-25 %", "25-50 %", "50-75 %", "75-100 %")
NUM_TIMESTEP_BUCKETS = 10
_EVALUATION_SEED = 20_241_216


@dataclass(frozen=True)
class LossMap:
    """Mean squared error of the prediction, with the number of tokens behind each mean."""

    mean: float
    by_progress: dict[str, float]
    """By the share of the image that is context when the token's AR step starts."""
    by_timestep: list[float]
    """In ten equal ranges of t, from the least noise to the most."""
    text: dict[str, float] = field(default_factory=dict)
    """Cross-entropy per text token by the first element of its document: `caption_first` is a language model,
    `image_first` captions. Empty for a model without text."""

    def record(self) -> dict[str, object]:
        record: dict[str, object] = {
            "mean": self.mean,
            "by_progress": self.by_progress,
            "by_timestep": self.by_timestep,
        }
        if self.text:
            record["text"] = self.text
            record["perplexity"] = {name: math.exp(min(loss, 100.0)) for name, loss in self.text.items()}
        return record


@torch.no_grad()
def loss_map(
    model: Transformer,
    process: Process,
    config: RunConfig,
    batches: Iterable[TokenBatch],
    markers: Markers | None = None,
    kind: type[Objective] = Objective,
) -> LossMap:
    """Over these batches: always the same draws, nothing dropped, one split per image (in a bidirectional
    context, per batch), all AR steps unweighted. Another `kind` of objective may have no loss of images."""
    split = "per_image" if config.model.context == "causal" else "per_batch"
    config = replace(
        config,
        factorization=replace(config.factorization, split=split, timesteps_per_ar_step=1),
        text=replace(config.text, caption_dropout=0.0),
        train=replace(config.train, class_dropout=0.0, attention="auto"),
    )
    objective = kind(config, process, markers)
    sums = torch.zeros(len(PROGRESS_BUCKETS), NUM_TIMESTEP_BUCKETS, dtype=torch.float64)
    counts = torch.zeros_like(sums)
    of_text: dict[str, list[Tensor]] = defaultdict(list)
    group = 1 if markers is None else config.text.examples_per_sequence
    for batch in batches:
        count = len(batch.labels)  # examples, of which documents may have no image or several
        batch = batch.slice(slice(count // group * group))
        if not len(batch.labels):  # too few for a document
            continue
        split_index = int(batch.sample_indices[0]) if split == "per_batch" else 0
        draws = objective.draw(batch, seed=_EVALUATION_SEED, split_index=split_index)
        piece = objective.arrange(batch, draws).to(batch.tokens.device)
        found = objective.errors(model, piece)
        _add_text(of_text, found, piece)
        if not found.image.numel():
            continue
        bucket = _buckets(piece, process, objective.first_asked(piece))
        sums.view(-1).index_add_(0, bucket, found.image.mean(-1).cpu().double().flatten())
        counts.view(-1).index_add_(0, bucket, torch.ones(len(bucket), dtype=torch.float64))
    return _summarise(sums, counts, {name: float(torch.cat(parts).mean()) for name, parts in of_text.items()})


def _buckets(piece: Arranged, process: Process, first: int) -> Tensor:
    """(images * tokens,) the bucket of each token from the plan's `first` on, by AR progress and noise
    level."""
    ar_step = piece.plan.ar_step.cpu()
    num_images, num_tokens = piece.tokens.shape[:2]
    start = torch.searchsorted(ar_step, ar_step) / num_tokens
    progress = torch.ceil(start * (len(PROGRESS_BUCKETS) - 1)).long()
    level = (process.shares(piece.levels_from(first).cpu()).double() * NUM_TIMESTEP_BUCKETS).long()
    level = level.clamp(max=NUM_TIMESTEP_BUCKETS - 1)
    bucket = progress[:, first:] * NUM_TIMESTEP_BUCKETS + level.expand(-1, num_tokens - first)
    return bucket.expand(num_images, -1).flatten()


def _add_text(of_text: dict[str, list[Tensor]], found: Errors, piece: Arranged) -> None:
    """The cross-entropies of each text target, under the arrangement of its document; none where texts are
    there for images alone."""
    if piece.layout is None or not piece.layout.read:
        return
    for row, arrangement in enumerate(piece.text):
        targets = piece.layout.text_targets[row] != NO_TARGET
        of_text[arrangement].append(found.text[row][targets].cpu().double())


def _summarise(sums: Tensor, counts: Tensor, text: dict[str, float]) -> LossMap:
    def means(dim: int) -> list[float]:
        return (sums.sum(dim) / counts.sum(dim)).tolist()  # nan where there was no token

    by_progress: dict[str, float] = dict(zip(PROGRESS_BUCKETS, means(1), strict=True))
    return LossMap(float(sums.sum() / counts.sum()), by_progress, means(0), text)
