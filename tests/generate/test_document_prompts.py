"""Going on from documents: in Python, and from a .jsonl file by `sample` and `complete`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion import cli
from causalfusion.config import SampleConfig
from causalfusion.data.documents_file import JsonlDocuments
from causalfusion.documents import ImageToCome
from causalfusion.errors import UserError
from causalfusion.generate import complete_run
from causalfusion.generate.complete import complete
from causalfusion.generate.document_prompts import DocumentPrompts
from causalfusion.generate.pipeline import Pipeline

STEPS = ["--diffusion-steps", "2", "--guidance-scale", "1", "--device", "cpu"]
SETTINGS = SampleConfig(diffusion_steps=[2], sampler="dpm++")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """Documents of a text, of an image, and of both."""
    root, generator = tmp_path_factory.mktemp("prompts"), np.random.default_rng(1)
    Image.fromarray(generator.integers(0, 256, (11, 9, 3), dtype=np.uint8)).save(root / "1.png")
    documents = [
        [{"text": "a small red circle"}],
        [{"image": "1.png"}],
        [{"text": "star"}, {"image": "1.png"}],
    ]
    (root / "p.jsonl").write_text("".join(json.dumps({"elements": d}) + "\n" for d in documents))
    return root / "p.jsonl"


def pixels_of(folder: Path) -> np.ndarray:
    return np.stack([np.array(Image.open(path)).astype(int) for path in sorted(folder.glob("0*.png"))])


def test_images_that_come_next_do_not_depend_on_their_batch(models, prompts):
    """Documents of unequal lengths; one of a text alone is what a prompt is."""
    pipeline = Pipeline.load(models["text"])
    documents = DocumentPrompts(prompts, pipeline, ImageToCome(), 0)
    given = [documents[index] for index in range(3)]
    together = pipeline.draw_next(given, SETTINGS, seed=3)
    for index in range(3):
        alone = pipeline.draw_next([given[index]], SETTINGS, seed=3, image_indices=[index])
        torch.testing.assert_close(together[index], alone[0], atol=1e-4, rtol=1e-4)
    by_prompt = pipeline.generate(None, SETTINGS, prompts=["a small red circle"], seed=3)
    torch.testing.assert_close(together[:1], by_prompt, atol=1e-4, rtol=1e-4)
    (drawn,) = complete(pipeline, given[2], SETTINGS, num_elements=1, seed=3)
    assert isinstance(drawn, str) or drawn.shape == (3, 8, 8)
    assert not together[1].allclose(together[2], atol=1e-2)


def test_sample_goes_on_from_documents(models, prompts, tmp_path):
    base = [
        "sample",
        "--model",
        str(models["text"]),
        *STEPS,
        "--sampler",
        "dpm++",
        "--documents",
        str(prompts),
    ]
    assert cli.run([*base, "--out", str(tmp_path / "all")]) == 0
    assert cli.run([*base, "--out", str(tmp_path / "more"), "--images", "4", "--batch-size", "3"]) == 0
    pipeline = Pipeline.load(models["text"])
    documents = DocumentPrompts(prompts, pipeline, ImageToCome(), 0)
    expected = pipeline.codec.to_uint8(
        pipeline.draw_next([documents[i % 3] for i in range(4)], SETTINGS, seed=0)
    )
    assert np.abs(pixels_of(tmp_path / "more") - expected.astype(int)).max() <= 1
    assert np.abs(pixels_of(tmp_path / "all") - expected[:3].astype(int)).max() <= 1
    settings = json.loads((tmp_path / "all/settings.json").read_text())
    assert settings["documents"] == str(prompts) and settings["num"] == 3 and settings["finished"]


def test_complete_writes_documents_that_can_be_continued(models, prompts, tmp_path):
    base = ["complete", "--model", str(models["text"]), *STEPS, "--max-tokens", "4", "--elements", "1"]
    assert cli.run([*base, "--documents", str(prompts), "--out", str(tmp_path / "a")]) == 0
    written = JsonlDocuments(str(tmp_path / "a/documents.jsonl"))
    before = JsonlDocuments(str(prompts))
    for index in range(3):
        whole, begun = written.read(index).elements, before.read(index).elements
        assert len(whole) == len(begun) + 1
        for element, given in zip(whole, begun, strict=False):
            assert np.array_equal(element, given)
        story = json.loads((tmp_path / f"a/{index:06d}/story.json").read_text())
        last = story["elements"][-1]
        assert last["from"] == "model" and last.get("text", whole[-1]) is not None
        if "image" in last:
            shown = np.array(Image.open(tmp_path / f"a/{index:06d}" / last["image"]))
            assert np.array_equal(shown, whole[-1])
    again = [*base, "--documents", str(prompts), "--out", str(tmp_path / "a")]
    assert cli.run(again) == 0, "its own file is replaced"


def test_a_text_that_the_model_left_empty_is_counted_and_is_no_element(
    models, prompts, tmp_path, monkeypatch, capsys
):
    made = iter([["", "a star"], [" "], ["a circle"]])
    monkeypatch.setattr(complete_run, "complete", lambda *_, **__: next(made))
    line = ["complete", "--model", models["text"], "--documents", prompts, "--out", tmp_path / "a"]
    assert cli.run([*map(str, line), *STEPS]) == 0
    written = JsonlDocuments(str(tmp_path / "a/documents.jsonl"))
    assert [written.parts(index)[-1].value for index in (0, 2)] == ["a star", "a circle"]
    assert len(written.parts(1)) == len(JsonlDocuments(str(prompts)).parts(1))
    assert "is without 2 texts that the model left empty" in capsys.readouterr().err


def test_complete_replaces_no_documents_of_others(models, prompts, tmp_path, capsys):
    (tmp_path / "documents.jsonl").write_text("my own")
    line = ["complete", "--model", models["text"], "--documents", prompts, "--out", tmp_path]
    assert cli.run([*map(str, line), *STEPS]) == 2
    assert "holds documents.jsonl, which no earlier `complete` wrote there" in capsys.readouterr().err
    assert (tmp_path / "documents.jsonl").read_text() == "my own"


@pytest.mark.parametrize(
    ("tokens", "answer"),
    [
        (["sample", "--prompt", "x"], "--prompt and --documents are both given; expected one of them"),
        (["sample", "--size", "8"], "--size and --documents are both given"),
        (["sample", "--candidates", "2"], "--candidates is 2; expected --prompt with it"),
        (["complete", "x"], "expected elements to go on from, or --documents: both are given"),
    ],
)
def test_what_documents_do_not_go_with(tokens, answer, models, prompts, capsys):
    assert cli.run([*tokens, "--model", str(models["text"]), "--documents", str(prompts)]) == 2
    assert answer in capsys.readouterr().err


@pytest.mark.parametrize(
    ("elements", "answer"),
    [
        ([{"text": "x " * 40}], "p.jsonl line 2: the prompt has "),
        ([{"image": "1.png"}] * 2, "p.jsonl line 2: the prompt has 3 images; this model has room for 2"),
    ],
)
def test_documents_without_room_are_refused_before_anything_is_drawn(
    elements, answer, models, prompts, tmp_path, capsys
):
    lines = [{"elements": [{"text": "x"}]}, {"elements": elements}]
    (tmp_path / "1.png").write_bytes((prompts.parent / "1.png").read_bytes())
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    line = ["sample", "--model", models["text"], "--documents", tmp_path / "p.jsonl", "--out", tmp_path / "o"]
    assert cli.run([*map(str, line), *STEPS]) == 2
    assert answer in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_a_damaged_image_of_a_prompt_is_named(models, tmp_path):
    (tmp_path / "1.png").write_bytes(b"x")
    (tmp_path / "p.jsonl").write_text('{"elements": [{"image": "1.png"}]}\n')
    documents = DocumentPrompts(tmp_path / "p.jsonl", Pipeline.load(models["text"]), ImageToCome(), 0)
    with pytest.raises(UserError, match=r"p\.jsonl line 1: 1\.png: it is damaged, or not an image"):
        documents[0]
