"""Attention over a packed sequence: the layer, and the ways to compute who attends to whom.

Shape letters: B images, T tokens, Q queries (always the last Q of the T tokens), K keys, D width, N heads,
G heads of keys and values, H head size. An `Attend` gets q (B, N, Q, H) and k, v (B, G, T, H) of one layer
and returns (B, N, Q, H).
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._triton import has_triton

from causalfusion.config import LanguageConfig, ModelConfig, QKNormConfig
from causalfusion.errors import UserError
from causalfusion.mask import block_mask, dense_mask, window_mask
from causalfusion.model.cpu_attention import SegmentAttend
from causalfusion.model.kv_heads import repeat_heads
from causalfusion.model.linear import make_linear
from causalfusion.model.norm import make_norm
from causalfusion.model.positions import rotate
from causalfusion.sequence import PackedSequence

AttentionBackend = Literal["auto", "dense", "segments", "flex"]
SEGMENTS_PAY = 0.5
"""Share of all pairs of a float32 sequence up to which, on a CPU, blocks of rows are faster than torch's own
kernel on all of them, from 100 to 1400 tokens (`python -m benchmarks.attention`)."""


FLEX_MIN_HEAD = 16
"""On a GPU the products that FlexAttention is compiled to take no narrower heads."""


class Attend(Protocol):
    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


class DenseAttend:
    """The naive path, and the oracle of the others: one boolean mask for all queries and keys, and one for
    the blocks with a sliding window."""

    def __init__(
        self, sequence: PackedSequence, dropout: float = 0.0, language: LanguageConfig | None = None
    ) -> None:
        self.mask = dense_mask(sequence.clean, sequence.ar_step, owner=sequence.owner)
        self.dropout, self.language, self.windowed = dropout, language, self.mask
        if language is not None and language.window:
            self.windowed = self.mask & window_mask(sequence.text_places, language.window)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        inside = self.language is not None and self.language.window_of(layer)
        mask = (self.windowed if inside else self.mask)[:, :, -q.shape[2] :]
        k, v = repeat_heads(k, q), repeat_heads(v, q)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout)


@cache
def _compiled_flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


class FlexAttend:
    """FlexAttention with a block mask built from the predicate; on a GPU it skips the blocks nobody sees."""

    def __init__(self, sequence: PackedSequence) -> None:
        self.num_tokens = sequence.num_tokens
        # Made here, so that compiled blocks find them ready: of all rows, and of those that are read.
        told = (sequence.clean, sequence.ar_step, sequence.owner)
        self.of_all, first = block_mask(*told), sequence.first_output
        # An encoder's known tokens are not read by a head, and there is no mask of no rows.
        self.of_read = block_mask(*told, first_query=first) if first < self.num_tokens else self.of_all

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = self.of_all if q.shape[2] == self.num_tokens else self.of_read
        k, v = repeat_heads(k, q), repeat_heads(v, q)
        if q.is_cuda:
            return _compiled_flex_attention()(q, k, v, block_mask=mask)
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(q, k, v, block_mask=mask)  # pyright: ignore[reportReturnType]


def select_attend(
    sequence: PackedSequence,
    backend: AttentionBackend = "auto",
    head_dim: int = FLEX_MIN_HEAD,
    dropout: float = 0.0,
    language: LanguageConfig | None = None,
) -> Attend:
    """The way to attend within this sequence; `auto` chooses by device, precision and shape. Only `dense`
    knows dropout of attention weights and a sliding window."""
    windowed = language is not None and language.window > 0
    if windowed and backend not in ("auto", "dense"):
        raise UserError(f"attention backend {backend} knows no sliding window; use auto or dense")
    if dropout or windowed:
        return DenseAttend(sequence, dropout, language)
    if backend == "auto":
        return automatic_attend(sequence, head_dim)[0]
    device = _device(sequence).type
    if backend == "flex" and device == "cpu" and torch.is_grad_enabled():
        raise UserError("attention backend flex has no backward on the CPU; use segments or dense there")
    if backend == "flex" and device == "cuda" and head_dim < FLEX_MIN_HEAD:
        raise UserError(f"attention backend flex {_too_narrow(head_dim)}; use auto or dense")
    return _MAKERS[backend](sequence)


def automatic_attend(sequence: PackedSequence, head_dim: int = FLEX_MIN_HEAD) -> tuple[Attend, str]:
    """The backend that `auto` stands for, and the reason."""
    if _device(sequence).type == "cuda":
        name, reason = backend_on_gpu(head_dim, triton=has_triton())
        return _MAKERS[name](sequence), reason
    segments = SegmentAttend(sequence)
    if torch.is_autocast_enabled("cpu"):
        return segments, "torch's own attention is slow in bfloat16 on a CPU"
    if segments.share <= SEGMENTS_PAY:
        return segments, f"its blocks of rows compute {segments.share:.0%} of all pairs"
    reason = f"torch's kernel is faster where blocks of rows would compute {segments.share:.0%} of all pairs"
    return DenseAttend(sequence), reason


def backend_on_gpu(head_dim: int, *, triton: bool) -> tuple[str, str]:
    """The name of the backend that `auto` stands for on a GPU, and why."""
    if not triton:
        return "dense", "this GPU has no Triton to compile FlexAttention with"
    if head_dim < FLEX_MIN_HEAD:
        return "dense", f"FlexAttention {_too_narrow(head_dim)}"
    return "flex", "on a GPU it skips the blocks of pairs that nobody sees"


def _too_narrow(head_dim: int) -> str:
    return f"takes heads of at least {FLEX_MIN_HEAD} on a GPU, these have {head_dim}"


def choose_backend(sequence: PackedSequence, head_dim: int = FLEX_MIN_HEAD) -> tuple[str, str]:
    """The name of the backend that `auto` stands for, and why."""
    attend, reason = automatic_attend(sequence, head_dim)
    return next(name for name, maker in _MAKERS.items() if isinstance(attend, maker)), reason


def _device(sequence: PackedSequence) -> torch.device:
    return sequence.segments[-1].values.device


_MAKERS = {"dense": DenseAttend, "segments": SegmentAttend, "flex": FlexAttend}


class Attention(nn.Module):
    """Multi-head attention, with a norm of queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size, self.head_dim = config.hidden_size, config.head_dim
        self.num_heads, self.kv_heads = config.num_heads, config.kv_heads
        widths = (config.query_size, self.kv_heads * self.head_dim)
        self.qkv = make_linear(size, widths[0] + 2 * widths[1], config.bias.qkv, config.lora)
        self.over_width = config.qk_norm.over == "width"
        norms = [_qk_norm(config.qk_norm, width if self.over_width else self.head_dim) for width in widths]
        self.q_norm, self.k_norm = norms
        self.interleaved = config.rope.pairs == "interleaved"
        self.proj = make_linear(widths[0], size, config.bias.attention, config.lora)

    def forward(
        self, x: Tensor, attend: Attend, layer: int, first_query: int = 0, rotation: Tensor | None = None
    ) -> Tensor:
        """x (B, T, D) -> (B, T - first_query, D)."""
        return self.merge(attend(layer, *self.split(x, first_query, rotation)))

    def split(
        self, x: Tensor, first_query: int = 0, rotation: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> normed and turned q (B, N, T - first_query, H) and k, and v, (B, G, T, H)."""
        q, k, v = self._project(x, first_query)
        if not self.over_width:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q = rotate(q, rotation[..., first_query:, :], self.interleaved)
            k = rotate(k, rotation, self.interleaved)
        return q.to(v.dtype), k.to(v.dtype), v  # LayerNorm may return float32 under autocast

    def merge(self, out: Tensor) -> Tensor:
        """What attention gave (B, N, Q, H) -> (B, Q, D)."""
        return self.proj(out.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor, first_query: int) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, N, Q, H), k and v (B, G, T, H) of G heads, each contiguous: one copy serves the norms and
        products."""
        size = self.num_heads * self.head_dim
        if first_query == 0 and not self.over_width:
            qkv = self.qkv(x)
            if self.kv_heads == self.num_heads:
                q, k, v = self._split_heads(qkv, 3)
                return q, k, v
            k, v = self._split_heads(qkv[..., size:], 2)
            return self._split_heads(qkv[..., :size], 1)[0], k, v
        q, kv = self.qkv.part(x[:, first_query:], 0, size), self.qkv.part(x, size)
        if self.over_width:
            k, v = kv.chunk(2, dim=-1)
            q, kv = self.q_norm(q), torch.cat([self.k_norm(k).to(v.dtype), v], dim=-1)
        k, v = self._split_heads(kv, 2)
        return self._split_heads(q, 1)[0], k, v

    def _split_heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, T, parts * N * H) -> `parts` tensors (B, N, T, H)."""
        return x.unflatten(-1, (parts, -1, self.head_dim)).permute(2, 0, 3, 1, 4).contiguous().unbind(0)


def _qk_norm(config: QKNormConfig, size: int) -> nn.Module:
    if config.kind == "none":
        return nn.Identity()
    return make_norm(size, config.kind, config.weight == "learned", config.eps)
