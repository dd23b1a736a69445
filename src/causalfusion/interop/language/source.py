"""A language model as it is found: settings, tokenizer, and weights that are read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from causalfusion.errors import UserError


@dataclass(frozen=True)
class Stored:
    """A weight in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    """The dtype that `read` gives."""
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class LanguageSource:
    where: str
    """For messages."""
    config: Mapping[str, Any]
    """As in a config.json."""
    weights: Mapping[str, Stored]
    """By the names of `transformers`, with its layouts."""
    num_files: int
    tokenizer: bytes | None
    """The content of a tokenizer.json; None: there is none."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """The content of the other files that belong to it, by name, config.json among them."""


def require_tokenizer(source: LanguageSource) -> bytes:
    """Raises UserError if there is none."""
    if source.tokenizer is None:
        raise UserError(
            f"{source.where} holds no tokenizer.json; save it there with transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )
    return source.tokenizer
