"""The keys and values of the clean tokens that generation has finished (PAPER section 5).

Shape letters: B images, N heads of keys and values, T cached tokens, n new tokens, H head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from causalfusion.config import ModelConfig
from causalfusion.mask import dense_mask
from causalfusion.model.cpu_attention import attend_without_gradient
from causalfusion.model.kv_heads import repeat_heads
from causalfusion.sequence import PackedSequence


@dataclass
class KVCache:
    """Room for `capacity` tokens of every layer, allocated once; nothing is concatenated later.

    New tokens are written behind the cached ones, where the next new tokens overwrite them unless
    `commit` keeps them: noised tokens pass through without a trace, clean ones are appended.
    """

    k: Tensor
    v: Tensor
    """(layers, B, N, capacity, H)."""
    ar_step: Tensor
    """(1 or B, T) int64, on the CPU."""
    length: int = 0
    """T."""

    @classmethod
    def allocate(
        cls, config: ModelConfig, batch_size: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> KVCache:
        shape = (config.depth, batch_size, config.kv_heads, capacity, config.head_dim)
        k, v = (torch.empty(shape, device=device, dtype=dtype) for _ in range(2))
        return cls(k, v, torch.zeros(1, 0, dtype=torch.int64))

    def attend(self, sequence: PackedSequence) -> CachedAttend:
        """The `Attend` of new tokens that see the cache and, as the predicate says, one another."""
        return CachedAttend(self, sequence)

    def commit(self, sequence: PackedSequence) -> None:
        """Keep the tokens that were just computed: they must all be clean."""
        assert all(s.role == "clean" for s in sequence.segments), "only clean tokens are context"
        ar_step = sequence.ar_step.cpu()
        rows = max(ar_step.shape[0], self.ar_step.shape[0])
        self.ar_step = torch.cat([self.ar_step.expand(rows, -1), ar_step.expand(rows, -1)], dim=1)
        self.length += sequence.num_tokens

    def fork(self, copies: int) -> KVCache:
        """The same context for `copies` variants of every image, which stand next to each other."""
        shared = len(self.ar_step) == 1
        return KVCache(
            self.k.repeat_interleave(copies, dim=1),
            self.v.repeat_interleave(copies, dim=1),
            self.ar_step if shared else self.ar_step.repeat_interleave(copies, dim=0),
            self.length,
        )


class CachedAttend:
    def __init__(self, cache: KVCache, sequence: PackedSequence) -> None:
        self.cache = cache
        self.end = cache.length + sequence.num_tokens
        assert self.end <= cache.k.shape[3], f"cache holds {cache.k.shape[3]} tokens, {self.end} needed"
        q_clean, q_ar_step = sequence.clean.cpu(), sequence.ar_step.cpu()
        rows = max(q_ar_step.shape[0], cache.ar_step.shape[0])
        k_clean = torch.cat([torch.ones(cache.length, dtype=torch.bool), q_clean])
        k_ar_step = torch.cat([cache.ar_step.expand(rows, -1), q_ar_step.expand(rows, -1)], dim=1)
        mask = dense_mask(q_clean, q_ar_step, k_clean, k_ar_step)
        self.mask = None if bool(mask.all()) else mask.to(cache.k.device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache, rows = self.cache, k.shape[0]
        cache.k[layer, :rows, :, cache.length : self.end] = k
        cache.v[layer, :rows, :, cache.length : self.end] = v
        mask = self.mask if self.mask is None else self.mask[:rows, :, self.mask.shape[2] - q.shape[2] :]
        keys, values = (x[layer, :rows, :, : self.end] for x in (cache.k, cache.v))
        return attend_without_gradient(q, repeat_heads(keys, q), repeat_heads(values, q), mask)
