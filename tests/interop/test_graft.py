"""Language models that learn to draw: what training leaves as it was, what a run's folder holds, resuming to
the bit, and refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_models import folder_of, needs_recordings, recorded, relative
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from causalfusion import cli
from causalfusion import data as images
from causalfusion.config import NUM_MARKERS, DataConfig, RunConfig, SampleConfig, WriteConfig
from causalfusion.config.recipes import load_config
from causalfusion.data.shapes import LENGTHS
from causalfusion.errors import UserError
from causalfusion.estimate.memory import state_bytes
from causalfusion.estimate.planned import plan_run
from causalfusion.generate.language import LanguagePipeline
from causalfusion.generate.pipeline import Pipeline
from causalfusion.interop.language.convert import export_model, open_source, plan_conversion, write_model
from causalfusion.model.parts import is_of_text
from causalfusion.saved.folder import checkpoints_of, load_spec, load_weights
from causalfusion.train.auto import settings_for
from causalfusion.train.run import train

pytestmark = needs_recordings
OWN = {"image_weights": {"kind": "own", "hidden_size": 32, "mlp_hidden": 64}}
COPIES = {"image_weights": {"kind": "own", "hidden_size": 0, "mlp_hidden": 0}}
QUICK = SampleConfig(num_ar_steps=2, diffusion_steps=[2], guidance_scale=2.0, sampler="dpm++")


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LENGTHS, "train", 80)


def language(name: str, folder: Path) -> Path:
    source = open_source(str(folder_of(name, folder / "theirs")))
    write_model(plan_conversion(source), source, folder / "language")
    return folder / "language"


def graft_of(init: Path, out: Path, model: dict[str, Any], **sections: dict[str, Any]) -> RunConfig:
    train_ = {
        "init": str(init), "images": 48, "batch_size": 8, "precision": "float32", "warmup_images": 0,
        "checkpoint_every": 3, "ema_decay": 0.5, "lr": 1e-2, "lr_schedule": "constant",
        **sections.pop("train", {}),
    }  # fmt: skip
    model = {"image_weights": {"kind": "shared", "hidden_size": 0, "mlp_hidden": 0}, **model}
    return load_config("graft-shapes", model=model, train=train_, **sections, out=str(out))


def run(config: RunConfig) -> Path:
    train(config, device="cpu", show_progress=False)
    return checkpoints_of(Path(config.out))[-1]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("llama_b", OWN),
        ("qwen3_a", COPIES),
        ("gpt2_a", OWN),
        ("mistral_a", {"head": {"kind": "per_token", "depth": 1}}),
    ],
    ids=["own and narrow", "own, begun as copies", "learned positions", "shared blocks, per-token head"],
)
def test_a_frozen_text_is_what_it_was_to_the_bit(name: str, model: dict[str, Any], tmp_path: Path):
    """Its logits, its continuations, and its weights in their authors' format; while the images learned."""
    init = language(name, tmp_path)
    folder = run(graft_of(init, tmp_path / "run", model))
    before, after = LanguagePipeline.load(init), LanguagePipeline.load(folder)
    rows, io = recorded(name)["input_ids"].tolist(), recorded(name)
    for one, other in zip(before.logits(rows), after.logits(rows), strict=True):
        assert one.equal(other)
    assert relative(torch.stack(after.logits(rows)), io["logits"]) <= 1e-5
    config = WriteConfig(max_tokens=8)
    assert before.complete(["ab", "a longer one"], config) == after.complete(["ab", "a longer one"], config)
    export_model(folder, tmp_path / "back")
    theirs, back = (load_file(tmp_path / part / "model.safetensors") for part in ("theirs", "back"))
    assert all(back[key].equal(value) for key, value in theirs.items() if key in back)
    spec = load_spec(folder)
    assert spec.model.vocab_size == load_spec(init).model.vocab_size + NUM_MARKERS
    pipeline = Pipeline.load(folder)
    images = pipeline.generate(prompts=["a small red circle"] * 2, config=QUICK)
    again = pipeline.generate(prompts=["a small red circle"], config=QUICK)
    assert images.shape[1:] == (3, 32, 32) and bool(torch.isfinite(images).all())
    torch.testing.assert_close(images[:1], again, rtol=0, atol=2e-5)
    with pytest.raises(UserError, match="never learned to describe images"):
        pipeline.caption(images)
    if name == "qwen3_a":
        moved = _distance(load_weights(folder), ".image.", lambda n: n.replace(".image.", "."))
        assert 0 < moved < 0.5  # begun as copies, and trained a little


def _distance(weights: dict[str, Tensor], part: str, of: Any) -> float:
    """Relative distance of the weights with `part` in their name from others."""
    names = [name for name in weights if part in name]
    moved = sum(float((weights[n] - weights[of(n)]).square().sum()) for n in names)
    return (moved / sum(float(weights[of(n)].square().sum()) for n in names)) ** 0.5


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (OWN, {"text": {"caption_first": 0.5, "image_first": 0.5, "loss_coefficient": 0.5}}),
        ({"lora": {"rank": 2}}, {}),
        ({}, {"train": {"trainable": "all", "text_lr_factor": 0.1}, "text": {"loss_coefficient": 0.1}}),
    ],
    ids=["captions of images too", "lora", "all"],
)
def test_a_graft_that_was_stopped_goes_on_to_the_bit(
    model: dict[str, Any], settings: dict[str, Any], tmp_path: Path
):
    init = language("llama_b", tmp_path)
    whole = run(graft_of(init, tmp_path / "whole", model, **settings))
    first = {**settings.get("train", {}), "images": 24}
    run(graft_of(init, tmp_path / "parts", model, **{**settings, "train": first}))
    last = run(graft_of(init, tmp_path / "parts", model, **settings))
    for name in ("model.safetensors", "raw.safetensors"):
        one, other = load_file(whole / name), load_file(last / name)
        assert one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)
    trained = settings.get("train", {}).get("trainable") == "all"
    raw, began = load_file(whole / "raw.safetensors"), load_weights(init)
    for name, value in began.items():
        assert is_of_text(name) and raw[name].equal(value) != trained
    state = load_file(whole / "state" / "optimizer.safetensors")
    assert any(is_of_text(name.rpartition("/")[0]) for name in state) == trained


def test_a_text_that_is_not_read_has_no_loss(tmp_path: Path):
    """The log told 0, and a perplexity of 1, of a frozen language model that nobody asked."""
    init = language("llama_b", tmp_path)
    settings = {"images": 8, "evaluate_every": 1, "evaluate_images": 8}
    run(graft_of(init, tmp_path / "run", OWN, train=settings))
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {record["kind"] for record in records} == {"train", "evaluation"}
    for record in records:
        assert not {"text_loss", "perplexity", "text"} & record.keys()


def test_what_is_chosen_for_data_leaves_the_language_model_its_own(tmp_path: Path):
    """`train PATH --config graft` chooses a batch and a patch size, and no size of the text."""
    init, device = language("llama_b", tmp_path), torch.device("cpu")
    given = load_config("graft-shapes", train={"init": str(init)})
    chosen, _ = settings_for(given, device)
    without, _ = settings_for(load_config("graft-shapes"), device)
    assert {"hidden_size", "depth", "num_heads"} <= without["model"].keys()
    assert not {"hidden_size", "depth", "num_heads", "position_embedding"} & chosen["model"].keys()
    assert "tokenizer" in without["text"] and "tokenizer" not in chosen["text"]
    assert chosen["train"] == without["train"]
    begun = graft_of(init, tmp_path / "run", OWN, train={"images": 8})
    run(begun)
    shutil.rmtree(init)  # a run that has begun does not need it
    again, _ = settings_for(begun, device)
    assert again["model"].keys() == chosen["model"].keys()


def test_the_texts_weights_have_a_learning_rate_of_their_own(tmp_path: Path):
    """AdamW's first step is of the size of the learning rate."""
    init, moved = language("llama_b", tmp_path), []
    for factor in (1.0, 0.01):
        settings = {"trainable": "all", "text_lr_factor": factor, "images": 8, "lr_schedule": "constant"}
        config = graft_of(
            init, tmp_path / f"run-{factor}", {}, train=settings, text={"loss_coefficient": 1.0}
        )
        raw, began = load_file(run(config) / "raw.safetensors"), load_weights(init)
        moved.append(float((raw["blocks.0.mlp.fc1.weight"] - began["blocks.0.mlp.fc1.weight"]).abs().max()))
    assert moved[1] == pytest.approx(moved[0] / 100, rel=0.05)


def test_what_does_not_fit_a_language_model_is_refused(tmp_path: Path):
    init = language("gpt2_a", tmp_path)
    for model, message in (
        ({"depth": 7}, "model.depth is 7, the language model has"),
        ({"max_text_tokens": 4096}, "the language model has room for"),
        ({"image_weights": {"kind": "own", "hidden_size": 30}}, "model.image_weights.hidden_size is 30"),
    ):
        with pytest.raises(UserError, match=message):
            run(graft_of(init, tmp_path / "run", model))
    with pytest.raises(UserError, match=r"text.tokenizer is init; expected train.init too"):
        run(graft_of(Path(), tmp_path / "run", OWN, train={"init": ""}))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_complete_speaks_as_the_language_model_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    init, said = language("llama_b", tmp_path), []
    for model in (init, run(graft_of(init, tmp_path / "run", OWN, train={"images": 8}))):
        command = ["complete", "abc", "--model", str(model), "--max-tokens", "5"]
        assert cli.run([*command, "--out", str(tmp_path / model.name)]) == 0
        said.append(capsys.readouterr().out.splitlines()[0])
    assert said[0] == said[1]


def test_what_a_graft_will_cost_is_told_before_it_begins(tmp_path: Path):
    """The sizes of the language model, not of the defaults; fewer bytes where the text is frozen."""
    init = language("llama_b", tmp_path)
    config = graft_of(init, tmp_path / "run", OWN)
    planned = plan_run(config, text_tokens=12).config
    folder = run(config)
    assert planned.model == load_spec(folder).model
    every = replace(planned, train=replace(planned.train, trainable="all"))
    text = sum(v.numel() for v in load_weights(init).values())
    assert not planned.reads_text, "markers stay, too"
    text += sum(v.numel() for n, v in load_weights(folder).items() if n.startswith("marker_"))
    assert state_bytes(every, 1) - state_bytes(planned, 1) == 16 * text


def test_names_of_classes_become_captions(tmp_path: Path):
    """Folders of images, whose classes a model of text is asked for by name."""
    for name, words in (("n01", "tench, Tinca tinca"), ("n02", "sea_lion")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(tmp_path / "data" / name / f"{i}.png")
        with (tmp_path / "words.txt").open("a") as file:
            file.write(f"{name} {words}\n")
    data = {"source": "folder", "path": str(tmp_path / "data"), "captions": "class_names", "holdout": 0.0}
    named = images.open_source(DataConfig(**data, class_words=str(tmp_path / "words.txt")))
    assert [named.read(i).captions for i in (0, 7)] == [("tench, Tinca tinca",), ("sea_lion",)]
    assert images.open_source(DataConfig(**data)).read(0).captions == ("n01",)
    init = language("llama_b", tmp_path)
    folder = run(graft_of(init, tmp_path / "run", OWN, data=data, train={"images": 8}))
    assert Pipeline.load(folder).generate(prompts=["sea lion"], config=QUICK).shape == (1, 3, 32, 32)
    (tmp_path / "words.txt").write_text("n01 tench\n")
    with pytest.raises(UserError, match="no line for 1 of 2 classes, such as 'n02'"):
        images.open_source(DataConfig(**data, class_words=str(tmp_path / "words.txt")))
    with pytest.raises(UserError, match=r"digits has no captions|has no classes"):
        images.open_source(DataConfig(source="npz", path=str(_unlabelled(tmp_path)), captions="class_names"))


def _unlabelled(folder: Path) -> Path:
    np.savez(folder / "images.npz", np.zeros((3, 8, 8, 3), np.uint8))
    return folder / "images.npz"
