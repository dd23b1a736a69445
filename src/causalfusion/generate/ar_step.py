"""One AR step: its tokens go through all diffusion steps against a fixed context.

A joint head runs the transformer in every diffusion step. A per-token head has it run once, for the
conditions of the step's tokens, and denoises them by itself.

Shape letters: B images, n tokens of the AR step, m tokens still to come, P token dimension, D width. Rows are
B with the condition and, under guidance, B more without it behind them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from causalfusion.diffusion.samplers import Sampler
from causalfusion.factorization import places_of
from causalfusion.generate.context import Context, KnownTokens, settle
from causalfusion.generate.guidance import NO_GUIDANCE, Guidance
from causalfusion.generate.noise import NoiseSource
from causalfusion.generate.settings import timestep_tensor
from causalfusion.model.kv_cache import CachedAttend
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import Segment, pack_bidirectional


def make_step(
    model: Transformer, context: Context, to_come: Tensor, size: int, guidance: Guidance = NO_GUIDANCE
) -> AutoregressiveStep:
    """The AR step of the first `size` of the raster positions `to_come` (B, m)."""
    if not model.config.per_token:
        return JointStep(model, context, to_come[:, :size], guidance)
    if context.known is not None:
        return RereadingStep(model, context, to_come, size, guidance)
    if model.config.head.ask == "previous":
        return NextTokenStep(model, context, to_come[:, :size], guidance)
    return AskingStep(model, context, to_come[:, :size], guidance)


class AutoregressiveStep(ABC):
    def __init__(self, model: Transformer, context: Context, positions: Tensor, guidance: Guidance) -> None:
        self.model, self.context, self.positions, self.guidance = model, context, positions, guidance
        self.ar_step = torch.full((1, positions.shape[1]), context.next_ar_step, device=positions.device)

    def denoise(
        self,
        sampler: Sampler,
        tokens: Tensor,
        noise: NoiseSource,
        index: int,
        report: Callable[[int, Tensor], None],
    ) -> Tensor:
        """Clean tokens (B, n, P) of noised ones, or of noise."""
        count = len(sampler.timesteps)
        added = noise.during(index, count, self.positions) if sampler.needs_noise else None
        for k, timestep in enumerate(sampler.timesteps):
            given = None if added is None else added[k]
            tokens = sampler.enter(k, tokens, given)
            prediction = self.predict(tokens, timestep, sampler.shares[k])
            tokens = sampler.step(k, tokens, prediction, given)
            report(k, tokens)
        return tokens

    def predict(self, tokens: Tensor, timestep: float, share: float = 0.0) -> Tensor:
        """(B, n, P or, with variances, 2 P) under guidance where it acts; one pass of B rows elsewhere.
        `share`: where on the path the tokens are."""
        rows = self.context.batch_size
        if not self.context.guided or not self.guidance.acts_at(share):
            return self._predict(tokens, rows, timestep).float()
        conditional, unconditional = self._predict(tokens, 2 * rows, timestep).float().chunk(2)
        return self.guidance.combine(conditional, unconditional, share)

    @abstractmethod
    def _predict(self, tokens: Tensor, rows: int, timestep: float) -> Tensor:
        """Predictions (rows, n, P or 2 P) for tokens (B, n, P)."""

    def append(self, tokens: Tensor) -> Context:
        """The context with the finished tokens (B, n, P): run through once, clean, their keys and values
        kept."""
        return settle(self.model, self.finish(tokens))

    def finish(self, tokens: Tensor) -> Context:
        """As `append`, but the tokens run through the model together with those of the next AR step, in its
        first pass: the mask lets nobody see what `append` would not show him."""
        context, rows = settle(self.model, self.context), len(self.context.labels)
        pending = self._segment(tokens, rows, None)
        return replace(context, pending=pending, next_ar_step=context.next_ar_step + 1)

    def _segment(self, tokens: Tensor, rows: int, timestep: float | None) -> Segment:
        """`rows` rows of the tokens (B, n, P), noised unless `timestep` is None."""
        tokens = tokens.repeat(rows // len(tokens), 1, 1)
        role = "clean" if timestep is None else "noised"
        return self.context.image.segment(role, tokens, self.ar_step, self._positions(rows), timestep)

    def _positions(self, rows: int) -> Tensor:
        return self.positions.repeat(rows // len(self.positions), 1)


class JointStep(AutoregressiveStep):
    """Noised tokens go through the transformer."""

    @cached_property
    def _attend(self) -> CachedAttend:
        """That of all rows, once nothing is pending."""
        rows = len(self.context.labels)
        blank = torch.zeros(rows, self.positions.shape[1], self.model.config.token_dim)
        return self.context.cache.attend(
            self.context.sequence(self._segment(blank.to(self.positions.device), rows, 0))
        )

    def _predict(self, tokens: Tensor, rows: int, timestep: float) -> Tensor:
        if rows < len(self.context.labels):
            self.context = settle(self.model, self.context)
        sequence = self.context.sequence(self._segment(tokens, rows, timestep))
        if self.context.pending is None:
            return self.model(sequence, self._attend).image
        image = self.model(sequence, self.context.cache.attend(sequence)).image
        self.context = self.context.settled()
        return image[:, -tokens.shape[1] :]


class HeadStep(AutoregressiveStep):
    """The per-token head denoises the tokens under conditions that the transformer gives once."""

    condition: Tensor
    """(rows, n, D)."""

    @cached_property
    def _projected(self) -> Tensor:
        """(rows, n, W) the conditions in the head's width."""
        assert self.model.head is not None, "a per-token head"
        return self.model.head.condition_in(self.condition)

    def _predict(self, tokens: Tensor, rows: int, timestep: float) -> Tensor:
        assert self.model.head is not None, "a per-token head"
        told = timestep_tensor(timestep, rows, tokens.device)
        tokens = tokens.repeat(rows // len(tokens), 1, 1)
        return self.model.head.denoise(self._projected[:rows], tokens, told)


class AskingStep(HeadStep):
    """Mask tokens in the places of the step's tokens ask the cached context."""

    def __init__(self, model: Transformer, context: Context, positions: Tensor, guidance: Guidance) -> None:
        if context.pending is not None and context.pending.predicts:  # its outputs are no conditions
            context = settle(model, context)
        super().__init__(model, context, positions, guidance)
        rows = len(context.labels)
        asked = context.image.asked(rows, self.ar_step, self._positions(rows))
        sequence = context.sequence(asked)
        condition = model(sequence, context.cache.attend(sequence)).condition
        assert condition is not None, "a per-token head has conditions"
        self.context, self.condition = context.settled(), condition


class NextTokenStep(HeadStep):
    """The output of the token before is the condition; it is in the context."""

    def __init__(self, model: Transformer, context: Context, positions: Tensor, guidance: Guidance) -> None:
        super().__init__(model, context, positions, guidance)
        assert context.condition is not None, "the class tokens ask for the first token"
        self.condition = context.condition

    def finish(self, tokens: Tensor) -> Context:
        cache = self.context.cache
        segment = self._segment(tokens, len(self.context.labels), None)
        sequence = self.context.sequence(replace(segment, asks_next=True))
        condition = self.model(sequence, cache.attend(sequence)).condition
        cache.commit(sequence)
        return replace(self.context, condition=condition, next_ar_step=self.context.next_ar_step + 1)


class RereadingStep(HeadStep):
    """Known tokens and mask tokens for all that are still to come are computed anew, and see each other."""

    def __init__(
        self, model: Transformer, context: Context, to_come: Tensor, size: int, guidance: Guidance
    ) -> None:
        super().__init__(model, context, to_come[:, :size], guidance)
        known, rows, width = context.known, len(context.labels), context.image.width
        assert known is not None, "a bidirectional context"
        repeats = rows // len(known.tokens)
        sequence = pack_bidirectional(
            context.labels,
            model.config.num_condition_tokens,
            known.tokens.repeat(repeats, 1, 1),
            places_of(known.positions.repeat(repeats, 1), width),
            places_of(to_come.repeat(rows // len(to_come), 1), width),
            grid=context.image.grid,
        )
        condition = model(sequence).condition
        assert condition is not None, "a per-token head has conditions"
        self.condition = condition[:, :size]

    def finish(self, tokens: Tensor) -> Context:
        known = self.context.known
        assert known is not None, "a bidirectional context"
        positions = self.positions.expand(len(tokens), -1)
        known = KnownTokens(
            torch.cat([known.tokens, tokens], dim=1), torch.cat([known.positions, positions], dim=1)
        )
        return replace(self.context, known=known, next_ar_step=self.context.next_ar_step + 1)
