"""Documents of texts and images: who sees whom against the order of the elements, targets, and the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from causalfusion.codec.tokenizer import Markers
from causalfusion.config import ModelConfig
from causalfusion.documents import (
    NO_TARGET,
    UNSEEN,
    Document,
    Image,
    ImageToCome,
    Layout,
    Text,
    lay_out,
    pack_context,
    pack_documents,
)
from causalfusion.factorization import Plan, ar_step_of
from causalfusion.mask import may_attend
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import PackedSequence, pack_training

MARKERS = Markers(text=90, text_end=91, image=92, image_end=93, end=94)
NUM_TOKENS, GRID_WIDTH = 4, 2
"""L of the oracle's images, and how many of them stand in a row."""


# --- who sees whom: the order of the elements against the mask ------------------------------------------


@dataclass(frozen=True)
class Token:
    """A token described in terms of its document alone."""

    kind: Literal["class", "text", "clean", "noised", "fill"]
    element: int = -1
    """Which element of its document; the marker at the end counts as one more."""
    place: int = 0
    """text: how many text tokens of its element come before it."""
    begins_image: bool = False
    """The marker behind which the image of its element stands."""
    own_step: int = 0
    """image: its AR step in its image's own plan."""
    copy: int = 0


def sees(q: Token, k: Token) -> bool:
    """Nothing here knows of AR steps over a whole document: only what comes before what."""
    if k.kind == "fill":
        return False
    if k.kind == "class":
        return True
    if q.kind == "class":
        return False
    if k.kind == "noised":
        return q == k  # of the same copy of the same AR step
    if q.element != k.element:
        return k.element < q.element
    if q.kind == k.kind == "text":
        return k.place <= q.place
    if q.kind == "text":
        return not q.begins_image  # the image's end sees it, its begin does not
    if k.kind == "text":
        return k.begins_image
    return k.own_step < q.own_step or (q.kind == "clean" and k.own_step == q.own_step)


def text_tokens(document: Document) -> list[Token]:
    tokens: list[Token] = []
    for number, element in enumerate(document):
        if isinstance(element, Text):
            tokens += [Token("text", number, i) for i in range(len(element.ids) + 2)]
        else:
            tokens += [Token("text", number, 0, begins_image=True), Token("text", number, 1)]
    return [*tokens, Token("text", len(document))]


@dataclass(frozen=True)
class Case:
    documents: list[list[Text | Image]]
    plan: Plan
    copies: int
    class_tokens: int

    @property
    def num_images(self) -> int:
        return len(self.plan.order)

    def layout(self) -> Layout:
        steps = (self.plan.ar_step[:, -1] * self.copies).expand(self.num_images).tolist()
        return lay_out(self.documents, MARKERS, steps, ended=True)


@st.composite
def cases(draw: st.DrawFn, whole_images: bool = False) -> Case:
    """Any texts and images in any order; the batch's images stand in the documents in any order."""
    of_kind = st.one_of(st.integers(0, 3), st.just("image"))
    shapes = draw(st.lists(st.lists(of_kind, max_size=4), min_size=1, max_size=3))
    num_images = sum(kind == "image" for shape in shapes for kind in shape)
    rows = iter(draw(st.permutations(range(num_images))))
    documents = [[Image(next(rows)) if k == "image" else Text((7,) * k) for k in shape] for shape in shapes]
    own_plans = draw(st.booleans())
    composition = st.sampled_from([[4], [1, 3], [2, 2], [3, 1], [1, 1, 2], [2, 1, 1], [1, 1, 1, 1]])
    splits = [draw(composition) if not whole_images else [4] for _ in range(num_images if own_plans else 1)]
    ar_step = torch.stack([ar_step_of(s) for s in splits]) if splits else torch.ones(0, 4, dtype=torch.int64)
    orders = [draw(st.permutations(range(NUM_TOKENS))) for _ in range(num_images)]
    order = torch.tensor(orders, dtype=torch.int64).view(num_images, NUM_TOKENS)
    copies = 1 if whole_images else draw(st.integers(1, 3))
    return Case(documents, Plan(order, ar_step, GRID_WIDTH), copies, draw(st.sampled_from([0, 2])))


def pack(case: Case, context: Literal["clean", "noised"] = "clean") -> PackedSequence:
    """The value of each token says which one it is: image and place in its plan's order, and the copy."""
    count = case.num_images
    name = torch.arange(count * NUM_TOKENS).view(count, NUM_TOKENS, 1).float()
    noised = torch.cat([name + 1000 * r for r in range(case.copies)], dim=1)
    timesteps = noised[:, :, 0].long() if case.copies > 1 else torch.arange(count)[:, None]
    labels = torch.zeros(len(case.documents), dtype=torch.int64)
    return pack_documents(
        case.layout(), labels, case.class_tokens, name, noised, case.plan, timesteps, context
    )


def tokens_of(case: Case, sequence: PackedSequence, context: str) -> list[list[Token]]:
    """Each document's tokens as they stand in the sequence, told by the values."""
    rows: list[list[Token]] = []
    for b, document in enumerate(case.documents):
        row: list[Token] = []
        texts = text_tokens(document)
        place_of = {e.row: n for n, e in enumerate(document) if isinstance(e, Image)}
        for segment in sequence.segments:
            if segment.kind == "class":
                row += [Token("class")] * segment.num_tokens
            elif segment.kind == "text":
                row += texts + [Token("fill")] * (segment.num_tokens - len(texts))
            else:
                role = "clean" if context == "noised" else segment.role
                num_present = len(place_of) * NUM_TOKENS * (case.copies if role == "noised" else 1)
                assert segment.places is not None and segment.image_index is not None
                for n, value in enumerate(segment.values[b, :, 0].long().tolist()):
                    if n >= num_present:
                        row.append(Token("fill"))
                        continue
                    image, j = divmod(value % 1000, NUM_TOKENS)
                    plan_row = image if len(case.plan.ar_step) > 1 else 0
                    step = int(case.plan.ar_step[plan_row, j])
                    row.append(Token(role, place_of[image], 0, False, step, value // 1000))
                    at = divmod(int(case.plan.order[image, j]), GRID_WIDTH)
                    assert tuple(segment.places[b, n].tolist()) == at
                    nth = sorted(place_of.values()).index(place_of[image])
                    assert int(segment.image_index.expand(len(rows) + 1, -1)[-1, n]) == nth
                    if segment.timesteps is not None:
                        t = segment.timesteps.expand(-1, segment.num_tokens)[b, n]
                        assert int(t) == (value if case.copies > 1 else image)
        rows.append(row)
    return rows


def assert_mask_is_the_order(case: Case, context: Literal["clean", "noised"]) -> None:
    sequence = pack(case, context)
    clean = sequence.clean
    steps = sequence.ar_step.expand(len(case.documents), -1)
    for b, tokens in enumerate(tokens_of(case, sequence, context)):
        assert len(tokens) == sequence.num_tokens
        counted = sum(t.kind in ("clean", "noised") for t in tokens)
        images = sum(isinstance(e, Image) for e in case.documents[b])
        each = NUM_TOKENS if context == "noised" else NUM_TOKENS * (1 + case.copies)
        assert counted == images * each
        allowed = may_attend(clean[:, None], steps[b, :, None], clean[None], steps[b, None])
        for i, q in enumerate(tokens):
            if q.kind == "fill":
                continue
            assert allowed[i].tolist() == [sees(q, k) for k in tokens], (q, tokens)


@settings(max_examples=120)
@given(cases())
def test_the_mask_is_the_order_of_the_elements(case: Case):
    """Text is causal; an image sees what comes before it and its own earlier AR steps clean; what follows it
    sees it clean and whole; noised tokens are seen by their own copy of their own AR step alone."""
    assert_mask_is_the_order(case, "clean")


@settings(max_examples=60)
@given(cases(whole_images=True))
def test_transfusion_sees_the_noised_tokens_themselves(case: Case):
    """There are no clean copies: the noised tokens see each other, and what follows sees them."""
    sequence = pack(case, "noised")
    kinds = [s.kind for s in sequence.segments]
    assert kinds == ["class", "text", "image"] and sequence.segments[2].timesteps is not None
    assert_mask_is_the_order(case, "noised")


@settings(max_examples=60)
@given(cases())
def test_predictions_go_back_to_their_images(case: Case):
    """`place_of_image` undoes what packing did, for images in any order."""
    sequence = pack(case)
    values = sequence.segments[-1].values.reshape(-1, case.copies * NUM_TOKENS)
    found = values[case.layout().place_of_image]
    assert found[:, 0].tolist() == [row * NUM_TOKENS for row in range(case.num_images)]


# --- targets --------------------------------------------------------------------------------------------


def test_targets_by_hand():
    documents = [
        [Text((1, 2)), Image(0), Text((3,))],
        [Text((), learn=False), Image(1)],
        [Text((1, 2), learn=False), Text((4,))],
        [Image(2), Text((), learn=False), Image(3)],
        [],
    ]
    none = NO_TARGET
    layout = lay_out(documents, MARKERS, [3, 2, 1, 4], ended=True)
    ids = [
        [90, 1, 2, 91, 92, 93, 90, 3, 91, 94],
        [90, 91, 92, 93, 94, 0, 0, 0, 0, 0],
        [90, 1, 2, 91, 90, 4, 91, 94, 0, 0],
        [92, 93, 90, 91, 92, 93, 94, 0, 0, 0],
        [94, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    targets = [
        [1, 2, 91, 92, none, 90, 3, 91, 94, none],
        [none, none, none, 94, none, none, none, none, none, none],
        # What a text that is not learned says, and what it is followed by, are no targets.
        [none, none, none, none, 4, 91, 94, none, none, none],
        [none, 90, none, none, none, 94, none, none, none, none],
        [none] * 10,
    ]
    u = UNSEEN
    steps = [
        [1, 2, 3, 4, 5, 9, 10, 11, 12, 13],
        [1, 2, 3, 6, 7, u, u, u, u, u],
        [1, 2, 3, 4, 5, 6, 7, 8, u, u],
        [1, 3, 4, 5, 6, 11, 12, u, u, u],
        [1, u, u, u, u, u, u, u, u, u],
    ]
    assert layout.text_ids.tolist() == ids
    assert layout.text_targets.tolist() == targets
    assert layout.text_ar_step.tolist() == steps
    assert layout.text_lengths.tolist() == [10, 5, 8, 7, 1]
    assert layout.image_row.tolist() == [[0, -1], [1, -1], [-1, -1], [2, 3], [-1, -1]]
    assert layout.image_base.tolist() == [[5, u], [3, u], [u, u], [1, 6], [u, u]]
    assert layout.next_ar_step.tolist() == [14, 8, 9, 13, 2]


def test_what_is_still_to_be_written_stays_open():
    documents = [[Text((5, 6), open=True)], [Text((5,)), ImageToCome()], [Image(0), Text(open=True)]]
    layout = lay_out(documents, MARKERS, [1])
    assert [ids[:n] for ids, n in zip(layout.text_ids.tolist(), layout.text_lengths.tolist(), strict=True)] \
        == [[90, 5, 6], [90, 5, 91, 92], [92, 93, 90]]  # fmt: skip
    assert layout.next_ar_step.tolist() == [4, 5, 5]


@settings(max_examples=60)
@given(cases())
def test_targets_are_what_follows_directly(case: Case):
    """Without dropped captions: every text token's successor, but not across an image, nor behind the end."""
    layout = case.layout()
    for b, document in enumerate(case.documents):
        texts, ids = text_tokens(document), layout.text_ids[b].tolist()
        expected = [NO_TARGET if token.begins_image else ids[i + 1] for i, token in enumerate(texts[:-1])]
        count = len(texts)
        assert layout.text_targets[b, : count - 1].tolist() == expected
        assert (layout.text_targets[b, count - 1 :] == NO_TARGET).all()


# --- through the model ----------------------------------------------------------------------------------


def model_of(**options: object) -> Transformer:
    values = {
        "hidden_size": 32, "depth": 2, "num_heads": 2, "num_class_tokens": 2, "num_classes": 5,
        "token_dim": 3, "grid_height": 2, "grid_width": 2, "vocab_size": 95, "max_text_tokens": 24,
        "max_images": 3, "position_embedding": "rope",
    }  # fmt: skip
    model = Transformer(ModelConfig(**{**values, **options}))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


def random_case(shapes: list[list[int | str]], copies: int, own_plans: bool = True, seed: int = 0) -> Case:
    """Texts of so many tokens, and images, each with its own plan."""
    generator = torch.Generator().manual_seed(seed)
    row, documents = 0, []
    for shape in shapes:
        document: list[Text | Image] = []
        for kind in shape:
            if kind == "image":
                document.append(Image(row))
                row += 1
            else:
                ids = torch.randint(90, (int(kind),), generator=generator).tolist()
                document.append(Text(tuple(ids)))
        documents.append(document)
    splits = [[1, 3], [2, 1, 1], [4], [1, 1, 1, 1], [3, 1]]
    ar_step = torch.stack([ar_step_of(splits[i % 5]) for i in range(row if own_plans else 1)])
    order = torch.stack([torch.randperm(4, generator=generator) for _ in range(row)])
    return Case(documents, Plan(order, ar_step, GRID_WIDTH), copies, 2)


@dataclass(frozen=True)
class Inputs:
    """One number for everything that the images of a case are made of, in the order of their rows."""

    clean: Tensor
    noised: Tensor
    timesteps: Tensor
    labels: Tensor

    @staticmethod
    def of(case: Case, seed: int = 0) -> Inputs:
        generator, count = torch.Generator().manual_seed(seed), case.num_images
        return Inputs(
            torch.randn(count, 4, 3, generator=generator),
            torch.randn(count, 4 * case.copies, 3, generator=generator),
            torch.randint(1000, (count, 4 * case.copies), generator=generator),
            torch.randint(5, (len(case.documents),), generator=generator),
        )


def packed(case: Case, x: Inputs, context: Literal["clean", "noised"]) -> PackedSequence:
    return pack_documents(case.layout(), x.labels, 2, x.clean, x.noised, case.plan, x.timesteps, context)


SHAPES: list[list[int | str]] = [
    [3, "image"],
    ["image", 2],
    ["image", 5, "image", "image", 1],
    [0],
    [6, 1],
    ["image"],
]


def case_for(context: str) -> Case:
    case = random_case(SHAPES, copies=1 if context == "noised" else 2)
    if context == "noised":
        case = replace(case, plan=replace(case.plan, ar_step=torch.ones(1, 4, dtype=torch.int64)))
    return case


@pytest.mark.parametrize("context", ["clean", "noised"])
@pytest.mark.parametrize("positions", ["rope", "sincos"])
def test_a_document_does_not_depend_on_its_batch(context, positions):
    """Alone it has no filling at all; beside longer ones, of other arrangements, it predicts the same."""
    model, case = model_of(position_embedding=positions), case_for(context)
    inputs = Inputs.of(case)
    with torch.no_grad():
        whole = model(packed(case, inputs, context))
    images = whole.image.reshape(-1, 4 * case.copies, 3)[case.layout().place_of_image]
    lengths = case.layout().text_lengths.tolist()
    for b, document in enumerate(case.documents):
        rows = [e.row for e in document if isinstance(e, Image)]
        numbered = [Image(rows.index(e.row)) if isinstance(e, Image) else e for e in document]
        steps = case.plan.ar_step if len(case.plan.ar_step) == 1 else case.plan.ar_step[rows]
        plan = Plan(case.plan.order[rows], steps, GRID_WIDTH)
        alone = Case([numbered], plan, case.copies, 2)
        x = Inputs(inputs.clean[rows], inputs.noised[rows], inputs.timesteps[rows], inputs.labels[b : b + 1])
        with torch.no_grad():
            found = model(packed(alone, x, context))
        assert found.text.shape[1] == lengths[b]
        assert torch.allclose(whole.text[b, : lengths[b]], found.text[0], atol=1e-5, rtol=1e-5)
        expected = found.image.reshape(-1, 4 * case.copies, 3)
        assert len(expected) == len(rows)
        assert torch.allclose(images[rows], expected, atol=1e-5, rtol=1e-5)
    assert whole.text.abs().max() > 0.1 and whole.image.abs().max() > 0.1


def error(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).abs().max() / reference.abs().max().clamp(min=1e-12))


@pytest.mark.parametrize("context", ["clean", "noised"])
def test_backends_agree_on_documents(context):
    """Row blocks and FlexAttention against one dense mask, on documents longer than a block."""
    grid = {"grid_height": 8, "grid_width": 10, "max_text_tokens": 200}
    model = model_of(**grid)
    generator = torch.Generator().manual_seed(1)
    shapes: list[list[int | str]] = [[60, "image"], ["image", 30, "image"], [100]]
    small = random_case(shapes, copies=1)
    splits = [[80]] if context == "noised" else [[1, 49, 30], [70, 10], [20, 20, 20, 20]]
    plan = Plan(
        torch.stack([torch.randperm(80, generator=generator) for _ in range(3)]),
        torch.stack([ar_step_of(s) for s in splits]),
        grid_width=10,
    )
    case = replace(small, plan=plan)
    clean, noised = (torch.randn(3, 80, 3, generator=generator) for _ in range(2))
    timesteps, labels = torch.tensor([[3], [400], [999]]), torch.arange(3)
    sequence = pack_documents(case.layout(), labels, 2, clean, noised, plan, timesteps, context)
    lengths = case.layout().text_lengths
    real = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    rows = case.layout().place_of_image
    names = [n for n, _ in model.named_parameters()]
    results = {}
    for backend in ("dense", "segments"):
        found = model(sequence, backend=backend)
        images = found.image.reshape(-1, 80, 3)[rows]
        assert found.text is not None
        loss = images.square().mean() + found.text[real].square().mean()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        results[backend] = (images.detach(), found.text[real].detach(), grads)
    with torch.no_grad():
        flex = model(sequence, backend="flex")
    (image, text, grads), ours = results["dense"], results["segments"]
    assert error(flex.image.reshape(-1, 80, 3)[rows], image) < 1e-5 and error(flex.text[real], text) < 1e-5
    assert error(ours[0], image) < 1e-5 and error(ours[1], text) < 1e-5
    for name, a, b in zip(names, ours[2], grads, strict=True):
        if not name.endswith("k_norm.bias"):  # mathematically zero
            assert error(a, b) < 1e-4, name


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("own_plans", [False, True])
def test_an_image_without_text_is_class_conditional_training(copies, own_plans):
    """A document of one image and no text token at all: the predictions of `pack_training`."""
    case = random_case([["image"]] * 3, copies, own_plans)
    x, model = Inputs.of(case), model_of()
    nothing = torch.zeros(3, 0, dtype=torch.int64)
    layout = Layout(
        nothing, nothing, nothing, torch.zeros(3), torch.arange(3)[:, None],
        torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, dtype=torch.int64),
    )  # fmt: skip
    documents = pack_documents(layout, x.labels, 2, x.clean, x.noised, case.plan, x.timesteps)
    training = pack_training(x.labels, 2, x.clean, x.noised, case.plan, x.timesteps)
    with torch.no_grad():
        found, expected = model(documents).image, model(training).image
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)


def test_context_for_generation_is_the_training_view():
    """Text after an image of one AR step predicts the same whether the image is context or was trained on."""
    case = random_case([[2, "image", 3], ["image", 4]], copies=1)
    plan = Plan(torch.arange(4).expand(2, -1), torch.ones(1, 4, dtype=torch.int64), GRID_WIDTH)
    case = replace(case, plan=plan)
    x, model = Inputs.of(case), model_of()
    noised = replace(x, timesteps=torch.zeros(2, 1, dtype=torch.int64), noised=x.clean)
    with torch.no_grad():
        for context in ("clean", "noised"):
            trained = model(packed(case, noised, context)).text
            layout = case.layout()
            given = model(pack_context(layout, x.labels, 2, x.clean, GRID_WIDTH, context)).text
            assert trained.shape == given.shape and torch.allclose(trained, given, atol=1e-5)
