"""Text and images in one sequence: generation against the cache is the masked training pass; how text is
chosen; edits under a prompt. On random small models of which no layer is zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from causalfusion.codec.codec import open_codec
from causalfusion.codec.tokenizer import Markers, Tokenizer, train_tokenizer
from causalfusion.config import (
    CodecConfig,
    DiffusionConfig,
    ModelConfig,
    SampleConfig,
    TextConfig,
    WriteConfig,
)
from causalfusion.diffusion.process import make_process
from causalfusion.documents import Document, Image, ImageToCome, Text, lay_out, pack_context, pack_documents
from causalfusion.errors import UserError
from causalfusion.factorization import Plan, ar_step_of
from causalfusion.generate.ar_step import make_step
from causalfusion.generate.context import Context, prefill
from causalfusion.generate.guidance import Guidance, guidance_of_steps
from causalfusion.generate.layout import draw_orders
from causalfusion.generate.noise import ImageNoise
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.prompts import Prompts, image_documents, prompt_ids
from causalfusion.generate.tokens import generate_tokens
from causalfusion.generate.write import choose_tokens, write_texts
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import ModelSpec

VOCABULARY = 40
MARKERS = Markers(*range(35, 40))
CONFIG = ModelConfig(hidden_size=32, depth=3, num_heads=2, num_class_tokens=2, num_classes=5, token_dim=3,
                     grid_height=4, grid_width=4, vocab_size=VOCABULARY, max_text_tokens=48)  # fmt: skip
PROCESS = make_process(DiffusionConfig())
TOLERANCE = 1e-5

VARIANTS = [
    {"position_embedding": "rope", "num_class_tokens": 2, "max_images": 3},
    {"position_embedding": "rope", "num_class_tokens": 0, "max_images": 1},
    {"position_embedding": "sincos", "num_class_tokens": 2, "max_images": 1},
    {"position_embedding": "sincos", "num_class_tokens": 0, "max_images": 3},
]
CONTEXTS = ["clean", "noised"]


def make_model(**changes: Any) -> Transformer:
    model = Transformer(replace(CONFIG, **changes))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        scale = "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(scale), std=0.2, generator=generator)
    return model.eval().requires_grad_(False)


def steered(preferences: dict[int, float], **changes: Any) -> Transformer:
    """A model that gives these tokens their logits wherever it is, and all others what it thinks of them."""
    model = make_model(**changes)
    assert model.text_out is not None
    with torch.no_grad():
        model.norm_out.weight[0] = 0
        model.norm_out.bias[0] = 1
        model.text_out.weight[:, 0] = 0
        for token, logit in preferences.items():
            model.text_out.weight[token] = 0
            model.text_out.weight[token, 0] = logit
    return model


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def text(length: int, seed: int = 0, *, open: bool = False) -> Text:
    """Ordinary tokens drawn with that seed."""
    ids = torch.randint(35, (length,), generator=generator_of(seed)).tolist()
    return Text(tuple(ids), open=open)


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 16, 3, generator=generator_of(seed))


def error(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).abs().max() / reference.abs().max())


# --- text, one token after another ------------------------------------------------------------------------

OPEN = Text(open=True)
STARTS: dict[str, list[Document]] = {
    "after an image": [[Image(0), OPEN], [Image(1), OPEN], [Image(2), OPEN]],
    "after text, image, text": [
        [text(3, 1), Image(0), text(2, 2), OPEN],
        [text(3, 3), Image(1), text(2, 4), OPEN],
    ],
    "lengths differ": [
        [text(9, 1), Image(0), OPEN],
        [text(1, 2), Image(2), OPEN],
        [Text(), Image(1), text(4, 5, open=True)],
    ],
    "text alone": [[text(5, 1, open=True)], [OPEN]],
}
INTERLEAVED: list[Document] = [
    [Image(0), text(2, 1), Image(1), OPEN],
    [text(7, 2), Image(2), OPEN],
    [text(4, 3, open=True)],
]
"""Rows with two images, one and none."""
ENDS = {MARKERS.text_end: -1.0}
"""Some rows end while others go on."""


def write_and_watch(
    model: Transformer, documents: Sequence[Document], tokens: Tensor, labels: Tensor, image_context: Any
) -> tuple[list[list[int]], list[Tensor]]:
    """The written ids, and the logits (B, V) from which each of them was chosen."""
    captured: list[Tensor] = []
    prompts = Prompts(documents, MARKERS, tokens, image_context)
    context = prefill(model, labels, SampleConfig(), prompts=prompts)
    assert context.text_logits is not None
    captured.append(context.text_logits.clone())
    handle = model.register_forward_hook(lambda m, a, output: captured.append(output.text[:, -1].clone()))
    config = WriteConfig(max_tokens=9, text_temperature=1.0)
    ids = write_texts(model, context, MARKERS, config, seed=3, row_indices=range(len(documents)))
    handle.remove()
    return ids, captured


def assert_written_as_in_one_pass(
    model: Transformer, documents: Sequence[Document], image_context: Any
) -> None:
    tokens, labels = images(3), torch.arange(len(documents))
    if all(isinstance(e, Text) for d in documents for e in d):
        tokens = tokens[:0]
    ids, captured = write_and_watch(model, documents, tokens, labels, image_context)
    assert max(len(row) for row in ids) >= 7 and len({tuple(row) for row in ids}) == len(ids)

    def whole(row: int) -> Document:
        *before, last = documents[row]
        assert isinstance(last, Text)
        return [*before, replace(last, ids=(*last.ids, *ids[row]))]

    written = [whole(row) for row in range(len(documents))]
    layout = lay_out(written, MARKERS, [1] * len(tokens))
    num_class_tokens = model.config.num_class_tokens
    in_one_pass = model(
        pack_context(layout, labels, num_class_tokens, tokens, 4, image_context), backend="dense"
    ).text
    # What training computes: other noised tokens beside them, which no text sees.
    plan = Plan(torch.arange(16).expand(len(tokens), -1), torch.ones(1, 16, dtype=torch.int64), 4)
    noised = tokens if image_context == "noised" else images(len(tokens), 9)
    timesteps = torch.zeros(len(tokens), 1, dtype=torch.int64)
    in_training = model(
        pack_documents(layout, labels, num_class_tokens, tokens, noised, plan, timesteps, image_context),
        backend="dense",
    ).text
    for row, length in enumerate(layout.text_lengths.tolist()):
        count = len(ids[row])
        for j in range(min(count + 1, len(captured))):
            place = length - 1 - count + j
            assert error(captured[j][row], in_one_pass[row, place]) <= TOLERANCE, (row, j)
            assert error(captured[j][row], in_training[row, place]) <= TOLERANCE, (row, j)


@pytest.mark.parametrize("image_context", CONTEXTS)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_text_written_against_the_cache_equals_one_masked_pass(variant, start, image_context):
    """At every token, batched rows with their own images and lengths: the logits of one pass over the whole
    document, and those of the training pass."""
    assert_written_as_in_one_pass(steered(ENDS, **variant), STARTS[start], image_context)


@pytest.mark.parametrize("image_context", CONTEXTS)
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v["max_images"] > 1])
def test_text_of_rows_with_different_numbers_of_images(variant, image_context):
    assert_written_as_in_one_pass(steered(ENDS, **variant), INTERLEAVED, image_context)


def test_text_depends_on_its_image_and_on_the_text_before_it():
    """So that the equalities above are not those of constants."""
    model, labels = make_model(**VARIANTS[0]), torch.tensor([0])

    def logits(document: Document, tokens: Tensor) -> Tensor:
        context = prefill(model, labels, SampleConfig(), prompts=Prompts([document], MARKERS, tokens))
        assert context.text_logits is not None
        return context.text_logits

    base = logits([text(3), Image(0), OPEN], images(1))
    assert error(logits([text(3), Image(0), OPEN], images(1, 2)), base) > 1e-2
    assert error(logits([text(3, 9), Image(0), OPEN], images(1)), base) > 1e-2
    assert error(logits([Image(0), text(3), OPEN], images(1)), base) > 1e-2


# --- images after text: every AR step ---------------------------------------------------------------------

SIZES = {1: [16], 2: [5, 11], 16: [1] * 16}
TO_DRAW: dict[str, list[Document]] = {
    "text": [[text(6, 1), ImageToCome()], [text(1, 2), ImageToCome()], [text(11, 3), ImageToCome()]],
    "empty beside text": [[Text(), ImageToCome()], [text(4, 2), ImageToCome()]],
    "second image": [
        [text(6, 1), Image(1), text(2, 4), ImageToCome()],
        [text(2, 2), Image(0), text(5, 5), ImageToCome()],
    ],
    "after an image alone": [[Image(0), ImageToCome()], [Image(1), text(3), ImageToCome()]],
}
MIXED: list[Document] = [
    [text(6, 1), ImageToCome()],
    [Image(0), text(2, 4), ImageToCome()],
    [Image(1), Image(2), ImageToCome()],
]
"""The image to come is a row's first, second and third."""


def training_pass(
    model: Transformer, documents: Sequence[Document], context_tokens: Tensor, labels: Tensor,
    order: Tensor, sizes: list[int], clean: Tensor, noised: Tensor, timestep: int, image_context: Any,
) -> Tensor:  # fmt: skip
    """(B, L, P) predictions for the images to come, in the order of their plan, of the masked pass with
    everything there; the images before them were drawn in one AR step."""
    batch, before = len(documents), len(context_tokens)
    whole = [[*d[:-1], Image(before + row)] for row, d in enumerate(documents)]
    raster = torch.arange(16).expand(before, -1)
    plan = Plan(
        torch.cat([raster, order]),
        torch.cat([torch.ones(before, 16, dtype=torch.int64), ar_step_of(sizes).expand(batch, -1)]),
        grid_width=4,
    )
    other = context_tokens if image_context == "noised" else images(before, 77)
    timesteps = torch.tensor([[0]] * before + [[timestep]] * batch)
    steps = [1] * before + [1 if image_context == "noised" else len(sizes)] * batch
    layout = lay_out(whole, MARKERS, steps, ended=True)
    sequence = pack_documents(
        layout, labels, model.config.num_class_tokens, torch.cat([context_tokens, clean]),
        torch.cat([other, noised]), plan, timesteps, image_context,
    )  # fmt: skip
    predictions = model(sequence, backend="dense").image.reshape(-1, 16, 3)[layout.place_of_image]
    assert len(predictions) == before + batch
    return predictions[before:]


def assert_drawn_as_trained(
    model: Transformer, documents: Sequence[Document], sizes: list[int], scale: float,
    image_context: Any = "clean", interval: tuple[int, int] = (0, 999),
) -> None:  # fmt: skip
    batch = len(documents)
    num_before = sum(isinstance(e, Image) for d in documents for e in d)
    before, labels = images(num_before), torch.arange(batch)
    clean, noised = images(batch, 2), images(batch, 3)
    order = torch.stack([torch.randperm(16, generator=generator_of(row)) for row in range(batch)])
    config = SampleConfig(guidance_scale=scale, guidance_interval=interval)
    prompts = Prompts(documents, MARKERS, before, image_context)
    context = prefill(model, labels, config, prompts=prompts)
    assert context.guided == (scale != 1)

    def expected(timestep: int) -> Tensor:
        def masked(documents: Sequence[Document], labels: Tensor) -> Tensor:
            return training_pass(
                model, documents, before, labels, order, sizes, clean, noised, timestep, image_context
            )

        conditional = masked(documents, labels)
        if scale == 1 or not interval[0] <= timestep <= interval[1]:
            return conditional
        null = torch.full_like(labels, model.config.null_label)
        empty = [[Text() if isinstance(e, Text) else e for e in d] for d in documents]
        unconditional = masked(empty, null)
        # What guidance amplifies is there, but where neither a text nor a class is left out.
        assert error(conditional, unconditional) > 1e-3
        return unconditional + scale * (conditional - unconditional)

    references = {t: expected(t) for t in (0, 500, 999)}
    guidances = guidance_of_steps(config, sizes, PROCESS, None)
    start = 0
    for index, size in enumerate(sizes):
        part = slice(start, start + size)
        step = make_step(model, context, order[:, start:], size, guidances[index])
        for timestep, reference in references.items():
            found = step.predict(noised[:, part], timestep, float(PROCESS.shares(torch.tensor(timestep))))
            difference = (found - reference[:, part]).abs().max() / reference.abs().max()
            assert difference <= TOLERANCE, (index, timestep)
        context = step.finish(clean[:, part])
        start += size


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("num_ar_steps", SIZES)
@pytest.mark.parametrize(
    ("variant", "documents"),
    [(v, d) for v in VARIANTS for d in TO_DRAW if v["max_images"] > 1 or d in ("text", "empty beside text")],
)
def test_every_ar_step_after_text_equals_the_training_pass(variant, documents, num_ar_steps, scale):
    """Prompts of different length in one batch, at three noise levels, with and without guidance against
    the empty caption and the null class."""
    assert_drawn_as_trained(make_model(**variant), TO_DRAW[documents], SIZES[num_ar_steps], scale)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_images_that_are_the_first_second_and_third_of_their_rows(scale):
    assert_drawn_as_trained(make_model(max_images=3), MIXED, [5, 11], scale)


@pytest.mark.parametrize("batch", [1, 3])
def test_guidance_inside_an_interval_only(batch):
    """Outside it the rows with the condition run alone, against a cache with both."""
    documents = TO_DRAW["text"][:batch]
    assert_drawn_as_trained(make_model(), documents, [5, 11], 2.5, interval=(200, 700))


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("documents", TO_DRAW)
@pytest.mark.parametrize("positions", ["rope", "sincos"])
def test_transfusion_draws_an_image_as_it_was_trained(positions, documents, scale):
    """S = 1, images before it at timestep 0, which is what stands in place of clean tokens."""
    model = make_model(max_images=3, position_embedding=positions)
    assert_drawn_as_trained(model, TO_DRAW[documents], [16], scale, "noised")


def contexts_seen(model: Transformer, image_context: Any) -> list[tuple[str, list[int] | None]]:
    """(role, timesteps) of all image segments with finished tokens, in an edit in three AR steps after text
    and an image."""
    seen = []

    def spy(module: Any, args: Any) -> None:
        for segment in args[0].segments:
            if segment.kind == "image" and segment.role == "clean":
                times = segment.timesteps
                seen.append((segment.role, None if times is None else times.flatten().tolist()))

    documents = [[text(2), Image(0), ImageToCome()]]
    tokens, kept = images(1), torch.arange(4)[None]
    config = SampleConfig(diffusion_steps=[1])
    handle = model.register_forward_pre_hook(spy)
    context = prefill(
        model, torch.tensor([0]), config, prompts=Prompts(documents, MARKERS, tokens, image_context),
        kept_tokens=tokens[:, :4], kept_positions=kept,
    )  # fmt: skip
    noise = ImageNoise(0, [0], 16, 3)
    order = torch.arange(4, 16)[None]
    generate_tokens(model, PROCESS, config, context, order, [4, 4, 4], noise)
    handle.remove()
    return seen


def test_transfusion_tells_the_model_that_finished_tokens_are_at_timestep_zero():
    """An image before, tokens kept in an edit, and finished AR steps; the others have no timestep at all."""
    model = make_model(max_images=2)
    assert contexts_seen(model, "noised") == [("clean", [0])] * 4
    assert contexts_seen(model, "clean") == [("clean", None)] * 4


def test_variants_after_a_fork_draw_and_write_as_their_original():
    """A forked context has all that the rows had: what was read, and where their texts ended."""
    model = make_model(max_images=2)
    documents = [[text(6, 1), Image(0), OPEN], [text(2, 2), Image(1), OPEN]]
    prompts = Prompts(documents, MARKERS, images(2))
    alone = prefill(model, torch.tensor([0, 1]), SampleConfig(), prompts=prompts)
    forked = prefill(model, torch.tensor([0, 1]), SampleConfig(), prompts=prompts).fork(2)
    config = WriteConfig(max_tokens=5, text_temperature=1.0)
    single = write_texts(model, alone, MARKERS, config, seed=0, row_indices=[0, 1])
    variants = write_texts(model, forked, MARKERS, config, seed=0, row_indices=[0, 7, 8, 1])
    assert variants[0] == single[0] and variants[3] == single[1]
    assert variants[1] != variants[0]


# --- which token comes --------------------------------------------------------------------------------


def sampled_shares(logits: list[float], config: WriteConfig, places: int = 20_000) -> Tensor:
    """(V,) how often each token comes if `uniform` goes once over [0, 1) evenly."""
    uniform = (torch.arange(places, dtype=torch.float64) + 0.5) / places
    chosen = choose_tokens(torch.tensor(logits).expand(places, -1), config, uniform)
    return torch.bincount(chosen, minlength=len(logits)) / places


PROBABILITIES = [0.1, 0.45, 0.05, 0.25, 0.15]
LOGITS = [math.log(p) + 3 for p in PROBABILITIES]


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 0.7), (2, 0.63), (3, 0.5), (4, 0.95)])
def test_top_p_is_a_share_of_what_top_k_leaves_as_in_transformers(top_k, top_p):
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = torch.tensor([LOGITS])
    theirs = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k)(None, logits)).softmax(-1)[0]  # type: ignore[arg-type]
    ours = sampled_shares(LOGITS, WriteConfig(text_temperature=1.0, top_k=top_k, top_p=top_p))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_greedy_is_the_likeliest_whatever_the_draw():
    logits = torch.randn(50, 9, generator=generator_of(0))
    for u in (0.0, 0.5, 1 - 2**-24):
        assert choose_tokens(logits, WriteConfig(), torch.full((50,), u)).equal(logits.argmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_have_the_probabilities_of_softmax(temperature):
    """Exactly: the share of [0, 1) that leads to a token is its probability; heat flattens, cold sharpens."""
    shares = sampled_shares(LOGITS, WriteConfig(text_temperature=temperature))
    expected = torch.softmax(torch.tensor(LOGITS) / temperature, 0)
    assert torch.allclose(shares, expected, atol=2e-4)
    assert (shares[1] > 0.46) == (temperature < 1) and (shares[1] < 0.44) == (temperature > 1)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 50])
def test_top_k_keeps_the_k_likeliest_in_their_proportions(k):
    shares = sampled_shares(LOGITS, WriteConfig(text_temperature=1.0, top_k=k))
    likeliest = [1, 3, 4, 0, 2][:k]
    expected = torch.zeros(5)
    expected[likeliest] = torch.tensor(PROBABILITIES)[likeliest]
    assert torch.allclose(shares, expected / expected.sum(), atol=2e-4)
    assert int((shares > 0).sum()) == min(k, 5)


@pytest.mark.parametrize(
    ("p", "kept"), [(0.01, [1]), (0.44, [1]), (0.46, [1, 3]), (0.69, [1, 3]), (0.71, [1, 3, 4]),
                    (0.94, [1, 3, 4, 0]), (0.96, [1, 3, 4, 0, 2]), (1.0, [1, 3, 4, 0, 2])],
)  # fmt: skip
def test_top_p_keeps_the_smallest_set_with_that_probability(p, kept):
    """Tokens with the probabilities 0.45, 0.25, 0.15, 0.1, 0.05."""
    shares = sampled_shares(LOGITS, WriteConfig(text_temperature=1.0, top_p=p))
    expected = torch.zeros(5)
    expected[kept] = torch.tensor(PROBABILITIES)[kept]
    assert torch.allclose(shares, expected / expected.sum(), atol=2e-4)


def test_both_cuts_together_are_the_stricter_one():
    config = WriteConfig(text_temperature=1.0, top_k=2, top_p=0.8)
    assert sampled_shares(LOGITS, config).nonzero()[:, 0].tolist() == [1, 3]
    config = WriteConfig(text_temperature=1.0, top_k=4, top_p=0.6)
    assert sampled_shares(LOGITS, config).nonzero()[:, 0].tolist() == [1, 3]


@pytest.mark.parametrize(
    "config", [WriteConfig(text_temperature=1.0), WriteConfig(text_temperature=5.0, top_k=4)]
)
def test_an_impossible_token_never_comes(config):
    logits = [0.0, -math.inf, 1.0, -math.inf]
    uniform = torch.tensor([0.0, 1e-9, 0.3, 0.9, 1 - 2**-24, 1 - 2**-53], dtype=torch.float64)
    chosen = choose_tokens(torch.tensor([logits] * 6), config, uniform)
    assert set(chosen.tolist()) == {0, 2}


def test_each_row_is_drawn_from_its_own_logits():
    logits = torch.tensor([LOGITS, LOGITS[::-1], [0, 0, 9e3, 0, 0]])
    chosen = choose_tokens(logits, WriteConfig(text_temperature=1.0), torch.tensor([0.1, 0.1, 0.99]))
    assert chosen.tolist() == [1, 3, 2]


# --- texts ----------------------------------------------------------------------------------------------


def read(model: Transformer, documents: Sequence[Document], tokens: Tensor | None = None) -> Context:
    labels = torch.zeros(len(documents), dtype=torch.int64)
    return prefill(model, labels, SampleConfig(), prompts=Prompts(documents, MARKERS, tokens))


def test_markers_other_than_the_end_never_come_in_a_text():
    """Even from a model that wants nothing else."""
    forbidden = [MARKERS.text, MARKERS.image, MARKERS.image_end, MARKERS.end]
    model = steered(dict.fromkeys(forbidden, 50.0) | {MARKERS.text_end: -50.0})
    for temperature in (0.0, 1.0):
        config = WriteConfig(max_tokens=20, text_temperature=temperature)
        for ids in write_texts(
            model, read(model, [[OPEN]] * 4), MARKERS, config, seed=0, row_indices=range(4)
        ):
            assert len(ids) == 20 and not set(ids) & {*forbidden, MARKERS.text_end}


def test_a_text_ends_at_its_marker_and_other_rows_go_on():
    """A row's text stops; what is computed for it until the others end is no part of it, nor is it told."""
    model = steered({MARKERS.text_end: 2.0})
    told: list[tuple[int, int]] = []
    config = WriteConfig(max_tokens=30, text_temperature=1.0)
    rows = 8
    texts = write_texts(
        model, read(model, [[OPEN]] * rows), MARKERS, config, seed=0, row_indices=range(rows),
        watch=lambda row, token: told.append((row, token)),
    )  # fmt: skip
    lengths = [len(ids) for ids in texts]
    assert min(lengths) < 4 < max(lengths) <= 30
    assert all(MARKERS.text_end not in ids for ids in texts)
    assert [[token for r, token in told if r == row] for row in range(rows)] == texts


def test_a_model_that_says_nothing_writes_an_empty_text():
    model = steered({MARKERS.text_end: 50.0})
    context = read(model, [[OPEN], [text(3), OPEN]])
    calls = []
    handle = model.register_forward_hook(lambda *a: calls.append(1))
    assert write_texts(model, context, MARKERS, WriteConfig(), seed=0, row_indices=[0, 1]) == [[], []]
    handle.remove()
    assert not calls  # nothing more to compute


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_length_limit_cuts_and_changes_nothing_before_it(temperature):
    model = steered({MARKERS.text_end: -50.0})
    texts = []
    for limit in (1, 7, 31):
        config = WriteConfig(max_tokens=limit, text_temperature=temperature)
        texts.append(write_texts(model, read(model, [[OPEN]]), MARKERS, config, seed=5, row_indices=[2])[0])
    assert [len(ids) for ids in texts] == [1, 7, 31]
    assert texts[0] == texts[2][:1] and texts[1] == texts[2][:7]


def test_a_text_ends_where_the_model_has_no_room():
    """Position for position: with its end marker the document is exactly as long as the model can hold."""
    model = steered({MARKERS.text_end: -50.0})
    config = WriteConfig(max_tokens=1000)
    (ids,) = write_texts(model, read(model, [[text(20), OPEN]]), MARKERS, config, seed=0, row_indices=[0])
    assert 20 + 2 + 1 + len(ids) + 1 == CONFIG.max_text_tokens
    full = read(model, [[text(CONFIG.max_text_tokens - 3), OPEN]])
    assert write_texts(model, full, MARKERS, config, seed=0, row_indices=[0]) == [[]]


def test_a_row_has_its_own_room():
    """A long text beside it does not cut a short one off."""
    model = steered({MARKERS.text_end: -50.0})
    documents = [[text(30, 1), OPEN], [text(4, 2), OPEN]]
    config = WriteConfig(max_tokens=1000, text_temperature=1.0)
    together = write_texts(model, read(model, documents), MARKERS, config, seed=0, row_indices=[0, 1])
    alone = [
        write_texts(model, read(model, [d]), MARKERS, config, seed=0, row_indices=[i])[0]
        for i, d in enumerate(documents)
    ]
    assert together == alone
    assert [len(ids) for ids in alone] == [48 - 30 - 2 - 2, 48 - 4 - 2 - 2]


def test_a_text_is_a_function_of_seed_and_row_index():
    """Not of the rows beside it, nor of its place among them."""
    model = steered({MARKERS.text_end: 1.0})
    documents = [[Image(0), OPEN], [text(5), Image(1), OPEN], [Image(2), text(2), OPEN]]
    tokens, config = images(3), WriteConfig(max_tokens=12, text_temperature=1.0)

    def write(rows: list[int], indices: list[int], seed: int = 0) -> list[list[int]]:
        chosen = [documents[row] for row in rows]
        context = read(model, chosen, tokens)
        return write_texts(model, context, MARKERS, config, seed=seed, row_indices=indices)

    base = write([0, 1, 2], [10, 11, 12])
    assert write([2, 0], [12, 10]) == [base[2], base[0]]
    assert write([1], [11]) == [base[1]]
    assert write([0, 1, 2], [10, 11, 12], seed=1) != base
    assert write([1], [10]) != [base[1]]
    same = write([0, 0], [3, 4])
    assert same[0] != same[1]


def test_a_context_that_was_read_keeps_its_logits():
    """Writing forbids markers in its own copy: what comes next may still be asked of the context."""
    model = make_model()
    context = read(model, [[OPEN]])
    assert context.text_logits is not None
    before = context.text_logits.clone()
    write_texts(model, context, MARKERS, WriteConfig(max_tokens=1), seed=0, row_indices=[0])
    assert context.text_logits.equal(before) and bool(before.isfinite().all())


# --- pipelines: prompts, edits, captions ------------------------------------------------------------------

WORDS = [
    "a red circle",
    "a blue square above a red circle",
    "two green triangles",
    "left of",
    "<image> </text>",
]


def make_tokenizer() -> Tokenizer:
    return train_tokenizer(WORDS, 300)


def make_pipeline(image_context: Any = "clean", **changes: Any) -> Pipeline:
    """8x8 RGB images of 4x4 tokens."""
    tokenizer = make_tokenizer()
    model = make_model(token_dim=12, vocab_size=tokenizer.vocab_size, **changes)
    codec = open_codec(
        CodecConfig(patch_size=2, image_height=8, image_width=8, image_channels=3), image_shape=(3, 8, 8)
    )
    diffusion = DiffusionConfig(prediction_type="sample")  # so that few pixels are out of range
    of_text = TextConfig(image_context=image_context)
    spec = ModelSpec(model=model.config, codec=codec.config, diffusion=diffusion, text=of_text)
    return Pipeline(model, codec, spec, make_process(diffusion), tokenizer=tokenizer)


def pixels(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=generator_of(seed)) * 2 - 1


FAST = SampleConfig(num_ar_steps=3, diffusion_steps=[3], sampler="ddim")
MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[1:5, 2:7] = True
PROMPTS = ["a red circle", "a blue square above a red circle"]


@pytest.mark.parametrize("image_context", CONTEXTS)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_an_edit_by_prompt_changes_nothing_outside_the_mask(scale, image_context):
    pipeline, originals = make_pipeline(image_context), pixels(2)
    config = replace(FAST, guidance_scale=scale)
    edited = pipeline.edit(originals, MASK, None, config, prompts=PROMPTS, variants=2)
    assert edited.shape == (4, 3, 8, 8)
    repeated = originals.repeat_interleave(2, dim=0)
    assert edited[:, :, ~MASK].equal(repeated[:, :, ~MASK])
    assert ((edited[:, :, MASK] - repeated[:, :, MASK]).abs() > 1e-3).float().mean() > 0.5
    unpasted = pipeline.edit(originals, MASK, None, config, prompts=PROMPTS, variants=2, paste=False)
    kept = ~MASK.view(4, 2, 4, 2).any(3).any(1).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.allclose(unpasted[:, :, kept], repeated[:, :, kept], atol=1e-6)
    assert not torch.allclose(unpasted[:, :, ~MASK & ~kept], repeated[:, :, ~MASK & ~kept], atol=1e-2)


def test_an_edit_sees_what_is_kept_the_prompt_and_nothing_masked():
    pipeline, originals = make_pipeline(), pixels(1)
    config = replace(FAST, guidance_scale=2.0)

    def edit(images: Tensor, prompt: str) -> Tensor:
        return pipeline.edit(images, MASK, None, config, prompts=[prompt])[:, :, MASK]

    base = edit(originals, PROMPTS[0])
    kept, masked = originals.clone(), originals.clone()
    kept[0, 0, 7, 0] += 1
    masked[0, :, MASK] = 0
    assert (edit(kept, PROMPTS[0]) - base).abs().max() > 1e-3
    assert (edit(originals, PROMPTS[1]) - base).abs().max() > 1e-3
    assert edit(masked, PROMPTS[0]).equal(base)


def test_edits_are_independent_of_the_images_and_variants_beside_them():
    """Variant v of image b is image index b * variants + v: here of two images with prompts of different
    length, and of the second image in the place of a third variant."""
    pipeline, originals = make_pipeline(), pixels(2)
    config = replace(FAST, guidance_scale=2.0)
    four = pipeline.edit(originals, MASK, None, config, prompts=PROMPTS, variants=2)
    first = pipeline.edit(originals[:1], MASK, None, config, prompts=PROMPTS[:1], variants=2)
    one = pipeline.edit(originals[:1], MASK, None, config, prompts=PROMPTS[:1])
    assert torch.allclose(four[:2], first, atol=1e-4) and torch.allclose(first[:1], one, atol=1e-4)
    more = pipeline.edit(originals[1:], MASK, None, config, prompts=PROMPTS[1:], variants=4)
    assert torch.allclose(more[2:], four[2:], atol=1e-4)
    assert (four[0] - four[1]).abs().max() > 0.05


def test_an_edit_equals_the_training_pass():
    """Text, then kept tokens as the image's first AR step, then the masked ones, guided."""
    model, documents = make_model(), TO_DRAW["text"]
    order = draw_orders(SampleConfig(), 4, 4, 0, range(3))
    sizes, labels = [6, 4, 6], torch.arange(3)
    clean, noised = images(3, 2), images(3, 3)
    config = SampleConfig(guidance_scale=3.0)
    prompts = Prompts(documents, MARKERS)
    context = prefill(
        model, labels, config, prompts=prompts, kept_tokens=clean[:, :6], kept_positions=order[:, :6]
    )
    none = images(0)
    null, empty = torch.full_like(labels, 5), [[Text(), ImageToCome()]] * 3
    both = [
        training_pass(model, d, none, c, order, sizes, clean, noised, 300, "clean")
        for d, c in ((documents, labels), (empty, null))
    ]
    expected = both[1] + 3.0 * (both[0] - both[1])
    for part in (slice(6, 10), slice(10, 16)):
        step = make_step(model, context, order[:, part], part.stop - part.start, Guidance(3.0))
        found = step.predict(noised[:, part], 300)
        assert error(found, expected[:, part]) <= 2 * TOLERANCE
        context = step.finish(clean[:, part])


@pytest.mark.parametrize("interval", [(0, 999), (300, 700)])
def test_an_image_by_prompt_is_the_same_in_any_batch(interval):
    pipeline = make_pipeline(num_class_tokens=0)
    config = replace(FAST, guidance_scale=2.0, guidance_interval=interval)
    together = pipeline.generate(None, config, prompts=WORDS[:3], seed=4)
    alone = [pipeline.generate(None, config, prompts=[p], seed=4, image_indices=[i])
             for i, p in enumerate(WORDS[:3])]  # fmt: skip
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_captions_are_the_same_in_any_batch():
    pipeline, pictures = make_pipeline(), pixels(3)
    config = WriteConfig(max_tokens=12, text_temperature=1.0)
    together = pipeline.caption(pictures, config, seed=2)
    assert len(set(together)) == 3
    for row in range(3):
        alone = pipeline.caption(pictures[row : row + 1], config, seed=2, image_indices=[row])
        assert alone == [together[row]]


# --- prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", " ", "\n\t"])
def test_an_empty_prompt_is_refused(prompt):
    pipeline = make_pipeline()
    for use in (
        lambda: prompt_ids(prompt, make_tokenizer(), pipeline.model.config),
        lambda: pipeline.generate(None, FAST, prompts=["a red circle", prompt]),
        lambda: pipeline.edit(pixels(1), MASK, None, FAST, prompts=[prompt]),
    ):
        with pytest.raises(UserError, match="the prompt is empty; expected some words") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_a_prompt_has_as_much_room_as_the_model_and_not_more():
    tokenizer = make_tokenizer()
    config = replace(CONFIG, vocab_size=tokenizer.vocab_size, max_text_tokens=20)
    fits = "xqxqxqxqxqxqxqxqx"
    assert len(prompt_ids(fits, tokenizer, config)) == 17
    ((_, begin),) = image_documents([fits], tokenizer, config)
    assert begin == ImageToCome()
    pipeline = make_pipeline(max_text_tokens=20)
    assert pipeline.generate(None, FAST, prompts=[fits]).isfinite().all()
    with pytest.raises(UserError, match=r"the prompt has 18 tokens; this model has room for 17") as caught:
        prompt_ids("\n" + fits, tokenizer, config)
    assert "\n" not in str(caught.value)


def test_markers_in_a_prompt_are_ordinary_text():
    tokenizer = make_tokenizer()
    prompt = "<image> a </text> b <end>"
    ids = prompt_ids(prompt, tokenizer, replace(CONFIG, vocab_size=tokenizer.vocab_size))
    assert not set(ids) & set(vars(tokenizer.markers).values())
    assert max(ids) < tokenizer.base_size and tokenizer.decode(ids) == prompt
