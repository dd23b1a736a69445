"""Muon: momentum, orthogonalised, for hidden matrices (Jordan et al. 2024; Liu et al. 2502.16982).

Shape letters: O outputs, I inputs of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from causalfusion.estimate.optimizer import MUON_ITERATIONS
from causalfusion.train.sharding import shard_like, whole

MOMENTUM = 0.95
_QUINTIC = (3.4445, -4.7750, 2.0315)
_RMS = 0.2
"""Root mean square of AdamW's updates, which Muon's are scaled to (2502.16982, section 2.2)."""


class Muon(torch.optim.Muon):
    """torch's Muon, with Nesterov momentum and updates as large as AdamW's, for shares of matrices too.

    A matrix that is sharded is gathered for the iteration, which every process computes, and the update is
    the one of a single process. (torch's own step, on sharded matrices, exchanges them in each of its matrix
    products, and adds up shares in bfloat16.)

    The iteration computes in `dtype`, that of training; torch's is always in bfloat16. That would add no
    accuracy to float32 training, and on a CPU without units for bfloat16 it takes 15 to 20 times as long
    (`python -m benchmarks.muon`). In float32 the iterations of the reference model (384 wide, 12 layers) take
    46 % of the time of a step of 8 images, and the same time in a step of more.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, weight_decay: float, dtype: torch.dtype
    ) -> None:
        self.dtype = dtype
        super().__init__(
            groups, lr, weight_decay, momentum=MOMENTUM, nesterov=True, adjust_lr_fn="match_rms_adamw"
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        assert closure is None, "gradients are made before the step"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group["lr"], group["weight_decay"])
        return None

    def _step(self, parameter: Tensor, rate: float, weight_decay: float) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        update = gradient.lerp(momentum, MOMENTUM).to(self.dtype)
        update = shard_like(orthogonalised(whole(update)), parameter)
        parameter.mul_(1 - rate * weight_decay)
        parameter.add_(update, alpha=-rate * _RMS * math.sqrt(max(parameter.shape)))


def orthogonalised(matrix: Tensor) -> Tensor:
    """(O, I) with the singular vectors of `matrix` and singular values of about 1, from 0.7 to 1.2: five
    steps of a Newton-Schulz iteration x -> (a + b x x' + c (x x')^2) x."""
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(MUON_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
