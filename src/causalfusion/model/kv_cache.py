"""The keys and values of the clean tokens that generation has finished.

Shape letters: B images, N heads of keys and values, T cached tokens, n new tokens, H head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from causalfusion.config import LanguageConfig, ModelConfig
from causalfusion.mask import dense_mask, window_mask
from causalfusion.model.cpu_attention import attend_without_gradient
from causalfusion.model.kv_heads import repeat_heads
from causalfusion.sequence import PackedSequence


@dataclass
class KVCache:
    """Room for `capacity` tokens of every layer, allocated once.

    New tokens are written behind the cached ones, where the next new tokens overwrite them unless
    `commit` keeps them: noised tokens pass through without a trace, clean ones are appended. Nothing is
    concatenated, but where noised tokens have no room: those of a large last AR step.
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
        """Keep the tokens that were just computed, or the first of them: these must all be clean."""
        assert all(s.role == "clean" for s in sequence.segments), "only clean tokens are context"
        end = self.length + sequence.num_tokens
        assert end <= self.k.shape[3], f"cache holds {self.k.shape[3]} tokens, {end} needed"
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


@dataclass(frozen=True)
class _Part:
    """A run of new tokens that all have one role."""

    start: int
    end: int
    mask: Tensor | None
    """(1 or B, 1, end - start, T + end); None: all may attend to all."""
    windowed: Tensor | None
    """The same in layers with a sliding window."""


class CachedAttend:
    """New tokens that are not clean see all of them; clean ones before them see those before alone, and are
    computed by themselves, without the pairs that the mask would hide."""

    def __init__(self, cache: KVCache, sequence: PackedSequence) -> None:
        self.cache, self.end = cache, cache.length + sequence.num_tokens
        clean, ar_step = sequence.clean.cpu(), sequence.ar_step.cpu()
        k_clean = torch.cat([torch.ones(cache.length, dtype=torch.bool), clean])
        mask, inside = dense_mask(clean, ar_step, k_clean, _behind(cache.ar_step, ar_step)), None
        if cache.language.window:
            places = sequence.text_places.cpu()
            inside = window_mask(places, cache.language.window, _behind(cache.text_places, places))
        count, total = int(clean.sum()), sequence.num_tokens
        cut = count if bool(clean[:count].all()) else 0
        runs = [(0, cut), (cut, total)]
        self.parts = [self._part(mask, inside, start, end) for start, end in runs if start < end]

    def _part(self, mask: Tensor, inside: Tensor | None, start: int, end: int) -> _Part:
        rows, columns = slice(start, end), slice(0, self.cache.length + end)
        mask = mask[:, :, rows, columns]
        windowed = None if inside is None else self._unless_all(mask & inside[:, :, rows, columns])
        return _Part(start, end, self._unless_all(mask), windowed)

    def _unless_all(self, mask: Tensor) -> Tensor | None:
        """The mask on the device of the cache; None: all may attend to all."""
        return None if bool(mask.all()) else mask.to(self.cache.k.device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self._write(self.cache.k[layer], k), self._write(self.cache.v[layer], v)
        first = k.shape[2] - q.shape[2]
        parts = [part for part in self.parts if part.end > max(part.start, first)]
        outputs = [self._attend(part, layer, q, keys, values, first) for part in parts]
        return torch.cat(outputs, dim=2) if len(outputs) > 1 else (outputs or [q])[0]

    def _write(self, cached: Tensor, new: Tensor) -> Tensor:
        """(B, N, T + n, H): the layer's cache (B, N, capacity, H) and the new tokens, which stand in it as
        far as it has room."""
        rows, start = len(new), self.cache.length
        fit = min(self.end, cached.shape[2])
        cached[:rows, :, start:fit] = new[:, :, : fit - start]
        if fit == self.end:
            return cached[:rows, :, : self.end]
        return torch.cat([cached[:rows, :, :start], new], dim=2)

    def _attend(self, part: _Part, layer: int, q: Tensor, k: Tensor, v: Tensor, first: int) -> Tensor:
        """The queries of a part; `first` is the number of the first new token that has one."""
        start, rows = max(part.start, first), len(k)
        q = q[:, :, start - first : part.end - first]
        k, v = (x[:, :, : self.cache.length + part.end] for x in (k, v))
        mask = part.windowed if self.cache.language.window_of(layer) else part.mask
        mask = mask if mask is None else mask[:rows, :, start - part.start :]
        if q.shape[2] == 1 < q.shape[1] // k.shape[1]:
            # One query: those of the heads that share keys stand as several, and nothing is repeated.
            grouped = q.view(rows, k.shape[1], -1, q.shape[3])
            return attend_without_gradient(grouped, k, v, mask).reshape(q.shape)
        return attend_without_gradient(q, repeat_heads(k, q), repeat_heads(v, q), mask)


@cache
def leave_uncompiled() -> None:
    """Have torch.compile leave the cache and its attention out: they would be compiled anew for each form
    that the new tokens take. Called by who compiles, as it imports the compiler, which takes a second."""
    uncompiled = torch.compiler.disable(CachedAttend.__call__)
    CachedAttend.__call__ = uncompiled  # pyright: ignore[reportAttributeAccessIssue]


def _behind(rows: Tensor, new: Tensor) -> Tensor:
    """`new` (1 or B, n) behind `rows` (1 or B, T)."""
    count = max(len(rows), len(new))
    return torch.cat([rows.expand(count, -1), new.expand(count, -1)], dim=1)
