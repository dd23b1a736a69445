"""What users bring to fine-tuning that is damaged, or is not what they think it is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from causalfusion import cli
from causalfusion.codec.tokenizer import train_tokenizer
from causalfusion.config import FinetuneConfig
from causalfusion.config.recipes import load_config
from causalfusion.config.serialize import to_dict, to_toml
from causalfusion.data.source import Example
from causalfusion.diffusion.process import make_process
from causalfusion.diffusion.segments import few_steps
from causalfusion.errors import UserError
from causalfusion.saved.adapted import with_adapters
from causalfusion.saved.adapter import AdapterFacts, read_adapter
from causalfusion.saved.folder import ModelSpec, latest_model, load_spec
from causalfusion.train import teacher
from causalfusion.train.finetuning import check_captions, settings_beneath
from causalfusion.train.from_data import classes_of
from causalfusion.train.prior import Mixed, OwnImages

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "format_1_run"
LAYER = "blocks.0.attn.qkv"
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "bias": "none"}


def adapter(folder: Path, tensors: dict[str, Tensor] | None = None, facts: dict | None = None, **changed):
    """A folder with an adapter, low-rank additions of rank 2 if no others are given."""
    folder.mkdir()
    if tensors is None:
        tensors = {"A": torch.ones(2, 4), "B": torch.ones(6, 2)}
    named = {
        f"base_model.model.{LAYER}.lora_{name}.weight" if len(name) == 1 else name: value
        for name, value in tensors.items()
    }
    save_file(named, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN | changed))
    if facts is not None:
        (folder / "causalfusion.json").write_text(json.dumps(to_dict(AdapterFacts()) | facts))
    return folder


@pytest.mark.parametrize(
    ("tensors", "facts", "changed", "said"),
    [
        (None, None, {"lora_alpha": 10**400}, "lora_alpha is 100000000000...; expected a number up to"),
        (None, None, {"lora_alpha": "8"}, "lora_alpha is '8'; expected a number up to"),
        ({"A": torch.ones(0, 4), "B": torch.ones(6, 0)}, None, {}, "has no lora_B that fits it"),
        ({}, None, {}, "lacks the low-rank additions"),
        ({}, {"word": "<yak>", "kind": "text-inversion"}, {}, "lacks the rows of the word <yak>"),
        (None, {"classes": ["yak"]}, {}, "lacks the rows of its classes"),
    ],
)
def test_an_adapter_that_would_do_nothing_or_cannot_be_computed_is_refused(
    tmp_path, tensors, facts, changed, said
):
    folder = adapter(tmp_path / "one", tensors, facts, **changed)
    with pytest.raises(UserError, match=said.replace(".", r"\.")) as error:
        read_adapter(folder)
    assert str(folder) in str(error.value) and len(str(error.value)) < 300


def test_a_weight_that_makes_infinite_numbers_is_refused(tmp_path):
    found = read_adapter(adapter(tmp_path / "one"))
    weights = {f"{LAYER}.weight": torch.ones(6, 4)}
    spec = ModelSpec(model=load_config().model, codec=load_config().codec)
    assert float(with_adapters(spec, weights, None, [(found, 0.5)])[1][f"{LAYER}.weight"][0, 0]) == 2
    for weight in (3e38, float("nan")):
        with pytest.raises(UserError, match=f"{LAYER}.weight too large"):
            with_adapters(spec, weights, None, [(found, weight)])


def test_a_new_word_is_no_part_of_others_and_no_known_one():
    tokenizer = train_tokenizer(["a red cat", "a blue dog"] * 9, 400)
    for known in ("cat", "dog"):  # with the space before it, as texts have them
        with pytest.raises(UserError, match=f"the tokenizer has the word '{known}'"):
            tokenizer.with_word(known)
    for word, inside in (("yak", "kayaks and yaks"), ("Ёж", "Ёжик")):
        grown = tokenizer.with_word(word)
        assert grown.base_size - 1 not in grown.encode(inside)
        assert grown.encode(inside) == tokenizer.encode(inside)
        assert grown.encode(f"a {word}, a {word}").count(grown.base_size - 1) == 2
        with pytest.raises(UserError, match=f"no caption has the word {word}"):
            check_captions([inside], grown, FinetuneConfig(adapter="text-inversion", word=word))
    for word, text in (("<yak>", "two <yak>s"), ("雪", "白雪公主")):  # no spaces tell its bounds
        grown = tokenizer.with_word(word)
        assert grown.base_size - 1 in grown.encode(text)


class Labelled:
    name, has_captions, class_names = "given", False, ["dog", "yak"]

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> Example:
        return Example(np.zeros((4, 4, 3), np.uint8), 1, ())


@pytest.mark.parametrize(("known", "labels"), [(["cat"], -1), ([], 0)])
def test_own_images_without_a_class_are_of_the_null_class(tmp_path, known, labels):
    """Beside images with classes, whether the model drew them from texts, or has no classes to name."""
    images = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "part-0000.npz", images=images, labels=[labels] * 2, texts=np.array(["a", ""]))
    source = Mixed(Labelled(), OwnImages(tmp_path, 2, known))
    config = load_config(model={"num_class_tokens": 2})
    finetune = replace(config.finetune, base="model", classes=known)
    _, names, table = classes_of(replace(config, finetune=finetune), source, source.class_names)
    assert table is not None and names == [*known, "dog", "yak"]
    found = [int(table[source.read(index).label or 0]) for index in range(3)]
    assert found == [names.index("yak"), len(names), len(names)]


def test_own_images_of_classes_that_share_a_name_keep_their_own(tmp_path):
    images, known = np.zeros((3, 4, 4, 3), np.uint8), ["crane", "ant", "crane"]
    np.savez(tmp_path / "part-0000.npz", images=images, labels=[0, 1, 2], texts=np.array([""] * 3))
    source = Mixed(Labelled(), OwnImages(tmp_path, 3, known))
    config = load_config(model={"num_class_tokens": 2})
    finetune = replace(config.finetune, base="model", classes=known)
    _, names, table = classes_of(replace(config, finetune=finetune), source, source.class_names)
    assert table is not None and names == [*known, "dog", "yak"]
    assert [int(table[source.read(index).label or 0]) for index in range(4)] == [4, 0, 1, 2]


@pytest.mark.parametrize("cut", [0, 30, -40])
def test_a_damaged_file_of_own_images_is_named(tmp_path, cut):
    file = tmp_path / "part-0000.npz"
    np.savez(file, images=np.zeros((2, 4, 4, 3), np.uint8), labels=[0, 0], texts=np.array(["a", "b"]))
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"part-0000\.npz, images of the model's own, is damaged .*; del"):
        OwnImages(tmp_path, 2, ["cat"])


def test_captions_are_not_learned_from_images_without(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for number in range(24):
        Image.new("RGB", (32, 32), (number, 9, 9)).save(tmp_path / "data" / f"{number}.png")
    line = [
        "finetune",
        "shapes",
        "--data",
        str(tmp_path / "data"),
        "--task",
        "caption",
        "--out",
        str(tmp_path / "x"),
    ]
    assert cli.run([*line, "--train.images", "8", "--train.batch-size", "8"]) == 2
    assert "has no captions; expected images with captions" in capsys.readouterr().err
    assert not (tmp_path / "x" / "checkpoints").exists()


def begun(run: Path, **tables: dict) -> Path:
    """A run that was begun with these settings, recommended to be sampled in one step."""
    shutil.copytree(OLD_RUN, run)
    folder = latest_model(run)
    stored = json.loads((folder / "state" / "run.json").read_text())
    for table, settings in tables.items():
        stored[table] = {**stored.get(table, {}), **settings}
    (folder / "state" / "run.json").write_text(json.dumps(stored))
    (folder / "sample.toml").write_text(to_toml(few_steps(make_process(load_spec(folder).diffusion), 1)))
    return run


def test_the_rate_of_an_adapter_is_not_that_of_a_student(tmp_path):
    rate = {"lr": 0.01}
    plain = begun(tmp_path / "plain", train=rate)
    adapted = begun(tmp_path / "adapted", train=rate, finetune={"base": "model", "adapter": "lora"})
    assert teacher.settings_beneath(str(plain))["train"]["lr"] == 0.01
    assert teacher.settings_beneath(str(adapted))["train"]["lr"] == 1e-3


def test_a_distilled_model_is_said_to_become_an_ordinary_one(tmp_path, recwarn):
    plain = begun(tmp_path / "plain")
    student = begun(tmp_path / "student", distill={"teacher": "model", "steps": 1})
    published = tmp_path / "published"  # which does not say how it was trained
    shutil.copytree(latest_model(student), published, ignore=shutil.ignore_patterns("state"))
    settings_beneath(str(plain), {})
    settings_beneath(str(student), {"task": "classify"})
    assert not [w for w in recwarn if "distilled" in str(w.message)]
    for model in (student, published):
        with pytest.warns(UserWarning, match=r"was distilled to few diffusion steps \(1\)"):
            settings_beneath(str(model), {})


def test_a_run_does_not_begin_from_itself(tmp_path, capsys):
    run, missing = begun(tmp_path / "run"), tmp_path / "missing"
    for model, told in ((run, "; to go on with it, leave --train.init out"), (missing, "")):
        line = ["train", "--config", "digits", "--train.init", f"{model}/", "--out", str(model)]
        assert cli.run(line) == 2
        said = f"--out {model} is the model of --train.init; give another folder{told}\n"
        assert capsys.readouterr().err.endswith(said)
