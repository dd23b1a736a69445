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
from causalfusion.diffusion.schedule import NoiseSchedule
from causalfusion.documents import NO_TARGET
from causalfusion.model.transformer import Transformer
from causalfusion.train.arrange import used_images
from causalfusion.train.step import DocumentErrors, Draws, TokenBatch, document_errors, draw, token_errors

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
    schedule: NoiseSchedule,
    config: RunConfig,
    batches: Iterable[TokenBatch],
    markers: Markers | None = None,
) -> LossMap:
    """Over these batches: always the same draws, nothing dropped, one split per image, all AR steps
    unweighted."""
    factorization = replace(config.factorization, split="per_image", timesteps_per_ar_step=1)
    text = replace(config.text, caption_dropout=0.0)
    prediction_type, levels = config.diffusion.prediction_type, schedule.num_timesteps
    sums = torch.zeros(len(PROGRESS_BUCKETS), NUM_TIMESTEP_BUCKETS, dtype=torch.float64)
    counts = torch.zeros_like(sums)
    of_text: dict[str, list[Tensor]] = defaultdict(list)
    group = 1 if markers is None else text.examples_per_sequence
    for batch in batches:
        batch = batch.slice(slice(len(batch.tokens) // group * group))
        if not len(batch.tokens):  # too few for a document
            continue
        draws = draw(
            factorization, model.config, levels, 0.0, seed=_EVALUATION_SEED, split_index=0,
            sample_indices=batch.sample_indices.tolist(), text=None if markers is None else text,
        ).to(batch.tokens.device)  # fmt: skip
        if markers is None:
            errors = token_errors(
                model, model.config, schedule, prediction_type, batch.tokens, batch.labels, draws
            )
        else:
            found = document_errors(
                model, model.config, text, markers, schedule, prediction_type, batch, draws
            )
            errors, draws = found.image, draws.images(used_images(draws.text).to(batch.tokens.device))
            _add_text(of_text, found, draws, group)
        bucket = _buckets(draws, errors.shape[1], levels)
        sums.view(-1).index_add_(0, bucket, errors.mean(-1).double().cpu().flatten())
        counts.view(-1).index_add_(0, bucket, torch.ones(len(bucket), dtype=torch.float64))
    return _summarise(sums, counts, {name: float(torch.cat(parts).mean()) for name, parts in of_text.items()})


def _buckets(draws: Draws, num_tokens: int, levels: int) -> Tensor:
    """(images * tokens,) the bucket of each token, by AR progress and noise level."""
    ar_step = draws.plan.ar_step.cpu()
    start = torch.searchsorted(ar_step, ar_step) / ar_step.shape[1]
    progress = torch.ceil(start * (len(PROGRESS_BUCKETS) - 1)).long()
    timestep = draws.timesteps.cpu().expand(-1, num_tokens) * NUM_TIMESTEP_BUCKETS // levels
    return (progress * NUM_TIMESTEP_BUCKETS + timestep).flatten()


def _add_text(of_text: dict[str, list[Tensor]], found: DocumentErrors, draws: Draws, group: int) -> None:
    """The cross-entropies of each text target, under the arrangement of its document."""
    for row, draw_of_row in enumerate(draws.text[::group]):
        targets = found.text_targets[row] != NO_TARGET
        of_text[draw_of_row.arrangement].append(found.text[row][targets].double().cpu())


def _summarise(sums: Tensor, counts: Tensor, text: dict[str, float]) -> LossMap:
    def means(dim: int) -> list[float]:
        return (sums.sum(dim) / counts.sum(dim)).tolist()  # nan where there was no token

    by_progress: dict[str, float] = dict(zip(PROGRESS_BUCKETS, means(1), strict=True))
    return LossMap(float(sums.sum() / counts.sum()), by_progress, means(0), text)
