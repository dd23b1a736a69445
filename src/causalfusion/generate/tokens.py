"""The generation loop: condition -> cache -> AR step -> diffusion steps -> append (PAPER section 5).

Shape letters: B images, L image tokens, K kept tokens, n tokens of an AR step, P token dimension.
Rows of the model are B with the condition and, under guidance, B more without it behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from causalfusion.config import PredictionType, SampleConfig
from causalfusion.diffusion.samplers import Sampler, make_sampler
from causalfusion.diffusion.schedule import NoiseSchedule
from causalfusion.documents import Layout, lay_out, pack_context
from causalfusion.generate.noise import NoiseSource
from causalfusion.generate.prompts import Prompts
from causalfusion.generate.settings import diffusion_steps, guidance_scales, timestep_tensor
from causalfusion.model.kv_cache import KVCache
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import PackedSequence, Segment, class_segment, image_segment


@dataclass(frozen=True)
class StepEvent:
    """What a diffusion step did, for progress and pictures."""

    ar_step: int
    num_ar_steps: int
    diffusion_step: int
    num_diffusion_steps: int
    timestep: int
    positions: Tensor
    """(B, n) raster indices of the tokens in work."""
    tokens: Tensor
    """(B, n, P) after the step."""


Watcher = Callable[[StepEvent], None]


@dataclass(frozen=True)
class Context:
    """A cache with the condition (class, texts, images) and, when editing, kept tokens; what comes next."""

    cache: KVCache
    labels: Tensor
    """(rows,) class labels, the null labels behind them under guidance."""
    batch_size: int
    next_ar_step: int
    image_index: Tensor | None = None
    """(rows,) which image of its row the next one is; None: the first."""
    image_timestep: int | None = None
    """Of finished tokens: 0 for a Transfusion model, which never saw clean ones."""
    text_lengths: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(rows,) text tokens so far."""
    text_logits: Tensor | None = None
    """(rows, vocabulary) of what follows each row's last text token."""

    @property
    def guided(self) -> bool:
        return len(self.labels) > self.batch_size

    def fork(self, copies: int) -> Context:
        """`copies` variants of every image from one prefill."""

        def repeated(of_rows: Tensor) -> Tensor:
            return of_rows.repeat_interleave(copies, dim=0)

        return replace(
            self,
            cache=self.cache.fork(copies),
            labels=repeated(self.labels),
            batch_size=self.batch_size * copies,
            image_index=None if self.image_index is None else repeated(self.image_index),
            text_lengths=repeated(self.text_lengths),
            text_logits=None if self.text_logits is None else repeated(self.text_logits),
        )

    def image_segment(self, tokens: Tensor, ar_step: Tensor, positions: Tensor) -> Segment:
        """Finished tokens (rows, n, P) of the image in work, as context."""
        timesteps = None
        if self.image_timestep is not None:
            timesteps = timestep_tensor(self.image_timestep, len(tokens), tokens.device)
        return image_segment("clean", tokens, ar_step, positions, timesteps, self.indices(positions))

    def indices(self, positions: Tensor) -> Tensor | None:
        """(rows, n) the index of the image in work, for each of its tokens at `positions` (rows, n)."""
        if self.image_index is None:
            return None
        return self.image_index[: len(positions), None].expand_as(positions)


def prefill(
    model: Transformer,
    labels: Tensor,
    config: SampleConfig,
    *,
    prompts: Prompts | None = None,
    kept_tokens: Tensor | None = None,
    kept_positions: Tensor | None = None,
) -> Context:
    """Cache the class condition (B,), the documents of a model with text, and clean tokens to keep of the
    image in work (B, K, P), at raster positions (B, K)."""
    batch_size = len(labels)
    guided = config.guidance_scale != 1
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, model.config.null_label)])
    cache = KVCache(model.config, 0, 0, device=labels.device, dtype=torch.float32)  # until its size is known
    context = Context(cache, labels, batch_size, 1)
    segments, layout = [class_segment(labels, model.config.num_condition_tokens)], None
    if prompts is not None:
        context, layout, segments = _with_documents(context, prompts, model, guided)
    if kept_tokens is not None and kept_positions is not None and kept_tokens.shape[1]:
        repeats = len(labels) // batch_size
        ar_step = torch.full((1, kept_tokens.shape[1]), context.next_ar_step, device=labels.device)
        segments.append(
            context.image_segment(
                kept_tokens.repeat(repeats, 1, 1), ar_step, kept_positions.repeat(repeats, 1)
            )
        )
        context = replace(context, next_ar_step=context.next_ar_step + 1)
    sequence = PackedSequence(tuple(segments))
    cache = KVCache(
        model.config, len(labels), sequence.num_tokens + _room(model, prompts),
        device=labels.device, dtype=_compute_dtype(labels.device),
    )  # fmt: skip
    context = replace(context, cache=cache)
    if sequence.num_tokens:
        predictions = model(sequence, cache.attend(sequence))
        cache.commit(sequence)
        if layout is not None:
            rows = torch.arange(len(labels), device=labels.device)
            logits = predictions.text[rows, layout.text_lengths - 1].float()
            context = replace(context, text_logits=logits)
    return context


def _with_documents(
    context: Context, prompts: Prompts, model: Transformer, guided: bool
) -> tuple[Context, Layout, list[Segment]]:
    """The documents' segments, and what comes after them; under guidance, those without text behind."""
    device = context.labels.device
    documents = [*prompts.documents, *(prompts.without_text().documents if guided else ())]
    num_images = 0 if prompts.tokens is None else len(prompts.tokens)
    layout = lay_out(documents, prompts.markers, [1] * num_images).to(device)
    tokens = prompts.tokens
    if tokens is None:
        tokens = torch.zeros(0, model.config.num_tokens, model.config.token_dim, device=device)
    sequence = pack_context(
        layout, context.labels, model.config.num_condition_tokens, tokens, prompts.image_context
    )
    context = replace(
        context,
        next_ar_step=int(layout.next_ar_step.max()),
        image_index=(layout.image_row >= 0).sum(1),
        image_timestep=0 if prompts.image_context == "noised" else None,
        text_lengths=layout.text_lengths,
    )
    return context, layout, list(sequence.segments)


def _room(model: Transformer, prompts: Prompts | None) -> int:
    """Tokens that may still come: one image, or text."""
    return max(model.config.num_tokens, model.config.max_text_tokens if prompts is not None else 0)


@torch.no_grad()
def generate_tokens(
    model: Transformer,
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    config: SampleConfig,
    context: Context,
    order: Tensor,
    sizes: list[int],
    noise: NoiseSource,
    watch: Watcher | None = None,
) -> Tensor:
    """Tokens (B, n, P) at the raster positions `order` (B, n), in `len(sizes)` AR steps.

    Every finished AR step but the last is appended to the cache, once.
    """
    steps = diffusion_steps(config, len(sizes), schedule.num_timesteps)
    scales = guidance_scales(config, sizes)
    finished, start = [], 0
    for index, size in enumerate(sizes):
        positions = order[:, start : start + size]
        ar_step = context.next_ar_step + index
        sampler = make_sampler(config, schedule, prediction_type, steps[index])
        step = AutoregressiveStep(model, context, config, positions, ar_step, scales[index])

        def report(k: int, tokens: Tensor, *, s: int = index, at: Tensor = positions, by: Sampler = sampler):
            if watch is not None:
                count = len(by.timesteps)
                watch(StepEvent(s + 1, len(sizes), k + 1, count, by.timesteps[k], at, tokens))

        tokens = step.denoise(sampler, noise, index, report)
        finished.append(tokens)
        start += size
        if index + 1 < len(sizes):
            step.append(tokens)
    return torch.cat(finished, dim=1)


class AutoregressiveStep:
    """One AR step: its tokens go through all diffusion steps against a fixed cache."""

    def __init__(
        self,
        model: Transformer,
        context: Context,
        config: SampleConfig,
        positions: Tensor,
        ar_step: int,
        guidance_scale: float,
    ) -> None:
        self.model, self.context, self.config = model, context, config
        self.positions, self.guidance_scale = positions, guidance_scale
        self.ar_step = torch.full((1, positions.shape[1]), ar_step, device=positions.device)
        rows = len(context.labels)
        shape = (rows, positions.shape[1], model.config.token_dim)
        blank = torch.zeros(shape, device=positions.device)
        self.attend = context.cache.attend(self._sequence(blank, rows, 0))

    def _sequence(self, tokens: Tensor, rows: int, timestep: int | None) -> PackedSequence:
        """`rows` rows of the tokens (B, n, P), noised unless `timestep` is None."""
        repeats = rows // len(tokens)
        tokens, positions = (
            tokens.repeat(repeats, 1, 1),
            self.positions.repeat(rows // len(self.positions), 1),
        )
        labels = class_segment(self.context.labels[:rows], 0)
        if timestep is None:
            return PackedSequence((labels, self.context.image_segment(tokens, self.ar_step, positions)))
        timesteps = timestep_tensor(timestep, rows, tokens.device)
        index = self.context.indices(positions)
        noised = image_segment("noised", tokens, self.ar_step, positions, timesteps, index)
        return PackedSequence((labels, noised))

    def denoise(
        self, sampler: Sampler, noise: NoiseSource, index: int, report: Callable[[int, Tensor], None]
    ) -> Tensor:
        tokens = noise.initial(index, self.positions)
        count = len(sampler.timesteps)
        added = noise.during(index, count, self.positions) if sampler.needs_noise else None
        for k, timestep in enumerate(sampler.timesteps):
            prediction = self.predict(tokens, timestep)
            tokens = sampler.step(k, tokens, prediction, None if added is None else added[k])
            report(k, tokens)
        return tokens

    def predict(self, tokens: Tensor, timestep: int) -> Tensor:
        """(B, n, P) with guidance: ε_u + w (ε_c - ε_u), where w acts; one pass of B rows elsewhere."""
        low, high = self.config.guidance_interval
        rows = self.context.batch_size
        if self.guidance_scale == 1 or not self.context.guided or not low <= timestep <= high:
            return self.model(self._sequence(tokens, rows, timestep), self.attend).image.float()
        both = self.model(self._sequence(tokens, 2 * rows, timestep), self.attend).image.float()
        conditional, unconditional = both.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def append(self, tokens: Tensor) -> None:
        """Run the finished tokens through once, clean, and keep their keys and values."""
        sequence = self._sequence(tokens, len(self.context.labels), None)
        self.model(sequence, self.context.cache.attend(sequence))
        self.context.cache.commit(sequence)


def _compute_dtype(device: torch.device) -> torch.dtype:
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32
