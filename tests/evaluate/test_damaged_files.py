"""Every JSON that evaluation, planning and studies read back: refused in one line, or right."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from causalfusion.config import SampleConfig
from causalfusion.errors import UserError
from causalfusion.evaluate.cards.card import Card, load_card
from causalfusion.evaluate.cards.compare import compare_cards, to_markdown
from causalfusion.evaluate.cards.terminal import show_card, show_comparison
from causalfusion.evaluate.measures.figure import Figure
from causalfusion.evaluate.measures.gaussian import GaussianStatistics
from causalfusion.evaluate.references.reference_file import ReferenceFile, read_reference, write_reference
from causalfusion.evaluate.samples.sample_set import SampleSet, open_for_writing, write_part
from causalfusion.planner.earlier import EarlierTrials
from causalfusion.planner.sweep import Tried
from causalfusion.study.measure import _read

WRONG = (
    None, True, -1, 0, 1.5, 10**400, "text", "", [], {}, [1, "x"], {"a": {"b": None}}, [[[]]],
    float("nan"), float("inf"),
)  # fmt: skip


def changed(values: Any) -> Iterator[Any]:
    """The content with each key and entry, however deep, missing or of each of the WRONG values."""
    if isinstance(values, dict | list):
        places = list(values) if isinstance(values, dict) else list(range(len(values)))
        for place in places:
            for inner in changed(values[place]):
                whole = copy.deepcopy(values)
                whole[place] = inner
                yield whole
            without = copy.deepcopy(values)
            del without[place]
            yield without
    yield from WRONG


def card(name: str = "model") -> Card:
    figure = Figure(
        quantity="frechet", value=3.0, count=20, features="pixels:8", features_fingerprint="f",
        reference="r", low=2.0, high=4.0,
    )  # fmt: skip
    return Card(
        figures={figure.name: figure},
        samples={"name": name, "count": 20, "hash": "h", "sample": {"sampler": "ddim"}},
        references=[
            {
                "name": "digits", "features": "pixels:8", "count": 30, "image_shape": [8, 8, 1], "kept": 30,
                "fingerprint": "r", "statistics_hash": "s", "mean_norm": 1.0, "covariance_trace": 2.0,
                "file": None,
            }
        ],
        features=[{"name": "pixels:8", "fingerprint": "f"}],
        warnings=["few"],
        run={"device": "cpu", "versions": {"torch": "2"}},
    )  # fmt: skip


class Format:
    """A kind of file: a whole one, and all that reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def content(self) -> Any: ...

    def read(self, content: Any) -> None: ...


class OfCard(Format):
    def content(self) -> Any:
        return json.loads(card().to_json())

    def read(self, content: Any) -> None:
        (self.folder / "card.json").write_text(json.dumps(content))
        found = load_card(self.folder)
        comparison = compare_cards([found, card("other")], ["a", "b"])
        to_markdown(comparison)
        show_comparison(comparison)
        show_card(found, self.folder)


class OfSampleSet(Format):
    def content(self) -> Any:
        facts = {"image_shape": [4, 4, 1], "class_names": ["a", "b"], "model": "m", "images_seen": 3}
        open_for_writing(self.folder, {"seed": 0, "sample": {"eta": 0.0}}, facts, 6)
        write_part(self.folder, range(6), np.zeros((6, 4, 4, 1), np.uint8), np.arange(6) % 2, 0.5)
        return json.loads((self.folder / "settings.json").read_text())

    def read(self, content: Any) -> None:
        (self.folder / "settings.json").write_text(json.dumps(content))
        found = SampleSet(self.folder)
        assert sum(len(batch.pixels) for batch in found.batches(4)) == len(found) == 6
        found.seconds(), found.fingerprint()


class OfReference(Format):
    def content(self) -> Any:
        return {
            "format": "causalfusion-reference-1", "count": 20, "name": "digits", "fingerprint": "r",
            "features": "pixels:2", "features_fingerprint": "f", "image_shape": [8, 8, 1],
        }  # fmt: skip

    def read(self, content: Any) -> None:
        path = self.folder / "reference.npz"
        rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
        write_reference(path, ReferenceFile({}, GaussianStatistics.of(rows), None, rows))
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **{**arrays, "about": np.array(json.dumps(content))})
        found = read_reference(path)
        assert found is not None and found.about is not None
        height, width, channels = found.about["image_shape"]
        assert isinstance(height * width * channels, int) and found.statistics.covariance.shape == (4, 4)


class OfPlan(Format):
    request: Any = SimpleNamespace(
        precision="float32",
        batch_size=1,
        images=2,
        seed=0,
        features="pixels:4",
        reference="digits",
        size="",
    )

    def open(self) -> EarlierTrials:
        self.request.out = self.folder
        (self.folder / "model.safetensors").write_bytes(b"weights")
        candidate: Any = SimpleNamespace(folder=self.folder, prompts=None)
        return EarlierTrials.open(self.request, candidate, "cpu", "r")

    def content(self) -> Any:
        tried = Tried(settings=SampleConfig(), seconds_per_image=0.1, frechet=2.0, accuracy=0.5)
        self.open().add("a setting", tried)
        return json.loads((self.folder / "plan.json").read_text())

    def read(self, content: Any) -> None:
        (self.folder / "plan.json").write_text(json.dumps(content))
        found = self.open().get("a setting")
        assert found is None or (found.seconds_per_image > 0 and len(found.in_words()) > 9)


class OfStudy(Format):
    def content(self) -> Any:
        return {"0123": {"frechet": 3.0, "accuracy": 0.5}, "4567": {"frechet": 1.0}}

    def read(self, content: Any) -> None:
        (self.folder / "figures.json").write_text(json.dumps(content))
        for figures in _read(self.folder / "figures.json").values():
            assert figures["frechet"] + figures.get("accuracy", 0.0) < 1e308


@pytest.mark.parametrize("kind", [OfCard, OfSampleSet, OfReference, OfPlan, OfStudy])
def test_nothing_in_a_file_ends_in_a_traceback(kind: Callable[[Path], Format], tmp_path, capsys):
    file = kind(tmp_path / "files")
    whole = file.content()
    file.read(whole)
    refused = 0
    for content in changed(whole):
        try:
            file.read(content)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error), content
    assert refused > 50


def test_texts_of_a_card_are_no_commands(capsys):
    evil = "\x1b[2J<img src=x onerror=alert(1)> | a\nb"
    texts = to_markdown(compare_cards([card(evil), card("b")], [evil, "b"]))
    assert "\x1b" not in texts and "<img" not in texts and "&lt;img" in texts
    lines = texts.splitlines()
    assert [line.count(" | ") for line in lines[:3]] == [3, 3, 3] and "\\|" in lines[0]
    show_comparison(compare_cards([card(evil), card("b")], [evil, "b"]))
    show_card(card(evil), Path("out"))
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
