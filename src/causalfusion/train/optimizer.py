"""AdamW as in PAPER section 4, and the learning rate as a function of the images seen."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from causalfusion.config import TrainConfig


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW; the learning rate is set before every step."""
    return torch.optim.AdamW(
        [p for p in parameters if p.requires_grad],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: TrainConfig, images_seen: int) -> float:
    """Linear warm-up over `warmup_images`, then constant or a cosine to zero at `images`."""
    if images_seen < config.warmup_images:
        return config.lr * (images_seen + config.batch_size) / (config.warmup_images + config.batch_size)
    if config.lr_schedule == "constant":
        return config.lr
    span = max(config.images - config.warmup_images, 1)
    progress = min((images_seen - config.warmup_images) / span, 1.0)
    return config.lr * (1 + math.cos(math.pi * progress)) / 2
