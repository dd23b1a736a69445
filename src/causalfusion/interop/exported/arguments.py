"""What a program takes and gives: names, shapes with their letters, meanings; and inputs to try it with.

Shape letters of a program: B images (rows), T tokens of the context, n tokens of an AR step, t text tokens, V
finished tokens, m mask tokens. A number in a shape is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from causalfusion.config import ModelConfig

Kind = Literal["number", "timestep", "position", "label", "id", "length", "step", "seen", "place"]
MOST = 1 << 16
"""Largest number of images, and of context tokens, that a program promises to take."""


@dataclass(frozen=True)
class Argument:
    """An input or an output of a program."""

    name: str
    shape: tuple[str | int, ...]
    meaning: str
    kind: Kind = "number"

    @property
    def dtype(self) -> torch.dtype:
        if self.kind in ("number", "timestep"):
            return torch.float32
        return torch.bool if self.kind == "seen" else torch.int64

    def as_json(self) -> dict[str, object]:
        dtype = str(self.dtype).removeprefix("torch.")
        return {"name": self.name, "shape": list(self.shape), "dtype": dtype, "meaning": self.meaning}


def ranges_of(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Smallest and largest value of each shape letter."""
    tokens = max(config.num_tokens, 1)
    return {
        "B": (1, MOST),
        "T": (1, MOST),
        "t": (1, max(config.max_text_tokens, 1)),
        "n": (1, tokens),
        "V": (1, tokens),
        "m": (1, tokens),
    }


def letters(arguments: Sequence[Argument]) -> list[str]:
    """The shape letters in use, each once."""
    return list(dict.fromkeys(size for one in arguments for size in one.shape if isinstance(size, str)))


def some_inputs(
    arguments: Sequence[Argument], config: ModelConfig, lengths: Mapping[str, int], seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs of these lengths that a program could meet: places that exist, at least one token that is
    seen."""
    generator = torch.Generator().manual_seed(seed)
    most = {"label": config.num_classes + 1, "id": max(config.text_vocab_size, 1), "place": 8}
    found = {}
    for one in arguments:
        shape = tuple(lengths[size] if isinstance(size, str) else size for size in one.shape)
        if one.kind == "number":
            value = torch.randn(shape, generator=generator)
        elif one.kind == "timestep":
            value = torch.rand(shape, generator=generator) * 1000
        elif one.kind == "position":
            order = torch.rand(shape[0], config.num_tokens, generator=generator).argsort(1)
            value = order[:, : shape[1]].contiguous()
        elif one.kind == "seen":
            value = torch.rand(shape, generator=generator) < 0.7
            value[..., :1] = True
        elif one.kind == "length":
            value = torch.randint(1, lengths["t"] + 1, shape, generator=generator)
        elif one.kind == "step":  # finished tokens in AR steps of one token and more
            value = (torch.arange(shape[1]) // 2 + 1).expand(shape).contiguous()
        else:
            value = torch.randint(most[one.kind], shape, generator=generator)
        found[one.name] = value
    return found
