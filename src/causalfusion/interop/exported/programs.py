"""The passes of generation as modules with tensors in and tensors out, which torch.export takes.

Attention is `scaled_dot_product_attention` with a mask from the predicate (`mask.py`), as in `DenseAttend`,
and a context that is handed over in place of a cache that is written to; the kernels for CPUs, which decide
by values or work in place, take no part.

Shape letters: B rows, T context tokens, n tokens of an AR step, t text tokens, V finished tokens, P token
dimension, N heads, G heads of keys and values, H head size, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.factorization import UNSEEN, places_of
from causalfusion.interop.exported.arguments import Argument
from causalfusion.mask import dense_mask
from causalfusion.model.kv_heads import repeat_heads
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import PackedSequence, Segment, class_segment, image_segment, text_segment

LABELS = Argument("labels", ("B",), "class of each image; the number of classes: none", "label")
TIMESTEPS = Argument("timesteps", ("B",), "timestep that the model is told, in its own units", "timestep")
SEEN = Argument("seen", ("B", "T"), "context tokens that count; false for padding", "seen")
IDS = Argument("ids", ("B", "t"), "text tokens with their markers, padded behind", "id")
LENGTHS = Argument("lengths", ("B",), "text tokens of each row that are no padding", "length")
TEXT_PLACE = Argument("text_place", ("B",), "place of the image among the text: text tokens before", "place")
LATEST = UNSEEN - 1
"""An AR step after all others."""


class ContextAttend:
    """Attention of new tokens to a context and, as the predicate says, to one another; keeps their keys and
    values."""

    def __init__(self, k: Tensor | None, v: Tensor | None, mask: Tensor) -> None:
        """k, v (layers, B, G, T, H); `mask` (1 or B, 1, n, T + n)."""
        self.k, self.v, self.mask = k, v, mask
        self.new: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def of(cls, sequence: PackedSequence, k: Tensor, v: Tensor, seen: Tensor) -> ContextAttend:
        before, steps = torch.where(seen, 0, UNSEEN), sequence.ar_step
        clean = torch.cat([torch.ones_like(seen[0]), sequence.clean])
        mask = dense_mask(sequence.clean, steps, clean, torch.cat([before, steps], dim=1))
        return cls(k, v, mask)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.new.append((k, v))
        if self.k is not None and self.v is not None:
            k, v = torch.cat([self.k[layer], k], dim=2), torch.cat([self.v[layer], v], dim=2)
        if q.shape[2] == 0:  # nothing is read of these tokens: the last layer has but keys and values
            return q
        rows = self.mask.shape[2] - q.shape[2]
        k, v = repeat_heads(k, q), repeat_heads(v, q)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask[:, :, rows:])

    def kept(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the new tokens, (layers, B, G, n, H) each."""
        keys, values = zip(*self.new, strict=True)
        return torch.stack(keys), torch.stack(values)


class Program(nn.Module, ABC):
    """A pass of the model. `forward` takes its `inputs` by name."""

    name: str
    summary: str

    def __init__(self, model: Transformer, *, noised_context: bool = False) -> None:
        """`noised_context`: finished tokens enter at timestep 0, as in Transfusion."""
        super().__init__()
        self.config, self.noised_context = model.config, noised_context
        self.model: Any = self.part_of(model)
        self.register_forward_pre_hook(Program._same_lengths, with_kwargs=True)

    def part_of(self, model: Transformer) -> nn.Module:
        """What of the model takes part: its weights are in the program's file."""
        return model

    @property
    @abstractmethod
    def inputs(self) -> list[Argument]: ...

    @property
    @abstractmethod
    def outputs(self) -> list[Argument]: ...

    def _same_lengths(self, _: tuple[Any, ...], given: dict[str, Tensor]) -> None:
        """Compares the sizes of inputs with one letter. Export takes the sizes of two inputs for two unknowns
        until it meets such a comparison, and what it derives from their sums and quotients before may rule
        out lengths of 1."""
        lengths: dict[str, int] = {}
        for one in self.inputs:
            for place, letter in enumerate(one.shape):
                if isinstance(letter, str) and one.name in given:
                    size = given[one.name].shape[place]
                    assert size == lengths.setdefault(letter, size), f"{one.name}: {letter} is {size}"

    # --- arguments that several have --------------------------------------------------------------------

    def tokens(self, letter: str, name: str = "tokens", positions: str = "positions") -> list[Argument]:
        return [
            Argument(name, ("B", letter, self.config.token_dim), "image tokens"),
            Argument(positions, ("B", letter), "their raster indices", "position"),
        ]

    def cached(self, letter: str, suffix: str = "", what: str = "of the context") -> list[Argument]:
        c = self.config
        shape = (c.depth, "B", c.kv_heads, letter, c.head_dim)
        return [
            Argument(f"keys{suffix}", shape, f"keys {what}, by layer"),
            Argument(f"values{suffix}", shape, f"values {what}, by layer"),
        ]

    def extra(self) -> list[Argument]:
        """What image tokens need besides the context."""
        adaln = [LABELS] if self.config.conditioning == "adaln_zero" else []
        return adaln + ([TEXT_PLACE] if self.turned_by_text else [])

    @property
    def turned_by_text(self) -> bool:
        return self.config.vocab_size > 0 and self.config.language.positions == "rope"

    def predicted(self, letter: str = "n") -> list[Argument]:
        shape = ("B", letter, self.config.prediction_dim)
        return [Argument("prediction", shape, "what the model predicts of them")]

    # --- segments ---------------------------------------------------------------------------------------

    def image(
        self,
        tokens: Tensor,
        positions: Tensor,
        ar_step: int | Tensor,
        timesteps: Tensor | None,
        text_place: Tensor | None,
    ) -> Segment:
        """Image tokens in one AR step, or in those given (B, n); clean ones without `timesteps` (B,)."""
        steps = torch.full_like(positions, ar_step) if isinstance(ar_step, int) else ar_step
        role = "clean" if timesteps is None else "noised"
        if timesteps is None and self.noised_context:
            timesteps = torch.zeros_like(positions[:, 0], dtype=torch.float32)
        return image_segment(
            role,
            tokens,
            steps,
            places_of(positions, self.config.grid_width),
            None if timesteps is None else timesteps[:, None],
            torch.zeros_like(positions) if self.config.max_images > 1 else None,
            text_places=None if text_place is None else text_place[:, None].expand_as(positions),
        )

    def condition(self, labels: Tensor, ids: Tensor | None, lengths: Tensor | None) -> list[Segment]:
        """Class tokens, and text in AR steps of one token each."""
        segments = [classes_of(labels, self.config.num_condition_tokens)]
        if ids is not None and lengths is not None:
            places = torch.arange(ids.shape[1], device=ids.device)[None].expand_as(ids)
            steps = torch.where(places < lengths[:, None], places + 1, UNSEEN)
            # Nothing is predicted of the text, so that the last layer computes but its keys and values.
            segments.append(replace(text_segment(ids, steps, places), read=False))
        return segments

    def alone(self, labels: Tensor | None, segment: Segment) -> PackedSequence:
        """A segment behind a cached condition; AdaLN is told the class anew."""
        if labels is None:
            labels = torch.zeros_like(segment.ar_step[:, 0])
        return PackedSequence((classes_of(labels, 0), segment))

    def against(
        self, segment: Segment, labels: Tensor | None, keys: Tensor, values: Tensor, seen: Tensor
    ) -> tuple[PackedSequence, ContextAttend]:
        """A segment behind a cached context, and its attention to that."""
        sequence = self.alone(labels, segment)
        return sequence, ContextAttend.of(sequence, keys, values, seen)


def classes_of(labels: Tensor, num_tokens: int) -> Segment:
    """Class tokens with an AR step in each row, as the image tokens of a program have them: which of several
    leading sizes is the larger one, a program would have to know."""
    segment = class_segment(labels, num_tokens)
    return replace(segment, ar_step=labels.new_zeros(labels.shape[0], num_tokens))


class Condition(Program):
    name = "condition"
    summary = "The context of a class and a text: its keys and values."

    @property
    def inputs(self) -> list[Argument]:
        return [LABELS, *([IDS, LENGTHS] if self.config.vocab_size else [])]

    @property
    def outputs(self) -> list[Argument]:
        return self.cached("T", what="of the class tokens and the text behind them")

    def forward(
        self, labels: Tensor, ids: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        sequence = PackedSequence(tuple(self.condition(labels, ids, lengths)))
        attend = ContextAttend(None, None, dense_mask(sequence.clean, sequence.ar_step))
        self.model.hidden(sequence, attend)
        return attend.kept()


class Append(Program):
    name = "append"
    summary = "Keys and values of finished tokens of one AR step, which the context then ends with."

    @property
    def inputs(self) -> list[Argument]:
        return [*self.tokens("n"), *self.cached("T"), SEEN, *self.extra()]

    @property
    def outputs(self) -> list[Argument]:
        return self.cached("n", what="of these tokens")

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        keys: Tensor,
        values: Tensor,
        seen: Tensor,
        labels: Tensor | None = None,
        text_place: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        image = self.image(tokens, positions, 1, None, text_place)
        sequence, attend = self.against(image, labels, keys, values, seen)
        self.model.hidden(sequence, attend)
        return attend.kept()


class Step(Program):
    name = "step"
    summary = "One denoising step of the tokens of an AR step against the context."

    @property
    def inputs(self) -> list[Argument]:
        return [*self.tokens("n"), TIMESTEPS, *self.cached("T"), SEEN, *self.extra()]

    @property
    def outputs(self) -> list[Argument]:
        return self.predicted()

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        timesteps: Tensor,
        keys: Tensor,
        values: Tensor,
        seen: Tensor,
        labels: Tensor | None = None,
        text_place: Tensor | None = None,
    ) -> Tensor:
        image = self.image(tokens, positions, 1, timesteps, text_place)
        return self.model(*self.against(image, labels, keys, values, seen)).image


class Uncached(Program):
    name = "uncached"
    summary = "One denoising step without a cache: condition, finished tokens and noised ones in one pass."

    @property
    def inputs(self) -> list[Argument]:
        finished = self.tokens("V", "finished", "finished_positions")
        steps = Argument("finished_steps", ("B", "V"), "AR step of each, counted from 1", "step")
        text = [IDS, LENGTHS] if self.config.vocab_size else []
        return [LABELS, *text, *finished, steps, *self.tokens("n"), TIMESTEPS]

    @property
    def outputs(self) -> list[Argument]:
        return self.predicted()

    def forward(
        self,
        labels: Tensor,
        finished: Tensor,
        finished_positions: Tensor,
        finished_steps: Tensor,
        tokens: Tensor,
        positions: Tensor,
        timesteps: Tensor,
        ids: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        segments = self.condition(labels, ids, lengths)
        if ids is not None:
            finished_steps = finished_steps + ids.shape[1]
        place = lengths if self.turned_by_text else None
        segments.append(self.image(finished, finished_positions, finished_steps, None, place))
        segments.append(self.image(tokens, positions, LATEST, timesteps, place))
        image = self.model(PackedSequence(tuple(segments)), backend="dense").image
        return image[:, -tokens.shape[1] :]
