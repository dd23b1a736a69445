"""The context of generation: the condition and finished tokens, in a cache or to be read anew.

Shape letters: B images, L image tokens, K known tokens, n tokens of an AR step, P token dimension, D width.
Rows of the model are B with the condition and, under guidance, B more without it behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from causalfusion.config import ModelConfig, SampleConfig
from causalfusion.documents import Layout, lay_out, pack_context
from causalfusion.factorization import grid_tensor, places_of
from causalfusion.generate.prompts import Prompts
from causalfusion.generate.settings import timestep_tensor
from causalfusion.model.kv_cache import KVCache
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import PackedSequence, Role, Segment, class_segment, image_segment


@dataclass(frozen=True)
class ImageInProgress:
    """Where the tokens of the image that is generated stand in the sequence."""

    height: int
    """Rows of its tokens."""
    width: int
    """Columns of its tokens."""
    grid: Tensor | None = None
    """(1, 2) these numbers, where they are not those of the model's grid."""
    index: Tensor | None = None
    """(rows,) which image of its row it is; None: the first."""
    text_place: Tensor | None = None
    """(rows,) its place among the text positions of its row; None: a model without text."""
    clean_timestep: float | None = None
    """Timestep of finished tokens, for a model that never saw clean ones (0 for Transfusion); None: none."""

    def segment(
        self, role: Role, tokens: Tensor, ar_step: Tensor, positions: Tensor, timestep: float | None
    ) -> Segment:
        """Its tokens (rows, n, P) at raster `positions` (rows, n), noised ones with their timestep."""
        told = self.clean_timestep if timestep is None else timestep
        timesteps = None if told is None else timestep_tensor(told, len(tokens), tokens.device)
        index, text_places = (
            None if of_rows is None else of_rows[: len(positions), None].expand_as(positions)
            for of_rows in (self.index, self.text_place)
        )
        places = places_of(positions, self.width)
        return image_segment(
            role, tokens, ar_step, places, timesteps, index, self.grid, text_places=text_places
        )

    def asked(self, rows: int, ar_step: Tensor, positions: Tensor) -> Segment:
        """Mask tokens at raster `positions` (rows, n)."""
        nothing = torch.empty(rows, positions.shape[1], 0, device=positions.device)
        return self.segment("asked", nothing, ar_step, positions, None)

    @classmethod
    def of_size(
        cls, model: ModelConfig, grid: tuple[int, int] | None, device: torch.device
    ) -> ImageInProgress:
        """An image of this grid, or of the model's."""
        return cls(*(grid or (model.grid_height, model.grid_width)), grid_tensor(model, grid, device))

    def fork(self, copies: int) -> ImageInProgress:
        index, text_place = (
            None if of_rows is None else of_rows.repeat_interleave(copies, dim=0)
            for of_rows in (self.index, self.text_place)
        )
        return replace(self, index=index, text_place=text_place)


@dataclass(frozen=True)
class KnownTokens:
    """Finished tokens of the image in progress."""

    tokens: Tensor
    """(B, K, P)."""
    positions: Tensor
    """(B, K) raster indices."""


@dataclass(frozen=True)
class Context:
    """The condition (class, texts, images) and, when editing, kept tokens; what comes next."""

    kv_cache: KVCache | None
    """None in a bidirectional context, which is computed anew at every AR step."""
    labels: Tensor
    """(rows,) class labels, the null labels behind them under guidance."""
    batch_size: int
    next_ar_step: int
    image: ImageInProgress
    text_lengths: Tensor
    """(rows,) text tokens so far; (0,) for a model without text."""
    text_logits: Tensor | None = None
    """(rows, vocabulary) of what follows each row's last text token."""
    condition: Tensor | None = None
    """(rows, 1, D) of the next image token, for a head that asks by the token before."""
    known: KnownTokens | None = None
    """The finished tokens of a bidirectional context."""
    pending: Segment | None = None
    """Finished tokens that are not in the cache yet."""

    @property
    def cache(self) -> KVCache:
        """That of a causal context."""
        assert self.kv_cache is not None, "a bidirectional context has no cache"
        return self.kv_cache

    @property
    def guided(self) -> bool:
        return len(self.labels) > self.batch_size

    def sequence(self, *segments: Segment) -> PackedSequence:
        """Tokens behind the cached ones, those that are pending first."""
        pending = () if self.pending is None else (self.pending,)
        rows = len(segments[-1].values) if segments else len(self.labels)
        return PackedSequence((class_segment(self.labels[:rows], 0), *pending, *segments))

    def settled(self) -> Context:
        """Without pending tokens, after a pass over what `sequence` gave: the cache keeps their keys and
        values."""
        if self.pending is None:
            return self
        self.cache.commit(self.sequence())
        return replace(self, pending=None)

    def fork(self, copies: int) -> Context:
        """`copies` variants of every image from one prefill."""
        assert self.pending is None, "finished tokens belong to one variant"

        def repeated(of_rows: Tensor) -> Tensor:
            return of_rows.repeat_interleave(copies, dim=0)

        return replace(
            self,
            kv_cache=None if self.kv_cache is None else self.kv_cache.fork(copies),
            labels=repeated(self.labels),
            batch_size=self.batch_size * copies,
            image=self.image.fork(copies),
            text_lengths=repeated(self.text_lengths),
            text_logits=None if self.text_logits is None else repeated(self.text_logits),
            condition=None if self.condition is None else repeated(self.condition),
            known=None if self.known is None else KnownTokens(*map(repeated, vars(self.known).values())),
        )


def settle(model: Transformer, context: Context) -> Context:
    """The context with its pending tokens in the cache, in a pass of their own."""
    if context.pending is None:
        return context
    sequence = context.sequence()
    model(sequence, context.cache.attend(sequence))
    return context.settled()


@dataclass(frozen=True)
class Condition:
    """What stands before an image: its class and texts."""

    segments: tuple[Segment, ...]
    image: ImageInProgress
    """The image that comes next."""
    next_ar_step: int
    text_lengths: Tensor
    """(rows,) text tokens; (0,) for a model without text."""


def condition_of(
    config: ModelConfig,
    labels: Tensor,
    prompts: Prompts | None,
    image: ImageInProgress,
    *,
    guided: bool = False,
) -> Condition:
    """The classes (rows,), and the documents of a model with text, before `image`. `guided`: the documents
    without their text stand behind them."""
    segment = class_segment(labels, config.num_condition_tokens)
    segment = replace(segment, asks_next=config.head.ask == "previous")
    if prompts is None:
        return Condition((segment,), image, 1, torch.zeros(0))
    layout, segments = _documents(config, labels, prompts, guided, image)
    index = (layout.image_row >= 0).sum(1)
    clean_timestep = 0 if prompts.image_context == "noised" else None
    lengths = layout.text_lengths
    image = replace(image, index=index, text_place=lengths + index, clean_timestep=clean_timestep)
    return Condition(tuple(segments), image, int(layout.next_ar_step.max()), lengths)


def prefill(
    model: Transformer,
    labels: Tensor,
    config: SampleConfig,
    *,
    prompts: Prompts | None = None,
    kept_tokens: Tensor | None = None,
    kept_positions: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    sizes: Sequence[int] | None = None,
) -> Context:
    """Cache the class condition (B,), the documents of a model with text, and clean tokens to keep of the
    image in progress (B, K, P), at raster positions (B, K). `grid`: rows and columns of the image in progress
    and of those in the documents, by default those of the model. `sizes`: of the AR steps that come, and
    nothing after them; None: not known."""
    batch_size, device = len(labels), labels.device
    guided = config.guidance_scale != 1
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, model.config.null_label)])
    image = ImageInProgress.of_size(model.config, grid, device)
    if model.config.context == "bidirectional":
        if kept_tokens is None or kept_positions is None:
            kept_tokens = torch.zeros(batch_size, 0, model.config.token_dim, device=device)
            kept_positions = torch.zeros(batch_size, 0, dtype=torch.int64, device=device)
        known = KnownTokens(kept_tokens, kept_positions)
        return Context(None, labels, batch_size, 1, image, torch.zeros(0), known=known)
    condition = condition_of(model.config, labels, prompts, image, guided=guided)
    segments, image, next_ar_step = list(condition.segments), condition.image, condition.next_ar_step
    lengths = condition.text_lengths
    if kept_tokens is not None and kept_positions is not None and kept_tokens.shape[1]:
        repeats = len(labels) // batch_size
        ar_step = torch.full((1, kept_tokens.shape[1]), next_ar_step, device=device)
        kept, positions = kept_tokens.repeat(repeats, 1, 1), kept_positions.repeat(repeats, 1)
        segments.append(image.segment("clean", kept, ar_step, positions, None))
        next_ar_step += 1
    sequence = PackedSequence(tuple(segments))
    if sizes is not None:
        room = _room_for(sizes, sequence.num_tokens, device)
    else:
        room = max(image.height * image.width, model.config.max_text_tokens if prompts is not None else 0)
    capacity = sequence.num_tokens + room
    cache = KVCache.allocate(model.config, len(labels), capacity, device=device, dtype=_compute_dtype(device))
    context = Context(cache, labels, batch_size, next_ar_step, image, lengths)
    if not sequence.num_tokens:
        return context
    predictions = model(sequence, cache.attend(sequence), text_token=None if prompts is None else lengths - 1)
    cache.commit(sequence)
    if model.config.head.ask == "previous":
        return replace(context, condition=predictions.condition)
    if prompts is None:
        return context
    assert predictions.text is not None, "documents have text"
    return replace(context, text_logits=predictions.text[:, 0])


def _room_for(sizes: Sequence[int], context: int, device: torch.device) -> int:
    """Tokens that the cache takes behind `context` others. On a CPU, the last AR step passes by a cache that
    is no longer than itself: copying that for each layer takes less than 2 % of the layer's time."""
    before = sum(sizes[:-1])
    passes_by = device.type == "cpu" and context + before <= sizes[-1]
    return before if passes_by else before + sizes[-1]


def _documents(
    config: ModelConfig, labels: Tensor, prompts: Prompts, guided: bool, image: ImageInProgress
) -> tuple[Layout, list[Segment]]:
    """The documents' segments; under guidance, those without text behind."""
    documents = [*prompts.documents, *(prompts.without_text().documents if guided else ())]
    num_images = 0 if prompts.tokens is None else len(prompts.tokens)
    layout = lay_out(documents, prompts.markers, [1] * num_images).to(labels.device)
    tokens = prompts.tokens
    if tokens is None:
        length = image.height * image.width
        tokens = torch.zeros(0, length, config.token_dim, device=labels.device)
    sequence = pack_context(
        layout,
        labels,
        config.num_condition_tokens,
        tokens,
        image.width,
        prompts.image_context,
        image.grid,
    )
    return layout, list(sequence.segments)


def _compute_dtype(device: torch.device) -> torch.dtype:
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32
