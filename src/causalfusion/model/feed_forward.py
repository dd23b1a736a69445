"""The MLP of a block.

Shape letters: B images, T tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.model import cpu_feed_forward as cpu


class FeedForward(nn.Module):
    """Linear, tanh-GELU, linear."""

    def __init__(self, hidden_size: int, mlp_ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, int(hidden_size * mlp_ratio))
        self.fc2 = nn.Linear(int(hidden_size * mlp_ratio), hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        if cpu.runs_here(x):
            return cpu.feed_forward(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
