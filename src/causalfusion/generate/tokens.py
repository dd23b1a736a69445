"""The generation loop: condition -> cache -> AR step -> diffusion steps -> append (PAPER section 5).

Shape letters: B images, L image tokens, K kept tokens, n tokens of an AR step, P token dimension.
Rows of the model are B with the condition and, under guidance, B more without it behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.diffusion.process import Process
from causalfusion.diffusion.samplers import Sampler
from causalfusion.documents import Layout, lay_out, pack_context
from causalfusion.factorization import places_of
from causalfusion.generate.guidance import NO_GUIDANCE, Guidance, guidance_of_steps
from causalfusion.generate.noise import NoiseSource
from causalfusion.generate.prompts import Prompts
from causalfusion.generate.settings import diffusion_steps, timestep_tensor
from causalfusion.model.kv_cache import KVCache
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import PackedSequence, Role, Segment, class_segment, image_segment


@dataclass(frozen=True)
class StepEvent:
    """What a diffusion step did, for progress and pictures."""

    ar_step: int
    num_ar_steps: int
    diffusion_step: int
    num_diffusion_steps: int
    timestep: float
    """What the model was told."""
    positions: Tensor
    """(B, n) raster indices of the tokens in work."""
    tokens: Tensor
    """(B, n, P) after the step."""


Watcher = Callable[[StepEvent], None]


@dataclass(frozen=True)
class ImageInProgress:
    """Where the tokens of the image that is generated stand in the sequence."""

    grid_width: int
    index: Tensor | None = None
    """(rows,) which image of its row it is; None: the first."""
    clean_timestep: int | None = None
    """What the model is told of finished tokens: 0 for a Transfusion model, which never saw clean ones."""

    def segment(
        self, role: Role, tokens: Tensor, ar_step: Tensor, positions: Tensor, timestep: float | None
    ) -> Segment:
        """Its tokens (rows, n, P) at raster `positions` (rows, n), noised ones with their timestep."""
        told = self.clean_timestep if timestep is None else timestep
        timesteps = None if told is None else timestep_tensor(told, len(tokens), tokens.device)
        index = None if self.index is None else self.index[: len(positions), None].expand_as(positions)
        return image_segment(role, tokens, ar_step, places_of(positions, self.grid_width), timesteps, index)

    def fork(self, copies: int) -> ImageInProgress:
        if self.index is None:
            return self
        return replace(self, index=self.index.repeat_interleave(copies, dim=0))


@dataclass(frozen=True)
class Context:
    """A cache with the condition (class, texts, images) and, when editing, kept tokens; what comes next."""

    cache: KVCache
    labels: Tensor
    """(rows,) class labels, the null labels behind them under guidance."""
    batch_size: int
    next_ar_step: int
    image: ImageInProgress
    text_lengths: Tensor
    """(rows,) text tokens so far; (0,) for a model without text."""
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
            image=self.image.fork(copies),
            text_lengths=repeated(self.text_lengths),
            text_logits=None if self.text_logits is None else repeated(self.text_logits),
        )


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
    image in progress (B, K, P), at raster positions (B, K)."""
    batch_size, device = len(labels), labels.device
    guided = config.guidance_scale != 1
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, model.config.null_label)])
    image, next_ar_step, lengths = ImageInProgress(model.config.grid_width), 1, torch.zeros(0)
    segments = [class_segment(labels, model.config.num_condition_tokens)]
    if prompts is not None:
        layout, segments = _documents(model, labels, prompts, guided)
        index = (layout.image_row >= 0).sum(1)
        clean_timestep = 0 if prompts.image_context == "noised" else None
        image = replace(image, index=index, clean_timestep=clean_timestep)
        next_ar_step, lengths = int(layout.next_ar_step.max()), layout.text_lengths
    if kept_tokens is not None and kept_positions is not None and kept_tokens.shape[1]:
        repeats = len(labels) // batch_size
        ar_step = torch.full((1, kept_tokens.shape[1]), next_ar_step, device=device)
        kept, positions = kept_tokens.repeat(repeats, 1, 1), kept_positions.repeat(repeats, 1)
        segments.append(image.segment("clean", kept, ar_step, positions, None))
        next_ar_step += 1
    sequence = PackedSequence(tuple(segments))
    capacity = sequence.num_tokens + _room(model, prompts)
    cache = KVCache.allocate(model.config, len(labels), capacity, device=device, dtype=_compute_dtype(device))
    context = Context(cache, labels, batch_size, next_ar_step, image, lengths)
    if not sequence.num_tokens:
        return context
    predictions = model(sequence, cache.attend(sequence))
    cache.commit(sequence)
    if prompts is None:
        return context
    rows = torch.arange(len(labels), device=device)
    return replace(context, text_logits=predictions.text[rows, lengths - 1].float())


def _documents(
    model: Transformer, labels: Tensor, prompts: Prompts, guided: bool
) -> tuple[Layout, list[Segment]]:
    """The documents' segments; under guidance, those without text behind."""
    documents = [*prompts.documents, *(prompts.without_text().documents if guided else ())]
    num_images = 0 if prompts.tokens is None else len(prompts.tokens)
    layout = lay_out(documents, prompts.markers, [1] * num_images).to(labels.device)
    tokens = prompts.tokens
    if tokens is None:
        tokens = torch.zeros(0, model.config.num_tokens, model.config.token_dim, device=labels.device)
    sequence = pack_context(
        layout, labels, model.config.num_condition_tokens, tokens, model.config.grid_width,
        prompts.image_context,
    )  # fmt: skip
    return layout, list(sequence.segments)


def _room(model: Transformer, prompts: Prompts | None) -> int:
    """Tokens that may still come: one image, or text."""
    return max(model.config.num_tokens, model.config.max_text_tokens if prompts is not None else 0)


@torch.no_grad()
def generate_tokens(
    model: Transformer,
    process: Process,
    config: SampleConfig,
    context: Context,
    order: Tensor,
    sizes: list[int],
    noise: NoiseSource,
    watch: Watcher | None = None,
    guided_numbers: Tensor | None = None,
) -> Tensor:
    """Tokens (B, n, P) at the raster positions `order` (B, n), in `len(sizes)` AR steps. Guidance acts on
    all numbers of a token, or on `guided_numbers` (P,) bool.

    Every finished AR step but the last is appended to the cache, once.
    """
    steps = diffusion_steps(config, len(sizes), process)
    guidances = guidance_of_steps(config, sizes, process, guided_numbers)
    finished, start = [], 0
    for index, size in enumerate(sizes):
        positions = order[:, start : start + size]
        ar_step = context.next_ar_step + index
        sampler = process.sampler(config, steps[index])
        step = AutoregressiveStep(model, context, positions, ar_step, guidances[index])

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
        positions: Tensor,
        ar_step: int,
        guidance: Guidance = NO_GUIDANCE,
    ) -> None:
        self.model, self.context, self.positions, self.guidance = model, context, positions, guidance
        self.ar_step = torch.full((1, positions.shape[1]), ar_step, device=positions.device)
        rows = len(context.labels)
        shape = (rows, positions.shape[1], model.config.token_dim)
        blank = torch.zeros(shape, device=positions.device)
        self.attend = context.cache.attend(self._sequence(blank, rows, 0))

    def _sequence(self, tokens: Tensor, rows: int, timestep: float | None) -> PackedSequence:
        """`rows` rows of the tokens (B, n, P), noised unless `timestep` is None."""
        repeats = rows // len(tokens)
        tokens, positions = (
            tokens.repeat(repeats, 1, 1),
            self.positions.repeat(rows // len(self.positions), 1),
        )
        labels = class_segment(self.context.labels[:rows], 0)
        role = "clean" if timestep is None else "noised"
        image = self.context.image.segment(role, tokens, self.ar_step, positions, timestep)
        return PackedSequence((labels, image))

    def denoise(
        self, sampler: Sampler, noise: NoiseSource, index: int, report: Callable[[int, Tensor], None]
    ) -> Tensor:
        tokens = noise.initial(index, self.positions)
        count = len(sampler.timesteps)
        added = noise.during(index, count, self.positions) if sampler.needs_noise else None
        for k, timestep in enumerate(sampler.timesteps):
            prediction = self.predict(tokens, timestep, sampler.shares[k])
            tokens = sampler.step(k, tokens, prediction, None if added is None else added[k])
            report(k, tokens)
        return tokens

    def predict(self, tokens: Tensor, timestep: float, share: float = 0.0) -> Tensor:
        """(B, n, P or, with variances, 2 P) under guidance where it acts; one pass of B rows elsewhere.
        `share`: where on the path the tokens are."""
        rows = self.context.batch_size
        if not self.context.guided or not self.guidance.acts_at(share):
            return self.model(self._sequence(tokens, rows, timestep), self.attend).image.float()
        both = self.model(self._sequence(tokens, 2 * rows, timestep), self.attend).image.float()
        return self.guidance.combine(*both.chunk(2))

    def append(self, tokens: Tensor) -> None:
        """Run the finished tokens through once, clean, and keep their keys and values."""
        sequence = self._sequence(tokens, len(self.context.labels), None)
        self.model(sequence, self.context.cache.attend(sequence))
        self.context.cache.commit(sequence)


def _compute_dtype(device: torch.device) -> torch.dtype:
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32
