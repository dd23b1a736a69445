"""Distilling a model into a student of few diffusion steps, as a training with another objective.

Multistep consistency distillation (2403.06807; 2303.01469) with the guidance inside (2210.03142). All AR
steps of a batch are noised to levels of `Segments` and seen by the teacher with and without their condition.
Its guided prediction takes a step towards clean data; from there, the student's own jump to the end of the
part of the path, without gradient, is what its jump from the first level is to be.

Shape letters: N images, m tokens that are predicted (R noised copies), P token dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from causalfusion.codec.tokenizer import Markers
from causalfusion.config import RunConfig
from causalfusion.diffusion.process import NoisedTokens, Process
from causalfusion.diffusion.segments import Segments
from causalfusion.generate.guidance import Guidance
from causalfusion.saved.folder import latest_model, load_model
from causalfusion.train.arranged import Arranged, Errors
from causalfusion.train.batch import TokenBatch
from causalfusion.train.draws import Draws
from causalfusion.train.step import Objective


@dataclass(frozen=True, kw_only=True)
class DistillationObjective(Objective):
    """The errors of a student against its teacher's guided flow, evenly weighted over levels."""

    teacher: nn.Module
    guidance: Guidance
    segments: Segments

    @classmethod
    def of(
        cls, config: RunConfig, process: Process, markers: Markers | None, multiple: int, device: torch.device
    ) -> DistillationObjective:
        """The objective of a run, with its teacher loaded."""
        distill = config.distill
        teacher, _ = load_model(latest_model(Path(distill.teacher)), device=device)
        return cls(
            config,
            process,
            markers,
            multiple,
            teacher=teacher,
            guidance=Guidance(distill.guidance_scale),
            segments=Segments.of(process, distill.steps, distill.teacher_steps),
        )

    def draw(self, batch: TokenBatch, *, seed: int, split_index: int) -> Draws:
        draws = super().draw(batch, seed=seed, split_index=split_index)
        return replace(draws, levels=self.segments.upwards(draws.levels))

    def arrange(self, batch: TokenBatch, draws: Draws, *, read: bool | None = None) -> Arranged:
        piece = super().arrange(batch, draws, read=read)
        if self.guidance.scale == 1:
            return piece
        return replace(piece, unconditional=super().arrange(batch, _without_condition(draws), read=False))

    def errors(self, model: nn.Module, piece: Arranged, num_text: int = 0) -> Errors:
        """Squared errors of the clean tokens, and those of text."""
        if not piece.num_images:
            if self._own_jump:
                with torch.no_grad():
                    super().errors(model, piece, num_text)
            return super().errors(model, piece, num_text)
        noised = piece.noised_from(0, self.process)
        target = self.target(model, piece, noised)
        found, text = self.predict(model, piece, noised, num_text)
        return Errors((self._clean(found, noised) - target).square(), text)

    def weight(self, levels: Tensor) -> Tensor:
        return torch.ones(levels.shape, device=levels.device)

    @property
    def _own_jump(self) -> bool:
        """The student is asked for its target, unless the teacher always goes all the way. That does not
        depend on a batch: processes that share the student's weights or buffers have to run it equally
        often."""
        return self.config.distill.ahead < self.segments.points

    @torch.no_grad()
    def target(self, student: nn.Module, piece: Arranged, noised: NoisedTokens) -> Tensor:
        """(N, m, P) the x_0 that the student is to predict for the noised tokens."""
        segments, unread = self.segments, _unread(piece)
        start = place = segments.places(noised.levels)
        end = segments.end_of(start)
        state = noised
        for _ in range(self.config.distill.ahead):
            clean = self._guided(unread, state)
            after = torch.maximum(place - 1, end)
            moved = segments.jump(state.noised, clean, place, after)
            state = replace(state, noised=moved, levels=segments.at(after))
            place = after
        clean = segments.by_one_jump(noised.noised, state.noised, start, place)
        if not self._own_jump:
            return clean
        own = self._clean(self.predict(student, unread, state)[0], state)
        share = segments.share(start, place, end)[:, :, None].to(own.dtype)
        return share * clean + (1 - share) * own

    def _guided(self, piece: Arranged, noised: NoisedTokens) -> Tensor:
        """(N, m, P) the teacher's x_0 under guidance."""
        found = self._clean(self.predict(self.teacher, piece, noised)[0], noised)
        if piece.unconditional is None:
            return found
        without = self._clean(self.predict(self.teacher, piece.unconditional, noised)[0], noised)
        return self.guidance.combine(found, without)

    def _clean(self, prediction: Tensor, noised: NoisedTokens) -> Tensor:
        """The x_0 of a prediction, float32; variances behind it have no part in it."""
        prediction = prediction[..., : noised.noised.shape[-1]].float()
        return self.process.to_clean(prediction, noised.noised, noised.levels)


def _without_condition(draws: Draws) -> Draws:
    """The draws of the same images, with every condition dropped."""
    text = tuple(replace(draw, drop_caption=True, drop_class=True) for draw in draws.text)
    return replace(draws, drop_class=torch.ones_like(draws.drop_class), text=text)


def _unread(piece: Arranged) -> Arranged:
    """The piece with texts that are there for images alone."""
    return piece if piece.layout is None else replace(piece, layout=replace(piece.layout, read=False))
