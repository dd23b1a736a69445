"""Generalized causal attention: one predicate over role and AR step, in two forms.

Where several images stand in a row, their tokens have owners too, and see those of their own owner alone:
AR steps cannot tell images apart whose clean tokens all come before another's.

Shape letters: B images, T packed tokens, Q queries, K keys. A boolean mask is True where a query may
attend, which is the sense of `scaled_dot_product_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def may_attend(
    q_clean: Tensor,
    q_ar_step: Tensor,
    k_clean: Tensor,
    k_ar_step: Tensor,
    q_owner: Tensor | None = None,
    k_owner: Tensor | None = None,
) -> Tensor:
    """True where a query may attend to a key, elementwise over broadcast tensors. Without
    owners, all tokens of a row have the same."""
    to_context = k_clean & ((k_ar_step < q_ar_step) | ((k_ar_step == q_ar_step) & q_clean))
    to_own_step = ~k_clean & ~q_clean & (k_ar_step == q_ar_step)
    seen = to_context | to_own_step
    return seen if q_owner is None or k_owner is None else seen & (k_owner == q_owner)


def dense_mask(
    q_clean: Tensor,
    q_ar_step: Tensor,
    k_clean: Tensor | None = None,
    k_ar_step: Tensor | None = None,
    owner: Tensor | None = None,
) -> Tensor:
    """The boolean mask, (1 or B, 1, Q, K), for roles (Q,) and (K,) and AR steps (1 or B, Q) and (1 or B, K).

    By default the keys are the queries, which may have an `owner` (1 or B, Q) each.
    """
    k_clean = q_clean if k_clean is None else k_clean
    k_ar_step = q_ar_step if k_ar_step is None else k_ar_step
    owners = () if owner is None else (owner[:, :, None], owner[:, None, :])
    queries, keys = (q_clean[:, None], q_ar_step[:, :, None]), (k_clean[None, :], k_ar_step[:, None, :])
    return may_attend(*queries, *keys, *owners)[:, None]


def window_mask(q_places: Tensor, window: int, k_places: Tensor | None = None) -> Tensor:
    """True where a key is among the last `window` text places up to the query's, (1 or B, 1, Q, K), for
    places (1 or B, Q) and (1 or B, K); by default the keys are the queries."""
    k_places = q_places if k_places is None else k_places
    return (k_places[:, None, :] > q_places[:, :, None] - window)[:, None]


def block_mask(
    clean: Tensor,
    ar_step: Tensor,
    owner: Tensor | None = None,
    *,
    first_query: int = 0,
    block_size: int = 128,
) -> Any:
    """The same mask as a FlexAttention `BlockMask`, for queries first_query..T-1 and all keys; `clean` is
    (T,), `ar_step` (1 or B, T), and `owner` the same."""
    from torch.nn.attention.flex_attention import create_block_mask

    num_tokens, per_image = clean.shape[0], ar_step.shape[0] > 1
    make = create_block_mask
    if per_image and clean.is_cuda:  # uncompiled, it would hold the dense masks of all images in memory
        make = torch.compile(create_block_mask, dynamic=True)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        b = b if per_image else torch.zeros_like(b)
        q = q + first_query
        owners = () if owner is None else (owner[b, q], owner[b, k])
        return may_attend(clean[q], ar_step[b, q], clean[k], ar_step[b, k], *owners)

    return make(
        mask_mod,
        B=ar_step.shape[0] if per_image else None,
        H=None,
        Q_LEN=num_tokens - first_query,
        KV_LEN=num_tokens,
        device=clean.device,  # pyright: ignore[reportArgumentType]
        BLOCK_SIZE=block_size,
    )
