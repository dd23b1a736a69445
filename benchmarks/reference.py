"""The workloads: a training step over given splits, and sampling; the reference ones are those of docs/.

Shape letters: B images, L image tokens, P token dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import torch
from torch import nn

from benchmarks.naive import NaiveCache, NaiveTransformer, naive_ema_update, naive_optimizer
from causalfusion.config import (
    DiffusionConfig,
    FactorizationConfig,
    ModelConfig,
    SampleConfig,
    TrainConfig,
)
from causalfusion.diffusion.process import make_process
from causalfusion.factorization import Plan, ar_step_of, loss_weights
from causalfusion.generate.ar_step import AutoregressiveStep
from causalfusion.generate.context import Context, prefill, settle
from causalfusion.generate.noise import ImageNoise
from causalfusion.generate.settings import diffusion_steps, step_sizes
from causalfusion.generate.tokens import generate_tokens
from causalfusion.losses import weighted_mean
from causalfusion.model.arithmetic import Flops, train_step_flops
from causalfusion.model.generation_arithmetic import generation_flops
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import pack_training
from causalfusion.train.ema import EMA
from causalfusion.train.optimizer import make_optimizer


@dataclass(frozen=True)
class Reference:
    model: ModelConfig
    splits: tuple[tuple[int, ...], ...]
    """AR step sizes, one train step each: draws with decay 0.9."""
    batch_size: int
    sample: SampleConfig

    def train_flops(self, index: int) -> Flops:
        return train_step_flops(self.model, self.splits[index], self.batch_size)

    def sample_flops(self) -> Flops:
        sizes = step_sizes(self.sample, self.model.num_tokens, 0)
        steps = diffusion_steps(self.sample, len(sizes), make_process(DiffusionConfig()))
        guided = self.sample.guidance_scale != 1
        return generation_flops(self.model, sizes, steps, guided) * self.batch_size


REFERENCE = Reference(
    model=ModelConfig(
        hidden_size=384, depth=12, num_heads=6, num_class_tokens=64, num_classes=1000, token_dim=16,
        grid_height=16, grid_width=16,
    ),
    splits=(
        (13, 243),
        (45, 7, 74, 64, 66),
        (45, 15, 25, 19, 37, 9, 60, 18, 28),
        (34, 11, 6, 15, 2, 1, 35, 17, 4, 3, 4, 24, 22, 4, 42, 2, 18, 12),
        (53, 102, 3, 53, 31, 10, 4),
    ),
    batch_size=8,
    sample=SampleConfig(num_ar_steps=1, diffusion_steps=[8], guidance_scale=2.0),
)  # fmt: skip

QUICK = Reference(
    model=replace(
        REFERENCE.model,
        hidden_size=128,
        depth=2,
        num_heads=2,
        num_class_tokens=8,
        grid_height=8,
        grid_width=8,
    ),
    splits=((2, 62), (18, 5, 9, 5, 3, 8, 8, 1, 7)),
    batch_size=8,
    sample=SampleConfig(num_ar_steps=1, diffusion_steps=[5], guidance_scale=2.0),
)


def build_model(reference: Reference, naive: bool) -> Transformer:
    """Weights from a fixed seed, the same for both; the layers that start at zero are drawn as well."""
    model = (NaiveTransformer if naive else Transformer)(reference.model)
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    nn.init.normal_(model.image_out.weight, std=0.02, generator=generator)
    return model


class TrainingStep:
    """Forward, backward, clip, AdamW, EMA."""

    def __init__(self, reference: Reference, dtype: torch.dtype, naive: bool) -> None:
        self.reference, self.dtype, self.naive = reference, dtype, naive
        self.model = build_model(reference, naive)
        self.config = TrainConfig(batch_size=reference.batch_size)
        make = naive_optimizer if naive else make_optimizer
        self.optimizer = make(self.model.parameters(), self.config)
        self.ema = EMA(self.model.named_parameters())

    def __call__(self, index: int) -> np.ndarray:
        """One step on the split of that index; returns the loss."""
        sizes = self.reference.splits[index]
        plan, sequence, target = self._inputs(sizes, index)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            prediction = self.model(sequence).image
        errors = (prediction.float() - target).square()
        loss = weighted_mean(errors, loss_weights(plan.ar_step, FactorizationConfig()))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm, foreach=not self.naive)
        self.optimizer.step()
        if self.naive:
            naive_ema_update(self.ema.averages, self.ema.parameters, self.config.ema_decay)
        else:
            self.ema.update(self.config.ema_decay)
        return loss.detach().numpy()

    def _inputs(self, sizes: Sequence[int], index: int):
        model, rows = self.reference.model, self.reference.batch_size
        generator = torch.Generator().manual_seed(index)
        order = torch.stack([torch.randperm(model.num_tokens, generator=generator) for _ in range(rows)])
        plan = Plan(order, ar_step_of(sizes)[None], model.grid_width)
        shape = (rows, model.num_tokens, model.token_dim)
        clean, noise = (torch.randn(shape, generator=generator) for _ in range(2))
        labels = torch.randint(model.num_classes, (rows,), generator=generator)
        timesteps = torch.randint(1000, (rows, 1), generator=generator)
        sequence = pack_training(labels, model.num_condition_tokens, clean, clean + noise, plan, timesteps)
        return plan, sequence, noise


def naive_context(context: Context) -> Context:
    """The context with a cache that attends the naive way."""
    cache = object.__new__(NaiveCache)
    cache.__dict__.update(context.cache.__dict__)
    return replace(context, kv_cache=cache)


@contextmanager
def separate_passes() -> Iterator[None]:
    """Inside, the tokens of a finished AR step pass through the model by themselves, not with the first
    noised ones of the next."""
    together = AutoregressiveStep.finish
    with mock.patch.object(
        AutoregressiveStep, "finish", lambda step, tokens: settle(step.model, together(step, tokens))
    ):
        yield


class Sampling:
    """Prefill, and all diffusion steps of every AR step."""

    def __init__(self, reference: Reference, dtype: torch.dtype, naive: bool) -> None:
        self.reference, self.dtype, self.naive = reference, dtype, naive
        self.model = build_model(reference, naive).eval()
        self.process = make_process(DiffusionConfig())

    @torch.no_grad()
    def __call__(self, index: int) -> np.ndarray:
        """One batch of images, as tokens (B, L, P)."""
        reference, tokens = self.reference, self.reference.model.num_tokens
        indices = list(range(reference.batch_size))
        noise = ImageNoise(0, indices, tokens, reference.model.token_dim)
        order = torch.arange(tokens).expand(reference.batch_size, -1)
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            sizes = step_sizes(reference.sample, tokens, 0)
            context = prefill(
                self.model,
                torch.tensor(indices),
                reference.sample,
                sizes=None if self.naive else sizes,
            )
            if self.naive:
                context = naive_context(context)
            images = generate_tokens(
                self.model,
                self.process,
                reference.sample,
                context,
                order,
                sizes,
                noise,
            )
        return images.float().numpy()
