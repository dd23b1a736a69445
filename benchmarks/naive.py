"""The naive path: the same function of the same weights, computed the straightforward way.

One boolean mask for all rows and columns, every row in every layer, torch's own tanh-GELU, AdamW and EMA
tensor by tensor. It is what the model's fast paths are compared with, in result and in time.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.config import TrainConfig
from causalfusion.model.attention import Attend, AttentionBackend, DenseAttend
from causalfusion.model.feed_forward import FeedForward
from causalfusion.model.kv_cache import KVCache
from causalfusion.model.transformer import Predictions, Transformer
from causalfusion.sequence import PackedSequence


class NaiveFeedForward(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class NaiveTransformer(Transformer):
    """In-context conditioning only."""

    def __init__(self, config) -> None:
        super().__init__(config)
        for block in self.blocks:
            block.mlp = NaiveFeedForward(config.hidden_size, config.mlp_size)

    def forward(
        self,
        sequence: PackedSequence,
        attend: Attend | None = None,
        backend: AttentionBackend = "auto",
        text_token: Tensor | None = None,
    ) -> Predictions:
        attend = attend or DenseAttend(sequence)
        x = torch.cat([self._embed(s) for s in sequence.segments if s.num_tokens], dim=1)
        for layer, block in enumerate(self.blocks):
            x = block(x, attend, layer)
        x = self.image_out(self.norm_out(x))
        return Predictions(image=x[:, sequence.first_output :])


class NaiveCache(KVCache):
    """Attends by `scaled_dot_product_attention` in every precision."""

    def attend(self, sequence: PackedSequence) -> Attend:  # pyright: ignore[reportIncompatibleMethodOverride]
        end = self.length + sequence.num_tokens

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            rows = len(k)
            self.k[layer, :rows, :, self.length : end] = k
            self.v[layer, :rows, :, self.length : end] = v
            return F.scaled_dot_product_attention(
                q, self.k[layer, :rows, :, :end], self.v[layer, :rows, :, :end]
            )

        return attend


def naive_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    trained = [p for p in parameters if p.requires_grad]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(
        trained, lr=config.lr, betas=betas, eps=config.eps, weight_decay=config.weight_decay, foreach=False
    )


@torch.no_grad()
def naive_ema_update(averages: dict[str, Tensor], parameters: dict[str, nn.Parameter], decay: float) -> None:
    for name, average in averages.items():
        average.mul_(decay).add_(parameters[name], alpha=1 - decay)
