"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from causalfusion.errors import UserError


class EMA:
    """A float32 copy of every trainable parameter, averaged after each step.

    Frozen tensors and buffers are not averaged: averaging a constant with itself in float32 drifts.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.averages = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        averages = list(self.averages.values())
        current = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(averages, current, 1 - self.decay)  # pyright: ignore[reportPrivateImportUsage]

    def state_dict(self) -> dict[str, Tensor]:
        return self.averages

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state.keys() != self.averages.keys():
            wrong = sorted(state.keys() ^ self.averages.keys())[0]
            raise UserError(f"the EMA weights do not fit the model: {wrong} is missing or unexpected")
        for name, average in self.averages.items():
            average.copy_(state[name])
