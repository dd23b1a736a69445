"""A model of another system as this project sees it, and reading one from its file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from causalfusion.config import DiffusionConfig, ModelConfig, SampleConfig
from causalfusion.errors import UserError
from causalfusion.interop.systems.links import Link, follow
from causalfusion.machine.skeleton import skeleton
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import load_strictly


@dataclass(frozen=True)
class Released:
    """The choices and the weight names of a released model."""

    model: ModelConfig
    diffusion: DiffusionConfig
    links: Sequence[Link]
    """Links between all of its weights and all of ours."""
    patch_size: int
    sampling: SampleConfig = field(default_factory=SampleConfig)
    """How its authors sample."""

    def weights(self, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """Ours. Raises UserError for a missing or unknown weight, or one of another shape."""
        weights = follow(self.links, state, where)
        with skeleton():
            model = Transformer(self.model)
        load_strictly(model, weights, where, assign=True)
        return weights


class Shapes:
    """The shapes of a released state dict, and the settings that came with it."""

    def __init__(self, state: Mapping[str, Tensor], settings: Mapping[str, Any], where: str) -> None:
        self.state, self.settings, self.where = state, settings, where

    def __contains__(self, key: str) -> bool:
        return key in self.state

    def shape(self, key: str, ndim: int) -> tuple[int, ...]:
        """Raises UserError if the weight is missing or has another number of dimensions."""
        if key not in self.state:
            raise UserError(f"{self.where} lacks weight {key}; it is of another system")
        sizes = tuple(self.state[key].shape)
        if len(sizes) != ndim or 0 in sizes:
            raise UserError(f"{self.where}: weight {key} has shape {sizes}, expected {ndim} dimensions")
        return sizes

    def depth(self, prefix: str) -> int:
        """Number of blocks `PREFIX.0.`, `PREFIX.1.`, ..."""
        found = {m[1] for key in self.state if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", key))}
        return len(found)

    def side(self, num_tokens: int) -> int:
        """Side of a square grid of tokens."""
        side = math.isqrt(num_tokens)
        if side * side != num_tokens:
            raise UserError(f"{self.where} has {num_tokens} positions; expected those of a square grid")
        return side

    def number(self, name: str, default: int) -> int:
        """A setting that came with the weights, else the default. Raises UserError if it is no number."""
        value = self.settings.get(name, default)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{self.where}: its setting {name} is {value!r}; expected a positive number")
        return value

    def heads(self, name: str, width: int, released: Mapping[int, int]) -> int:
        """Attention heads, which no shape tells: a setting, else those of the released model of this
        width."""
        if name not in self.settings and width not in released:
            known = ", ".join(map(str, released))
            raise UserError(
                f"{self.where}: width {width} does not tell the number of heads (those of {known} do); "
                "give it as --num-heads N"
            )
        return self.number(name, released.get(width, 1))
