"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from causalfusion.config import TrainConfig
from causalfusion.errors import UserError
from causalfusion.train.sharding import local_part, shard_like


def ema_decay(config: TrainConfig, updates: int) -> float:
    """The decay of the update that follows `updates` earlier ones.

    With the warm-up the average is, for most of a run, a mean over its last tenth or so: after n updates the
    initial weights' share is of the order of n**-9.
    """
    if config.ema_schedule == "constant":
        return config.ema_decay
    return min(config.ema_decay, (1 + updates) / (10 + updates))


class EMA:
    """A float32 copy of every parameter, averaged after each step; sharded as the parameter is.

    A frozen float32 parameter is its own average, without a copy: averaging a constant with itself in float32
    would drift. Buffers have none.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        named = dict(named_parameters)
        self.parameters = {name: p for name, p in named.items() if p.requires_grad}
        self.averages = {name: p.detach().float() for name, p in named.items()}
        for name in self.parameters:
            self.averages[name] = self.averages[name].clone()

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """averages = decay * averages + (1 - decay) * parameters."""
        averages = [local_part(self.averages[name]) for name in self.parameters]
        current = [local_part(p.detach()).float() for p in self.parameters.values()]
        torch._foreach_lerp_(averages, current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold their averages meanwhile."""
        sharded = [name for name, p in self.parameters.items() if isinstance(p, DTensor)]
        plain = {name: p.data for name, p in self.parameters.items() if not isinstance(p, DTensor)}
        for name in plain:
            self.parameters[name].data = self.averages[name].to(plain[name].dtype)
        self._exchange(sharded)
        try:
            yield
        finally:
            for name, raw in plain.items():
                self.parameters[name].data = raw
            self._exchange(sharded)

    @torch.no_grad()
    def _exchange(self, names: list[str]) -> None:
        """Parameters and averages change places: a sharded parameter's memory cannot be replaced."""
        for name in names:
            parameter, average = local_part(self.parameters[name].detach()), local_part(self.averages[name])
            raw = parameter.clone()
            parameter.copy_(average)
            average.copy_(raw)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew from the parameters as they are."""
        for name, parameter in self.parameters.items():
            local_part(self.averages[name]).copy_(local_part(parameter.detach()))

    def state_dict(self) -> dict[str, Tensor]:
        return self.averages

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state.keys() != self.averages.keys():
            wrong = sorted(state.keys() ^ self.averages.keys())[0]
            raise UserError(f"the EMA weights do not fit the model: {wrong} is missing or unexpected")
        for name, average in self.averages.items():
            average.copy_(shard_like(state[name], average))
