"""The programs of models with a per-token head: the transformer gives each token a condition, once in an AR
step, and the head denoises the tokens under it.

Shape letters: B rows, T context tokens, n tokens of an AR step, V finished tokens, m mask tokens, P token
dimension, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from causalfusion.factorization import places_of
from causalfusion.interop.exported.arguments import Argument
from causalfusion.interop.exported.programs import (
    LABELS,
    SEEN,
    TIMESTEPS,
    Append,
    Condition,
    ContextAttend,
    Program,
    classes_of,
)
from causalfusion.mask import dense_mask
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import PackedSequence, asked_segment, pack_bidirectional


def conditions(program: Program, letter: str | int) -> Argument:
    return Argument("condition", ("B", letter, program.config.image_size), "condition of each token")


class Head(Program):
    name = "step"
    summary = "One denoising step of tokens under their conditions: the per-token head alone."

    def part_of(self, model: Transformer) -> nn.Module:
        assert model.head is not None, "a per-token head"
        return model.head

    @property
    def inputs(self) -> list[Argument]:
        tokens = Argument("tokens", ("B", "n", self.config.token_dim), "image tokens")
        return [conditions(self, "n"), tokens, TIMESTEPS]

    @property
    def outputs(self) -> list[Argument]:
        return self.predicted()

    def forward(self, condition: Tensor, tokens: Tensor, timesteps: Tensor) -> Tensor:
        return self.model(condition, tokens, timesteps[:, None])


class Ask(Program):
    name = "ask"
    summary = "The conditions of tokens that are to come, against the context."

    @property
    def inputs(self) -> list[Argument]:
        _, positions = self.tokens("n")
        return [positions, *self.cached("T"), SEEN, *self.extra()]

    @property
    def outputs(self) -> list[Argument]:
        return [conditions(self, "n")]

    def forward(
        self,
        positions: Tensor,
        keys: Tensor,
        values: Tensor,
        seen: Tensor,
        labels: Tensor | None = None,
        text_place: Tensor | None = None,
    ) -> Tensor:
        nothing = keys.new_empty(*positions.shape, 0)
        asked = replace(self.image(nothing, positions, 1, None, text_place), role="asked", timesteps=None)
        return self.model(*self.against(asked, labels, keys, values, seen)).condition


class Reread(Program):
    name = "ask"
    summary = "The conditions of tokens that are to come: finished tokens are read anew, all see each other."

    @property
    def inputs(self) -> list[Argument]:
        _, asked = self.tokens("m", positions="asked_positions")
        return [LABELS, *self.tokens("V", "finished", "finished_positions"), asked]

    @property
    def outputs(self) -> list[Argument]:
        return [conditions(self, "m")]

    def forward(
        self, labels: Tensor, finished: Tensor, finished_positions: Tensor, asked_positions: Tensor
    ) -> Tensor:
        width, count = self.config.grid_width, self.config.num_condition_tokens
        known, asked = places_of(finished_positions, width), places_of(asked_positions, width)
        sequence = pack_bidirectional(labels, count, finished, known, asked)
        return self.model(sequence, backend="dense").condition


class Begin(Program):
    name = "begin"
    summary = "The conditions of tokens that are to come where none is finished."

    @property
    def inputs(self) -> list[Argument]:
        _, asked = self.tokens("m", positions="asked_positions")
        return [LABELS, asked]

    @property
    def outputs(self) -> list[Argument]:
        return [conditions(self, "m")]

    def forward(self, labels: Tensor, asked_positions: Tensor) -> Tensor:
        width, count = self.config.grid_width, self.config.num_condition_tokens
        steps = torch.ones_like(asked_positions)
        asked = asked_segment(labels.shape[0], steps, places_of(asked_positions, width))
        classes = classes_of(labels, count)
        classes = replace(classes, role="noised", ar_step=classes.ar_step + 1)
        return self.model(PackedSequence((classes, asked)), backend="dense").condition


class ConditionOfNext(Condition):
    summary = "The context of a class, and the condition of the first token."

    @property
    def outputs(self) -> list[Argument]:
        return [*super().outputs, conditions(self, 1)]

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, labels: Tensor, ids: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        first, *text = self.condition(labels, ids, lengths)
        sequence = PackedSequence((replace(first, asks_next=True), *text))
        attend = ContextAttend(None, None, dense_mask(sequence.clean, sequence.ar_step))
        condition = self.model(sequence, attend).condition
        return (*attend.kept(), condition)


class AppendForNext(Append):
    summary = "Keys and values of finished tokens, and the condition of the token after each."

    @property
    def outputs(self) -> list[Argument]:
        return [*super().outputs, conditions(self, "n")]

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        tokens: Tensor,
        positions: Tensor,
        keys: Tensor,
        values: Tensor,
        seen: Tensor,
        labels: Tensor | None = None,
        text_place: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        image = replace(self.image(tokens, positions, 1, None, text_place), asks_next=True)
        sequence, attend = self.against(image, labels, keys, values, seen)
        condition = self.model(sequence, attend).condition
        return (*attend.kept(), condition)
