"""Training on documents: what stands in a batch, its loss, and the same run whoever computes it."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pictures
from torch.nn import functional as F

from causalfusion.codec.tokenizer import Markers
from causalfusion.config import (
    CodecConfig,
    DataConfig,
    FactorizationConfig,
    ModelConfig,
    RunConfig,
    SampleConfig,
    TextConfig,
    TrainConfig,
)
from causalfusion.config.recipes import merge
from causalfusion.config.serialize import from_dict, to_dict
from causalfusion.config.sizes import Fit
from causalfusion.data.document_loader import DocumentLoader, DocumentReader
from causalfusion.data.in_context import InContext
from causalfusion.data.loader import stream
from causalfusion.documents import Image, Text, lay_out, pack_documents
from causalfusion.errors import UserError
from causalfusion.estimate.cost import estimate
from causalfusion.estimate.devices import unmeasured_device
from causalfusion.factorization import loss_weights
from causalfusion.machine.processes import World
from causalfusion.saved.folder import load_model
from causalfusion.train.auto import settings_for
from causalfusion.train.document_batch import (
    IMAGES_OF_DOCUMENT,
    DocumentBatch,
    cut,
    drops_texts,
    text_tokens,
)
from causalfusion.train.document_feed import DocumentTokens, DocumentTrainingData, open_document_data
from causalfusion.train.loss_map import loss_map
from causalfusion.train.run import train
from causalfusion.train.trainer import Trainer

ALONE = World(0, 1, torch.device("cpu"))
MARKERS = Markers(text=20, text_end=21, image=22, image_end=23, end=24)
MODEL = ModelConfig(
    hidden_size=32, depth=2, num_heads=2, num_class_tokens=0, max_text_tokens=40, max_images=3
)
WORDS = ("a red dog", "house", "the blue cat sits")
DOCUMENTS = (  # texts by their number in WORDS, images by letter
    [0, "a", 1, "b"], ["b", 2], [1, 1, "c", "a", "b"], [2], ["c"], [0, "c", 2], ["a", "b"], [1, "a"],
)  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Eight documents of up to three images of 8x8 and texts."""
    root, generator = tmp_path_factory.mktemp("documents"), np.random.default_rng(0)
    for name in "abc":
        Pictures.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / f"{name}.png")
    lines = [
        {"elements": [{"image": f"{e}.png"} if isinstance(e, str) else {"text": WORDS[e]} for e in document]}
        for document in DOCUMENTS
    ]
    (root / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root / "d.jsonl"


def run_of(file: Path, **tables: dict) -> RunConfig:
    given = {
        "data": DataConfig(source="documents", path=str(file), holdout=0.0),
        "codec": CodecConfig(patch_size=4),
        "model": MODEL,
        "factorization": FactorizationConfig(decay=0.7),
        "text": TextConfig(tokenizer="train", vocab_size=300, caption_dropout=0.0),
        "train": TrainConfig(images=16, batch_size=4, lr=1e-2, log_every=1, eps=1e-8),
    }
    return RunConfig(**{name: replace(table, **tables.get(name, {})) for name, table in given.items()})


def pixels_of(file: Path, name: str) -> torch.Tensor:
    return torch.tensor(np.array(Pictures.open(file.parent / f"{name}.png"))).permute(2, 0, 1) / 127.5 - 1


# --- batches --------------------------------------------------------------------------------------------


def test_a_batch_has_the_documents_of_the_file(file):
    """Every document of an epoch once, its elements in order, its images as the codec's tokens."""
    data = open_document_data(run_of(file), ALONE)
    batches, found = data.batches(0), []
    for batch in (next(batches), next(batches)):
        assert batch.documents is not None and len(batch.documents) == len(batch.labels) == 4
        rows = iter(zip(batch.tokens, batch.sample_indices.tolist(), strict=True))
        for place, document in zip(batch.documents.places, batch.documents.documents, strict=True):
            named: list[object] = []
            for element in document:
                if isinstance(element, Text):
                    named.append(WORDS.index(data.tokenizer.decode(element.ids)))
                else:
                    tokens, index = next(rows)
                    which = [
                        n for n in "abc"
                        if data.codec.encode_tokens(pixels_of(file, n)[None], None)[0].allclose(tokens)
                    ]  # fmt: skip
                    named += which
                    number = sum(isinstance(n, str) for n in named) - 1
                    assert index == place * IMAGES_OF_DOCUMENT + number
            found.append(named)
        assert next(rows, None) is None
    assert sorted(map(str, found)) == sorted(map(str, DOCUMENTS))


def test_batches_do_not_depend_on_workers_processes_or_where_they_begin(file):
    config = run_of(file)
    alone = [batch for _, batch in zip(range(4), open_document_data(config, ALONE).batches(0), strict=False)]

    def same(batch, other):
        assert batch.documents == other.documents and batch.tokens.equal(other.tokens)
        assert batch.sample_indices.equal(other.sample_indices)

    same(alone[2], next(open_document_data(config, ALONE).batches(8)))
    parts = [next(open_document_data(config, World(r, 2, ALONE.device)).batches(4)) for r in (0, 1)]
    for rank, part in enumerate(parts):
        same(alone[1].slice(slice(2 * rank, 2 * rank + 2)), part)
    feed = open_document_data(run_of(file, data={"num_workers": 1}), ALONE).batches(4)
    same(alone[1], next(feed))
    feed.close()


def test_made_up_documents_are_those_of_their_epoch():
    """Read through the stream, each is the source's own of its index and epoch."""
    source, indices = InContext(task="both", length=10, examples=1, fit=Fit(16, 16)), np.arange(1, 10)
    config = DataConfig(source="in_context", image_size=16)
    reader = DocumentReader(source, config.fit(), indices)
    loader = DocumentLoader(reader, config, indices, seed=7, batch_size=6)
    found, count = loader.documents(4 * 6), 0
    for batch in (next(found) for _ in range(3)):
        samples = stream(batch.places, indices, seed=7, flip=False)
        for index, epoch, elements in zip(samples.indices, samples.epochs, batch.documents, strict=True):
            own = source.read(int(index), int(epoch)).elements
            assert [e for e in elements if isinstance(e, str)] == [e for e in own if isinstance(e, str)]
            for element, given_element in zip(elements, own, strict=True):
                if not isinstance(element, str):
                    pixels = ((batch.images[element] + 1) * 127.5).round().permute(1, 2, 0).numpy()
                    assert np.array_equal(pixels, given_element)
                    count += 1
        assert len(set(samples.epochs.tolist())) == 1 + (batch.places[0] == 24)
    assert count > 36


# --- cutting --------------------------------------------------------------------------------------------

ELEMENTS = st.one_of(st.integers(0, 6).map(lambda n: Text(tuple(range(n)))), st.just(Image(0)))


@given(st.lists(ELEMENTS, min_size=1, max_size=8), st.integers(5, 30), st.integers(1, 4))
def test_cut_documents_fit_and_begin_as_they_did(elements, room, images):
    """They fit with their end marker; they end before the first element that does not fit, or in it."""
    kept, whole = cut(elements, room, images)
    assert text_tokens(kept) + whole <= room and sum(isinstance(e, Image) for e in kept) <= images
    assert whole == (list(kept) == elements) and (kept or not whole)
    shortened = kept[-1:] if kept and kept[-1] != elements[len(kept) - 1] else ()
    assert list(kept[: len(kept) - len(shortened)]) == elements[: len(kept) - len(shortened)]
    for text in shortened:
        of = elements[len(kept) - 1]
        assert text.open and text.ids == of.ids[: len(text.ids)] and text_tokens(kept) == room - 1
    if not whole and not shortened:
        following = elements[len(kept)]
        more_images = sum(isinstance(e, Image) for e in (*kept, following)) > images
        assert more_images or text_tokens((*kept, following)) > room - 1


def test_what_is_cut_is_said_once_and_does_not_learn_its_end(file):
    config = run_of(file, model={"max_images": 2, "max_text_tokens": 12})
    data = open_document_data(config, ALONE)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        feed = data.batches(0)
        batches = [next(feed) for _ in range(4)]
    (note,) = [str(w.message) for w in said]
    assert "documents are longer than a sequence" in note and "model.max_images 3 make room" in note
    assert data.cut_captions["seen"] == 16 and 0 < data.cut_captions["cut"] < 16
    trainer = Trainer(data.config, ALONE, data.tokenizer)
    for batch in batches:
        assert batch.documents is not None
        draws = trainer.objective.draw(batch, seed=0, split_index=0)
        layout = trainer.objective.arrange(batch, draws).layout
        assert layout is not None
        ends = (layout.text_ids == data.tokenizer.markers.end).any(1).tolist()
        assert ends == list(batch.documents.whole) and layout.text_ids.shape[1] <= 12


# --- the loss -------------------------------------------------------------------------------------------


def test_the_loss_of_a_document_is_that_of_the_sequence_packed_by_hand(file):
    """[text, image, text, image] laid out here, through the model, against the trainer's losses."""
    data = open_document_data(run_of(file, factorization={"decay": 0.3}), ALONE)
    trainer, markers = Trainer(data.config, ALONE, data.tokenizer), data.tokenizer.markers
    torch.nn.init.normal_(trainer.model.image_out.weight, std=0.3)
    tokens = torch.randn(2, 4, 48)
    ids = (5, 6, 7), (8, 9)
    document = (Text(ids[0]), Image(0), Text(ids[1]), Image(1))
    batch = DocumentTokens(
        tokens,
        torch.tensor([1]),
        torch.tensor([0, 1]),
        documents=DocumentBatch((document,), (True,), (0,)),
    )
    objective = trainer.objective
    draws = objective.draw(batch, seed=0, split_index=0)
    piece = objective.arrange(batch, draws)
    errors = objective.errors(trainer.model, piece)
    steps = int(draws.plan.ar_step[0, -1])
    clean = tokens.gather(1, draws.plan.order[:, :, None].expand_as(tokens))
    noise = draws.noise[:, 0].gather(1, draws.plan.order[:, :, None].expand_as(tokens))
    noised = objective.process.noise(clean, noise, draws.levels)
    layout = lay_out([document], markers, [steps, steps], ended=True)
    by_hand = [markers.text, *ids[0], markers.text_end, markers.image, markers.image_end, markers.text,
               *ids[1], markers.text_end, markers.image, markers.image_end, markers.end]  # fmt: skip
    assert layout.text_ids.tolist() == [by_hand]
    sequence = pack_documents(
        layout, torch.tensor([data.config.model.null_label]), 0, noised.clean, noised.noised, draws.plan,
        objective.process.timesteps(draws.levels),
    )  # fmt: skip
    out = trainer.model(sequence, backend="dense")
    squared = (out.image.unflatten(1, (2, 4))[0] - noised.target) ** 2
    weights = loss_weights(draws.plan.ar_step, data.config.factorization)
    torch.testing.assert_close(errors.image, squared)
    image_loss = (squared.mean(2) * weights).mean()
    torch.testing.assert_close(objective.image_loss(errors.image, piece), image_loss)
    predicted = [n for n, token in enumerate(by_hand[:-1]) if token != markers.image]  # nothing after <image>
    nexts = torch.tensor([by_hand[n + 1] for n in predicted])
    entropy = F.cross_entropy(out.text[0, predicted], nexts, reduction="sum")
    torch.testing.assert_close(errors.text.sum(), entropy)


@pytest.mark.parametrize("context", ["clean", "noised"])
@pytest.mark.parametrize("documents", [DOCUMENTS, [[2], [0, 1]] * 4])
def test_micro_batches_have_the_step_of_the_whole(file, context, documents):
    """Documents without any image too: the same loss and gradient in one part, in two and in four."""
    fixed = {"distribution": "fixed"} if context == "noised" else {}
    chosen = run_of(
        file,
        text={"image_context": context, "caption_dropout": 0.4},
        factorization=fixed,
        train={"batch_size": 8},
    )
    data, found = open_document_data(chosen, ALONE), []
    batch = next(data.batches(0))
    if documents is not DOCUMENTS:
        assert batch.documents is not None
        texts = tuple(tuple(Text((5, 6)) for _ in d) for d in documents)
        batch = replace(
            batch, tokens=batch.tokens[:0], sample_indices=batch.sample_indices[:0],
            documents=replace(batch.documents, documents=texts),
        )  # fmt: skip
    for parts in (1, 2, 4):
        config = replace(data.config, train=replace(data.config.train, grad_accumulation=parts))
        trainer = Trainer(config, ALONE, data.tokenizer)
        torch.nn.init.normal_(trainer.model.image_out.weight, std=0.3, generator=torch.manual_seed(0))
        result = trainer.step(batch)
        found.append([result.image_loss, result.text_loss, result.grad_norm])
    np.testing.assert_allclose(found, [found[0]] * 3, rtol=2e-5, atol=1e-8)
    assert found[0][1] > 0 and (found[0][0] > 0) == (documents is DOCUMENTS)


def test_dropped_documents_are_the_prompts_that_guidance_leads_away_from():
    """All texts before the last image are empty and no targets; what follows it stays."""
    text, late = Text((1, 2)), Text((3,))
    batch = DocumentBatch(((text, Image(0), text, Image(1), late), (late, text)), (True, True), (4, 9))
    empty = Text((), learn=False)
    emptied, unchanged = batch.without([True, True])
    assert tuple(emptied) == (empty, Image(0), empty, Image(1), late) and tuple(unchanged) == (late, text)
    assert batch.without([False, False]) == list(batch.documents)
    rate = np.mean([drops_texts(0.3, seed=1, place=place) for place in range(4000)])
    assert abs(rate - 0.3) < 0.04 and not any(drops_texts(0.0, seed=1, place=p) for p in range(100))
    assert batch.followed.tolist() == [True, True]
    assert DocumentBatch(((text, Image(0)), (Image(1), text)), (True,) * 2, (0, 1)).followed.tolist() \
        == [False, True]  # fmt: skip


# --- runs -----------------------------------------------------------------------------------------------


def test_a_run_that_is_resumed_is_the_same_to_the_bit(file, tmp_path):
    config = run_of(file, text={"caption_dropout": 0.3}, train={"evaluate_every": 4, "sample_every": 4})
    config = replace(config, sample=SampleConfig(diffusion_steps=[2]))
    whole = train(replace(config, out=str(tmp_path / "whole")), device="cpu", show_progress=False)
    half = replace(config, out=str(tmp_path / "half"))
    train(replace(half, train=replace(half.train, images=8)), device="cpu", show_progress=False)
    resumed = train(half, device="cpu", show_progress=False)
    a, b = (load_model(folder)[0].state_dict() for folder in (whole, resumed))
    assert all(a[name].equal(b[name]) for name in a)
    records = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    last = [r for r in records if r["kind"] == "evaluation"][-1]
    assert set(last["text"]) == {"document"} and last["mean"] > 0
    assert (tmp_path / "whole/samples/000000000016.png").is_file()


def test_the_held_out_loss_is_always_of_the_same_documents(file):
    config = run_of(file, data={"holdout": 0.25}, train={"evaluate_every": 1})
    data = open_document_data(config, ALONE)
    assert len(data.held_out) == 2 and not set(data.held_out) & set(data.train_indices)
    trainer = Trainer(data.config, ALONE, data.tokenizer)
    process, markers = trainer.objective.process, data.tokenizer.markers
    maps = [
        loss_map(trainer.model, process, data.config, data.evaluation_batches(size), markers)
        for size in (1, 2, 2)
    ]
    assert str(maps[1]) == str(maps[2])  # some means are nan, of no token
    assert maps[0].mean == pytest.approx(maps[1].mean, rel=1e-5)
    beginnings = data.held_out_documents(8)
    assert all(sum(not isinstance(e, str) for e in b) <= 2 for b in beginnings) and len(beginnings) <= 2


def test_a_run_that_stops_names_its_documents(file):
    """By their places in the stream, not by the numbers by which their images draw."""
    data = open_document_data(run_of(file, train={"max_skipped_steps": 1}), ALONE)
    trainer, batches = Trainer(data.config, ALONE, data.tokenizer), data.batches(0)
    trainer.step(next(batches))
    batch = next(batches)
    batch.tokens[-2:] = float("nan")
    places = sorted({int(n) // IMAGES_OF_DOCUMENT for n in batch.sample_indices[-2:]})
    assert 4 <= places[0] <= places[-1] < 8
    with pytest.raises(UserError, match=rf"input documents {re.escape(str(places))} not finite"):
        trainer.step(batch)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_held_out_loss_is_of_all_texts_however_few_have_images(file, size):
    data = open_document_data(run_of(file), ALONE)
    trainer, markers = Trainer(data.config, ALONE, data.tokenizer), data.tokenizer.markers
    whole = next(data.evaluation_batches(8))
    texts = [[Text((5, 6 + n))] for n in range(7)]
    documents = [*texts[:3], [Text((5,)), Image(0)], *texts[3:]]
    batch = replace(
        whole, tokens=whole.tokens[:1], sample_indices=whole.sample_indices[:1],
        documents=replace(whole.documents, documents=tuple(map(tuple, documents))),
    )  # fmt: skip
    objective = trainer.objective
    errors = objective.errors(
        trainer.model, objective.arrange(batch, objective.draw(batch, seed=0, split_index=0))
    )
    number, total = int((errors.text > 0).sum()), float(errors.text.detach().sum())
    parts = [batch.slice(slice(start, start + size)) for start in range(0, 8, size)]
    found = loss_map(trainer.model, objective.process, data.config, parts, markers)
    assert found.text["document"] == pytest.approx(total / number, rel=1e-4)
    assert found.mean > 0


def test_settings_for_a_path_alone_have_room_for_its_documents(file):
    given = RunConfig(data=DataConfig(source="documents", path=str(file)))
    chosen, lines = settings_for(given, ALONE.device)
    assert "documents, 8 documents with images of 8x8" in lines[0]
    config = from_dict(RunConfig, merge([to_dict(given), chosen]))
    data = open_document_data(config, ALONE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is cut
        next(data.batches(0))
    assert data.config.model.max_images == 3 and data.config.text.tokenizer == "train"


def test_statistics_are_measured_on_the_first_images(file):
    config = run_of(file, codec={"normalization": "measured"})
    codec = open_document_data(config, ALONE).codec
    firsts = torch.stack([pixels_of(file, next(e for e in d if isinstance(e, str)))
                          for d in DOCUMENTS if any(isinstance(e, str) for e in d)])  # fmt: skip
    tokens = codec.encode_tokens(firsts, None)
    assert abs(float(tokens.mean())) < 1e-5 and float(tokens.std(correction=0)) == pytest.approx(1, rel=1e-4)


def test_a_document_costs_what_an_image_of_as_many_tokens_does(file):
    config = open_document_data(run_of(file), ALONE).config
    model = replace(config.model, grid_height=3 * config.model.grid_height)
    alike = replace(config, data=DataConfig(), model=model)
    cost, other = (estimate(c, unmeasured_device(ALONE.device), text_tokens=20) for c in (config, alike))
    assert cost.memory == other.memory and cost.of_image == other.of_image


@pytest.mark.parametrize(
    ("tables", "answer"),
    [
        ({"text": {"tokenizer": ""}}, "text.tokenizer is ''; expected a tokenizer, or train, for documents"),
        ({"model": {"num_class_tokens": 4}}, "model.num_class_tokens is 4; expected 0, for documents"),
        ({"model": {"max_text_tokens": 3}}, "model.max_text_tokens is 3; expected at least 5, for documents"),
        ({"train": {"batch_size": 3, "grad_accumulation": 1}}, "expected a multiple of 2"),
    ],
)
def test_settings_that_documents_need(file, tables, answer):
    with pytest.raises(UserError, match=answer):
        open_document_data(run_of(file, **tables), World(0, 2, ALONE.device))


def test_documents_without_any_image_are_refused(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"elements": [{"text": "x"}]}\n')
    with pytest.raises(UserError, match=r"no document of .* has an image"):
        open_document_data(run_of(tmp_path / "d.jsonl"), ALONE)


def test_documents_with_a_damaged_image_are_replaced_and_named(file, tmp_path):
    for path in file.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = (tmp_path / "d.jsonl").read_text().splitlines()
    (tmp_path / "d.jsonl").write_text("\n".join(lines * 20 + ['{"elements": [{"image": "bad.png"}]}']))
    (tmp_path / "bad.png").write_bytes(b"x")
    data: DocumentTrainingData = open_document_data(run_of(tmp_path / "d.jsonl"), ALONE)
    feed = data.batches(0)
    with pytest.warns(UserWarning, match=r"d\.jsonl line 161: bad\.png: it is damaged"):
        batches = [next(feed) for _ in range(41)]
    assert all(len(batch.labels) == 4 for batch in batches)
