"""The cost of a block of the transformer; a change of `block.py` changes it."""

from __future__ import annotations

from dataclasses import dataclass

from causalfusion.config import ModelConfig
from causalfusion.model.block import image_block_config


@dataclass(frozen=True)
class BlockCost:
    """Arithmetic and memory of a block, as formulas of the model's sizes; tests hold them to what torch
    counts and allocates."""

    config: ModelConfig

    @property
    def _mlp_matrices(self) -> int:
        return 3 if self.config.mlp == "swiglu" else 2

    @property
    def _kv_size(self) -> int:
        """Width of the keys, and of the values."""
        return self.config.kv_heads * self.config.head_dim

    @property
    def matrix_weights(self) -> float:
        """Number of weights in its matrices, without those of AdaLN."""
        size = self.config.hidden_size
        return size * (
            2 * self.config.query_size + 2 * self._kv_size + self._mlp_matrices * self.config.mlp_size
        )

    def flops(self, key_rows: float, query_rows: float, pairs: float) -> float:
        """Forward: keys and values of `key_rows` rows, the rest for `query_rows`, `pairs` of attention."""
        size, mlp = self.config.hidden_size, self._mlp_matrices * self.config.mlp_size
        queries = self.config.query_size
        linear = 2 * key_rows * size * 2 * self._kv_size + 2 * query_rows * size * (2 * queries + mlp)
        return linear + 4 * pairs * queries

    def row_bytes(self, low: bool, on_gpu: bool) -> float:
        """Bytes that it keeps for each row until the backward pass; `low`: in bfloat16. In units of D: the
        residual stream before attention and before the MLP (2), the input of qkv (1), its output (3, fewer
        with shared heads, which are then kept repeated too), normalised q and k (2), the input of attention's
        output projection (1), that of the MLP (1), and twice its hidden layer (four times for SwiGLU).

        In bfloat16 the residual stream stays float32. A GPU also keeps the output of attention before its
        heads are merged and, in bfloat16, the float32 q and k before normalisation.
        """
        model = self.config
        shared, queries = self._kv_size / model.hidden_size, model.query_size / model.hidden_size
        normalised = 0 if model.qk_norm.kind == "none" else queries + shared
        repeated = 0 if shared == queries else 2 * queries
        hidden = (4 if model.mlp == "swiglu" else 2) * model.mlp_size / model.hidden_size
        numbers = 2 + 2 * queries + 2 * shared + normalised + repeated + hidden
        if on_gpu:
            numbers += queries
        of_each = (2 if low else 4) * numbers + 2 * 4
        if on_gpu and low and normalised:
            of_each += 4 * normalised
        if model.conditioning == "adaln_zero":
            of_each += 28 if low else 48
        statistics = 4 + (4 * model.num_heads if normalised else 0) + (model.num_heads if on_gpu else 0)
        return of_each * model.hidden_size + 4 * statistics

    def key_bytes(self, low: bool) -> float:
        """Bytes for each row of the last block that is only attended to: residual, input, k and v, normalised
        k."""
        parts = 1 + (2 if self.config.qk_norm.kind == "none" else 3) * self._kv_size / self.config.hidden_size
        return self.config.hidden_size * (4 + (2 if low else 4) * parts)


def image_cost(config: ModelConfig) -> BlockCost:
    """The cost of a block for image tokens, which may have weights of their own."""
    return BlockCost(image_block_config(config) if config.own_image_weights else config)
