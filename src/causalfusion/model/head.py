"""The per-token head: a small network that denoises each token alone, under a condition from the transformer
(MAR 2406.11838 section 3.3; LatentLM 2412.08635 section 2.2).

Shape letters: B rows, n tokens, R noised copies of each, P token dimension, D width of the transformer, W
width of the network.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.config import ModelConfig
from causalfusion.model.embeddings import TimestepEmbedding
from causalfusion.model.feed_forward import GatedFeedForward
from causalfusion.model.modulation import modulate
from causalfusion.model.norm import make_norm


class PerTokenHead(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        head, width, bias = config.head, config.head_width, config.head.bias
        self.token_in = nn.Linear(config.token_dim, width, bias=config.bias.input)
        self.condition_in = nn.Linear(config.image_size, width, bias=bias)
        self.timestep_embedding = TimestepEmbedding(width, bias)
        self.blocks = nn.ModuleList([HeadBlock(config) for _ in range(head.depth)])
        self.norm_out = make_norm(width, head.norm.kind, False, head.norm.eps)
        self.modulation_out = nn.Linear(width, 2 * width, bias=bias)
        self.image_out = nn.Linear(width, config.prediction_dim, bias=bias)

    def forward(self, condition: Tensor, tokens: Tensor, timesteps: Tensor) -> Tensor:
        """Predictions (B, R*n, P, or 2 P with variances) for noised tokens (B, R*n, P) at timesteps (B, 1 or
        R*n), under conditions (B, n, D) which the R copies share."""
        return self.denoise(self.condition_in(condition), tokens, timesteps)

    def denoise(self, condition: Tensor, tokens: Tensor, timesteps: Tensor) -> Tensor:
        """`forward` under conditions (B, n, W) that are already projected: the same in each diffusion
        step."""
        if tokens.shape[1] != condition.shape[1]:
            condition = condition.repeat(1, tokens.shape[1] // condition.shape[1], 1)
        c = condition + self.timestep_embedding(timesteps)
        x, c = self.token_in(tokens), F.silu(c)
        for block in self.blocks:
            x = block(x, c)
        return self.image_out(modulate(self.norm_out(x), *self.modulation_out(c).chunk(2, dim=-1)))

    def modulations(self) -> Iterator[nn.Linear]:
        """Those of the blocks."""
        for block in self.blocks:
            assert isinstance(block, HeadBlock)
            yield block.modulation


class HeadBlock(nn.Module):
    """A residual MLP that the condition shifts, scales and gates."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        head, width = config.head, config.head_width
        hidden = head.mlp_hidden or width
        self.norm = make_norm(width, head.norm.kind, head.norm.learned(adaln=False), head.norm.eps)
        self.mlp = (
            GatedFeedForward(width, hidden, head.bias)
            if head.mlp == "swiglu"
            else SiluFeedForward(width, hidden, head.bias)
        )
        self.modulation = nn.Linear(width, 3 * width, bias=head.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, R*n, W), SiLU of the condition c (B, R*n, W) -> (B, R*n, W)."""
        shift, scale, gate = self.modulation(c).chunk(3, dim=-1)
        return x + gate * self.mlp(modulate(self.norm(x), shift, scale))


class SiluFeedForward(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, size: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)))
