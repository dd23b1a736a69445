"""The keys and values of the clean tokens that generation has finished (PAPER section 5).

Shape letters: B images, N heads of keys and values, T cached tokens, n new tokens, H head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from causalfusion.config import LanguageConfig, ModelConfig
from causalfusion.mask import dense_mask, window_mask
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
    language: LanguageConfig = field(default_factory=LanguageConfig)
    """The model's, which may have a sliding window."""
    text_places: Tensor = field(default_factory=lambda: torch.zeros(1, 0, dtype=torch.int64))
    """(1 or B, T) int64, on the CPU; only of a model with a sliding window."""

    @classmethod
    def allocate(
        cls, config: ModelConfig, batch_size: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> KVCache:
        shape = (config.depth, batch_size, config.kv_heads, capacity, config.head_dim)
        k, v = (torch.empty(shape, device=device, dtype=dtype) for _ in range(2))
        return cls(k, v, torch.zeros(1, 0, dtype=torch.int64), language=config.language)

    def attend(self, sequence: PackedSequence) -> CachedAttend:
        """The `Attend` of new tokens that see the cache and, as the predicate says, one another."""
        return CachedAttend(self, sequence)

    def commit(self, sequence: PackedSequence) -> None:
        """Keep the tokens that were just computed: they must all be clean."""
        assert all(s.role == "clean" for s in sequence.segments), "only clean tokens are context"
        self.ar_step = _behind(self.ar_step, sequence.ar_step.cpu())
        if self.language.window:
            self.text_places = _behind(self.text_places, sequence.text_places.cpu())
        self.length += sequence.num_tokens

    def fork(self, copies: int) -> KVCache:
        """The same context for `copies` variants of every image, which stand next to each other."""
        ar_step, text_places = (
            rows if len(rows) == 1 else rows.repeat_interleave(copies, dim=0)
            for rows in (self.ar_step, self.text_places)
        )
        k, v = (x.repeat_interleave(copies, dim=1) for x in (self.k, self.v))
        return KVCache(k, v, ar_step, self.length, self.language, text_places)


class CachedAttend:
    def __init__(self, cache: KVCache, sequence: PackedSequence) -> None:
        self.cache = cache
        self.end = cache.length + sequence.num_tokens
        assert self.end <= cache.k.shape[3], f"cache holds {cache.k.shape[3]} tokens, {self.end} needed"
        q_clean, q_ar_step = sequence.clean.cpu(), sequence.ar_step.cpu()
        k_clean = torch.cat([torch.ones(cache.length, dtype=torch.bool), q_clean])
        mask = dense_mask(q_clean, q_ar_step, k_clean, _behind(cache.ar_step, q_ar_step))
        self.mask, self.windowed = self._unless_all(mask), None
        if cache.language.window:
            places = sequence.text_places.cpu()
            inside = window_mask(places, cache.language.window, _behind(cache.text_places, places))
            self.windowed = self._unless_all(mask & inside)

    def _unless_all(self, mask: Tensor) -> Tensor | None:
        """The mask on the device of the cache; None: all may attend to all."""
        return None if bool(mask.all()) else mask.to(self.cache.k.device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache, rows = self.cache, k.shape[0]
        cache.k[layer, :rows, :, cache.length : self.end] = k
        cache.v[layer, :rows, :, cache.length : self.end] = v
        mask = self.windowed if cache.language.window_of(layer) else self.mask
        mask = mask if mask is None else mask[:rows, :, mask.shape[2] - q.shape[2] :]
        keys, values = (x[layer, :rows, :, : self.end] for x in (cache.k, cache.v))
        if q.shape[2] == 1 < q.shape[1] // k.shape[1]:
            # One query: those of the heads that share keys stand as several, and nothing is repeated.
            grouped = q.view(rows, k.shape[1], -1, q.shape[3])
            return attend_without_gradient(grouped, keys, values, mask).reshape(q.shape)
        return attend_without_gradient(q, repeat_heads(keys, q), repeat_heads(values, q), mask)


def _behind(rows: Tensor, new: Tensor) -> Tensor:
    """`new` (1 or B, n) behind `rows` (1 or B, T)."""
    count = max(len(rows), len(new))
    return torch.cat([rows.expand(count, -1), new.expand(count, -1)], dim=1)
