"""Text, one token after another, against the cache.

Shape letters: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from causalfusion.codec.tokenizer import Markers
from causalfusion.config import WriteConfig
from causalfusion.generate.context import Context
from causalfusion.machine.runtime import widest_float
from causalfusion.model.transformer import Transformer
from causalfusion.rng import derive_generator
from causalfusion.sequence import PackedSequence, text_segment

TokenWatcher = Callable[[int, int], None]
"""Called with (row, token id) for every token that becomes part of a text."""


def choose_tokens(logits: Tensor, config: WriteConfig, uniform: Tensor) -> Tensor:
    """(B,) ids from logits (B, V): the likeliest at temperature 0; else the token at the place `uniform` (B,)
    in [0, 1) of the cumulative distribution, likeliest first, cut to top_k, and of these to top_p."""
    if config.text_temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.to(widest_float(logits.device)) / config.text_temperature, dim=-1)
    probabilities, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    if config.top_k:
        probabilities[:, config.top_k :] = 0
    before = probabilities.cumsum(-1) - probabilities
    share = config.top_p * probabilities.sum(-1, keepdim=True)
    probabilities = probabilities.masked_fill(before >= share, 0)  # the first always stays
    cumulative = probabilities.cumsum(-1)
    target = uniform[:, None].to(cumulative) * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True).clamp(max=ids.shape[1] - 1)
    return ids.gather(1, place)[:, 0]


def restrict_to(logits: Tensor, allowed: Sequence[int]) -> Tensor:
    """Logits (B, vocabulary) with all tokens but the allowed ones at minus infinity."""
    masked = torch.full_like(logits, -torch.inf)
    masked[:, list(allowed)] = logits[:, list(allowed)]
    return masked


@torch.no_grad()
def write_texts(
    model: Transformer,
    context: Context,
    markers: Markers,
    config: WriteConfig,
    *,
    seed: int,
    row_indices: Sequence[int],
    watch: TokenWatcher | None = None,
) -> list[list[int]]:
    """The token ids of the texts that the rows of the context have open, without their end marker.

    Row i draws from (seed, row_indices[i]) alone. A text ends where the model ends it, at max_tokens, or
    where the model has no room left.
    """
    assert context.text_logits is not None, "the context ends with an open text"
    room = model.config.max_text_tokens - context.text_lengths - 1  # keep room for the end marker
    return draw_texts(
        context.text_logits.clone(),
        lambda chosen, place: append_tokens(model, context, chosen, place),
        room.clamp(0, config.max_tokens).tolist(),
        {markers.text_end},
        config,
        seed=seed,
        row_indices=row_indices,
        forbidden=[markers.text, markers.image, markers.image_end, markers.end],
        watch=watch,
    )


def draw_texts(
    logits: Tensor,
    append: Callable[[Tensor, int], Tensor],
    limits: Sequence[int],
    ends: Collection[int],
    config: WriteConfig,
    *,
    seed: int,
    row_indices: Sequence[int],
    forbidden: Sequence[int] = (),
    watch: TokenWatcher | None = None,
) -> list[list[int]]:
    """The ids of rows of text, one token after another, without those that end them.

    `logits` (B, V) are of the first token, and are changed in place; `append(chosen, place)` puts ids (B,)
    behind the rows and gives the next. Row i draws from (seed, row_indices[i]) alone, and ends at one of
    `ends` or after limits[i] tokens.
    """
    uniform = torch.stack(
        [torch.rand(max(limits), generator=derive_generator(seed, "text", index)) for index in row_indices]
    )
    texts: list[list[int]] = [[] for _ in limits]
    done = [limit == 0 for limit in limits]
    for place in range(max(limits)):
        logits[:, list(forbidden)] = -torch.inf
        chosen = choose_tokens(logits, config, uniform[:, place].to(logits.device))
        for row, token in enumerate(chosen.tolist()):
            done[row] = done[row] or token in ends
            if not done[row]:
                texts[row].append(token)
                if watch is not None:
                    watch(row, token)
                done[row] = len(texts[row]) == limits[row]
        if all(done):
            break
        logits = append(chosen, place)
    return texts


def append_tokens(model: Transformer, context: Context, tokens: Tensor, place: int) -> Tensor:
    """Put one more token of every row into the cache; (B, V) logits of what follows it."""
    ar_step = torch.full((1, 1), context.next_ar_step + place, device=tokens.device)
    # A row that is done may have no positions left; nothing reads what is computed for it.
    places = (context.text_lengths + place).clamp(max=model.config.max_text_tokens - 1)[:, None]
    text_places = None if context.image.index is None else places + context.image.index[:, None]
    sequence = PackedSequence((text_segment(tokens[:, None], ar_step, places, text_places),))
    logits = model(sequence, context.cache.attend(sequence)).text
    context.cache.commit(sequence)
    return logits[:, -1].float()
