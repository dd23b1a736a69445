"""Where the loss is: by AR progress and by noise level (the paper's figure 4).

Shape letters: B images, L image tokens, P token dimension.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from causalfusion.config import RunConfig
from causalfusion.diffusion.schedule import NoiseSchedule
from causalfusion.model.transformer import Transformer
from causalfusion.train.step import draw, token_errors

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

    def record(self) -> dict[str, object]:
        return {"mean": self.mean, "by_progress": self.by_progress, "by_timestep": self.by_timestep}


@torch.no_grad()
def loss_map(
    model: Transformer, schedule: NoiseSchedule, config: RunConfig, batches: Iterable[tuple[Tensor, Tensor]]
) -> LossMap:
    """Over batches of clean tokens (B, L, P) with labels (B,): always the same draws, no dropped classes,
    one split per image, all AR steps unweighted."""
    factorization = replace(config.factorization, split="per_image", timesteps_per_ar_step=1)
    levels = schedule.num_timesteps
    sums = torch.zeros(len(PROGRESS_BUCKETS), NUM_TIMESTEP_BUCKETS, dtype=torch.float64)
    counts = torch.zeros_like(sums)
    seen = 0
    for tokens, labels in batches:
        indices = range(seen, seen + len(tokens))
        seen += len(tokens)
        draws = draw(
            factorization, model.config, levels, 0.0,
            seed=_EVALUATION_SEED, split_index=0, sample_indices=indices,
        ).to(tokens.device)  # fmt: skip
        errors = token_errors(
            model, model.config, schedule, config.diffusion.prediction_type, tokens, labels, draws
        )
        per_token = errors.mean(-1).double().cpu()
        ar_step = draws.plan.ar_step.cpu()
        start = torch.searchsorted(ar_step, ar_step) / ar_step.shape[1]
        progress = torch.ceil(start * (len(PROGRESS_BUCKETS) - 1)).long()
        timestep = draws.timesteps.cpu().expand_as(per_token) * NUM_TIMESTEP_BUCKETS // levels
        bucket = (progress * NUM_TIMESTEP_BUCKETS + timestep).flatten()
        sums.view(-1).index_add_(0, bucket, per_token.flatten())
        counts.view(-1).index_add_(0, bucket, torch.ones_like(per_token).flatten())
    return _summarise(sums, counts)


def _summarise(sums: Tensor, counts: Tensor) -> LossMap:
    def means(dim: int) -> list[float]:
        return (sums.sum(dim) / counts.sum(dim)).tolist()  # nan where there was no token

    by_progress: dict[str, float] = dict(zip(PROGRESS_BUCKETS, means(1), strict=True))
    return LossMap(float(sums.sum() / counts.sum()), by_progress, means(0))
