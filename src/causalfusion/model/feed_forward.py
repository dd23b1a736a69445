"""The MLP of a block: GELU in either form, or SwiGLU.

Shape letters: B images, T tokens, D width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.config import LoraConfig, ModelConfig
from causalfusion.model import cpu_feed_forward as cpu
from causalfusion.model.linear import LoraLinear, is_quantized, make_linear

PLAIN = LoraConfig()


class FeedForward(nn.Module):
    """Linear, GELU, linear."""

    def __init__(
        self,
        size: int,
        hidden: int,
        gelu: Literal["none", "tanh"] = "tanh",
        bias: bool = True,
        lora: LoraConfig = PLAIN,
    ) -> None:
        """`gelu`: its tanh form, or exact (none)."""
        super().__init__()
        self.gelu: Literal["none", "tanh"] = gelu
        self.fc1 = make_linear(size, hidden, bias, lora)
        self.fc2 = make_linear(hidden, size, bias, lora)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        plain = self.fc1.bias is not None and not isinstance(self.fc1, LoraLinear)
        plain = plain and not is_quantized(self.fc1.weight)
        if self.gelu == "tanh" and plain and cpu.runs_here(x):
            return cpu.feed_forward(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return self.fc2(F.gelu(self.fc1(x), approximate=self.gelu))


class GatedFeedForward(nn.Module):
    """SwiGLU: a linear layer times the SiLU of another, linear."""

    def __init__(self, size: int, hidden: int, bias: bool = True, lora: LoraConfig = PLAIN) -> None:
        super().__init__()
        self.gate = make_linear(size, hidden, bias, lora)
        self.fc1 = make_linear(size, hidden, bias, lora)
        self.fc2 = make_linear(hidden, size, bias, lora)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        return self.fc2(F.silu(self.gate(x)) * self.fc1(x))


def feed_forward_of(config: ModelConfig) -> nn.Module:
    """The MLP of a configuration."""
    size, hidden, bias = config.hidden_size, config.mlp_size, config.bias.mlp
    if config.mlp == "swiglu":
        return GatedFeedForward(size, hidden, bias, config.lora)
    return FeedForward(size, hidden, "tanh" if config.mlp == "gelu_tanh" else "none", bias, config.lora)
