"""Weights of their own for image tokens, and low-rank additions: what they leave as it was, and what a cache,
a frozen text and a merge must not change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from causalfusion.codec.tokenizer import Markers
from causalfusion.config import (
    NUM_MARKERS,
    BiasConfig,
    HeadConfig,
    ImageWeightsConfig,
    LanguageConfig,
    LoraConfig,
    ModelConfig,
    NormConfig,
    QKNormConfig,
)
from causalfusion.documents import Document, Image, Text, lay_out, pack_documents
from causalfusion.factorization import Plan, ar_step_of, even_split
from causalfusion.model.kv_cache import KVCache
from causalfusion.model.linear import LoraLinear
from causalfusion.model.transformer import Predictions, Transformer
from causalfusion.sequence import PackedSequence, image_segment

VOCABULARY = 30
MARKERS = Markers(*range(VOCABULARY, VOCABULARY + NUM_MARKERS))
TOKENS, SIZE, ROWS = 16, 12, 2
CAPTIONED: list[Document] = [[Text((1, 2, 3)), Image(0)], [Text((4, 5)), Image(1)]]
TWO_WAYS: list[Document] = [[Text((1, 2, 3)), Image(0)], [Image(1), Text((4, 5))]]


def drawing_model(seed: int = 0, **changes: Any) -> Transformer:
    """Text as in LLaMA, tied, markers apart; random weights."""
    norm = NormConfig(kind="rms_norm")
    config = ModelConfig(
        hidden_size=24, depth=2, num_heads=4, num_kv_heads=2, head_size=10, mlp="swiglu", mlp_hidden=20,
        norm=norm, out_norm=norm, qk_norm=QKNormConfig(kind="none"), token_dim=SIZE, grid_height=4,
        grid_width=4, bias=BiasConfig(attention=False, mlp=False), num_class_tokens=0,
        vocab_size=VOCABULARY + NUM_MARKERS, max_text_tokens=32,
        language=LanguageConfig(positions="rope", tied=True, markers="own"),
    )  # fmt: skip
    model, generator = Transformer(replace(config, **changes)), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.4, generator=generator)
    return model


def own(size: int = 0, hidden: int = 0) -> ImageWeightsConfig:
    return ImageWeightsConfig(kind="own", hidden_size=size, mlp_hidden=hidden)


def images(seed: int = 1) -> Tensor:
    return torch.randn(ROWS, TOKENS, SIZE, generator=torch.Generator().manual_seed(seed))


def packed(documents: list[Document], steps: int = 3, *, read: bool = True) -> PackedSequence:
    plan = Plan(torch.arange(TOKENS)[None], ar_step_of(even_split(TOKENS, steps))[None], 4)
    layout = lay_out(documents, MARKERS, [steps] * ROWS, ended=True, read=read)
    labels, timesteps = torch.zeros(ROWS, dtype=torch.int64), torch.tensor([[300], [700]])
    return pack_documents(layout, labels, 0, images(), images(2), plan, timesteps)


def close(found: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=atol)


def copied(shared: Transformer) -> Transformer:
    """The same numbers, image tokens through copies of the weights."""
    model, state = drawing_model(image_weights=own()), shared.state_dict()
    for name in model.state_dict():
        if name.startswith("image_norm_out"):
            state[name] = state[name.removeprefix("image_")]
        elif ".image." in name:
            state[name] = state[name.replace(".image.", ".")]
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("backend", ["dense", "segments"])
@pytest.mark.parametrize("documents", [CAPTIONED, TWO_WAYS], ids=["captioned", "two ways"])
@torch.no_grad()
def test_copies_of_the_texts_weights_compute_the_same(documents: list[Document], backend: Any):
    shared, sequence = drawing_model(), packed(documents)
    expected, found = (model(sequence, backend=backend) for model in (shared, copied(shared)))
    close(found.image, expected.image, 1e-6)
    close(found.text, expected.text, 1e-6)


@torch.no_grad()
def test_text_alone_is_the_language_models_to_the_bit():
    """Whatever the weights of image tokens and of markers are."""
    sequence = packed([[Text((1, 2, 3))], [Text((4, 5))]])
    text = PackedSequence(tuple(s for s in sequence.segments if s.kind == "text"))
    one, other = drawing_model(image_weights=own(16)), drawing_model(1, image_weights=own(16))
    for name, value in one.state_dict().items():
        if not name.startswith(("image", "timestep", "marker")) and ".image." not in name:
            other.state_dict()[name].copy_(value)
    ids = replace(text.segments[0], values=text.segments[0].values.clamp(max=VOCABULARY - 1))
    logits = [model(PackedSequence((ids,))).text[..., :VOCABULARY] for model in (one, other)]
    assert logits[0].equal(logits[1])


@pytest.mark.parametrize(
    "changes", [{}, {"head": HeadConfig(kind="per_token", depth=2)}], ids=["joint", "per token"]
)
@torch.no_grad()
def test_a_cached_context_gives_what_the_masked_pass_gives(changes: dict[str, Any]):
    """Texts, then the image's AR steps one after another against the cache, of two widths."""
    model, steps = drawing_model(image_weights=own(16, 28), **changes), 3
    sequence = packed(CAPTIONED, steps)
    noised = sequence.segments[-1]
    if model.head is not None:
        asked = replace(noised, role="asked", values=noised.values[..., :0], timesteps=None)
        sequence = PackedSequence((*sequence.segments[:-1], asked))
    whole = model(sequence)
    expected = whole.image if model.head is None else whole.condition
    clean, text = (next(s for s in sequence.segments if s.kind == kind) for kind in ("image", "text"))
    cache = KVCache.allocate(model.config, ROWS, 64, device=torch.device("cpu"), dtype=torch.float32)
    before = PackedSequence((text,))
    model(before, cache.attend(before))
    cache.commit(before)
    found, start = [], 0
    for size in even_split(TOKENS, steps):
        part = slice(start, start + size)
        asking = _part(sequence.segments[-1], part)
        predictions: Predictions = model(PackedSequence((asking,)), cache.attend(PackedSequence((asking,))))
        found.append(predictions.image if model.head is None else predictions.condition)
        finished = PackedSequence((_part(clean, part),))
        model(finished, cache.attend(finished))
        cache.commit(finished)
        start += size
    close(torch.cat(found, dim=1), expected)


def _part(segment: Any, rows: slice) -> Any:
    return image_segment(
        segment.role, segment.values[:, rows], segment.ar_step[:, rows], segment.places[:, rows],
        segment.timesteps, segment.image_index[:, rows], segment.grid, segment.text_places[:, rows],
    )  # fmt: skip


@pytest.mark.parametrize("documents", [CAPTIONED, TWO_WAYS], ids=["captioned", "two ways"])
@pytest.mark.parametrize("read", [True, False], ids=["text is read", "text for images alone"])
def test_a_frozen_text_changes_no_gradient_of_the_images(documents: list[Document], read: bool):
    """The shortcut, no gradient through a text that sees no image, is exact; and where text sees images, it
    is not taken."""
    sequence, gradients = packed(documents, read=read), []
    for frozen in (False, True):
        model = drawing_model(image_weights=own(16))
        for name, parameter in model.named_parameters():
            of_images = name.startswith(("image", "timestep")) or ".image." in name
            parameter.requires_grad_(of_images or not frozen)
        predictions = model(sequence)
        loss = predictions.image.square().mean()
        if read:
            loss = loss + predictions.text[..., 3].mean()
        loss.backward()
        gradients.append(
            {n: p.grad for n, p in model.named_parameters() if n.startswith("image") or ".image." in n}
        )
    for name, expected in gradients[0].items():
        close(gradients[1][name], expected, 1e-6)


def test_texts_for_images_alone_end_with_the_last_image():
    read, unread = (lay_out(TWO_WAYS, MARKERS, [2, 2], ended=True, read=r) for r in (True, False))
    assert read.text_ids[0].tolist() == [
        MARKERS.text, 1, 2, 3, MARKERS.text_end, MARKERS.image, MARKERS.image_end, MARKERS.end,
    ]  # fmt: skip
    assert unread.text_ids[0].tolist() == [MARKERS.text, 1, 2, 3, MARKERS.text_end, MARKERS.image]
    assert unread.text_ids[1].tolist()[:1] == [MARKERS.image] and int(unread.text_lengths[1]) == 1


@torch.no_grad()
def test_low_rank_additions_begin_as_nothing_and_merge_into_the_weights():
    sequence, lora = packed(CAPTIONED), LoraConfig(rank=3, alpha=6.0)
    plain = drawing_model()
    begun = Transformer(replace(plain.config, lora=lora))
    fresh = begun.state_dict()
    begun.load_state_dict(plain.state_dict() | {k: v for k, v in fresh.items() if "lora_" in k})
    expected, found = plain(sequence), begun(sequence)
    assert found.image.equal(expected.image) and found.text.equal(expected.text)
    adapted = drawing_model(lora=lora)
    merged = Transformer(plain.config)
    state = {k: v for k, v in adapted.state_dict().items() if "lora_" not in k}
    layers = {n: m for n, m in adapted.named_modules() if isinstance(m, LoraLinear)}
    assert len(layers) == 2 * 5  # qkv, output, and three of the MLP
    state |= {f"{name}.weight": layer.merged() for name, layer in layers.items()}
    merged.load_state_dict(state)
    expected, found = merged(sequence), adapted(sequence)
    close(found.image, expected.image, 1e-4)
    close(found.text, expected.text, 1e-4)
