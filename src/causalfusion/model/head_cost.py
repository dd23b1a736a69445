"""The cost of the per-token head; a change of `head.py` changes it.

Letters: P token dimension, D width of the transformer, W width of the network, R noised copies of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from causalfusion.config import ModelConfig
from causalfusion.model.embeddings import TIMESTEP_FREQUENCIES


@dataclass(frozen=True)
class HeadCost:
    config: ModelConfig

    @property
    def _mlp_matrices(self) -> int:
        return 3 if self.config.head.mlp == "swiglu" else 2

    @property
    def _hidden(self) -> int:
        return self.config.head.mlp_hidden or self.config.head_width

    def flops(self, tokens: float, copies: float, levels: float) -> float:
        """Forward for R copies of `tokens`, of which each has one condition; `levels` timesteps are
        embedded."""
        width, rows = self.config.head_width, tokens * copies
        total = self.condition_flops(tokens) + 2 * levels * (TIMESTEP_FREQUENCIES * width + width * width)
        of_block = self._mlp_matrices * width * self._hidden + 3 * width * width
        ends = self.config.token_dim * width + 2 * width * width + width * self.config.prediction_dim
        return total + 2 * rows * (self.config.head.depth * of_block + ends)

    def condition_flops(self, tokens: float) -> float:
        """Projecting the conditions of `tokens`."""
        return 2 * tokens * self.config.image_size * self.config.head_width

    def step_flops(self, tokens: float) -> float:
        """One diffusion step of `tokens`, all at one timestep, with conditions that are projected already."""
        return self.flops(tokens, 1, 1) - self.condition_flops(tokens)

    def row_bytes(self, low: bool) -> float:
        """Bytes that a noised token keeps until the backward pass; `low`: in bfloat16. In units of W, in each
        block: the residual, the normalised input, the modulated one, three modulations and the gated output,
        and the hidden layer; around them the condition and the last norm."""
        width, hidden = self.config.head_width, (4 if self.config.head.mlp == "swiglu" else 2) * self._hidden
        of_block = 8 * width + hidden
        ends = 7 * width + 2 * self.config.prediction_dim + self.config.token_dim
        return (3 if low else 4) * (self.config.head.depth * of_block + ends)
