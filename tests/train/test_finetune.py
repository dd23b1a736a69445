"""`causalfusion finetune`: a model goes on with other data."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from causalfusion import Pipeline, cli
from causalfusion.config import FinetuneConfig, RunConfig
from causalfusion.config.recipes import load_config
from causalfusion.data.labels import map_classes
from causalfusion.data.source import Example
from causalfusion.errors import UserError
from causalfusion.saved.folder import checkpoints_of, latest_model, load_spec, load_weights
from causalfusion.train.from_data import classes_of
from causalfusion.train.new_rows import for_classes
from causalfusion.train.prior import Mixed, OwnImages, Shares
from causalfusion.train.run import train

SHORT = [
    "--train.batch-size", "8", "--train.evaluate-every", "0", "--train.sample-minutes", "0",
    "--train.precision", "float32",
]  # fmt: skip
TABLE = "class_embedding.table.weight"


def draw(folder: Path, names: tuple[str, ...], side: int = 8) -> Path:
    """A folder of pictures, 12 of each class."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (side, side), (20 * index, 60 * number, 90)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A run of two small layers on pictures of the classes cat, dog and owl. Not to be changed."""
    folder = tmp_path_factory.mktemp("base")
    data = draw(folder / "pictures", ("cat", "dog", "owl"))
    model = {"hidden_size": 16, "depth": 2, "num_heads": 2, "num_class_tokens": 2}
    config = load_config(
        data={"source": "folder", "path": str(data), "image_size": 8},
        codec={"patch_size": 2},
        model={**model, "position_embedding": "learnable"},
        sample={"sampler": "ddim", "diffusion_steps": [4]},
        train={"images": 32, "batch_size": 8, "evaluate_every": 0, "sample_minutes": 0.0},
    )
    train(replace(config, out=str(folder / "run")))
    return folder / "run"


def finetune(*options: object, images: int = 16) -> int:
    return cli.run(["finetune", *map(str, options), *SHORT, "--train.images", str(images)])


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_weights(latest_model(run))


def test_classes_of_the_same_name_are_the_same():
    names, table = map_classes(["dog", "yak"], ["cat", "dog"], keep=True)
    assert names == ["cat", "dog", "yak"] and table is not None and table.tolist() == [1, 2]
    names, table = map_classes(["dog", "yak"], ["cat", "dog"], keep=False)
    assert names == ["dog", "yak"] and table is not None and table.tolist() == [0, 1]
    names, table = map_classes([], ["cat", "dog"], keep=True)  # without labels: the null class
    assert names == ["cat", "dog"] and table is not None and table.tolist() == [2]
    names, table = map_classes(["yak"], ["cat", "dog"], keep=True, used=False)
    assert names == ["cat", "dog"] and table is not None and table.tolist() == [0]


def test_classes_that_share_a_name_stay_apart():
    """ImageNet's cranes, by the names of a list: a bird, and a machine."""
    known = ["ant", "crane", "bee", "crane"]
    names, table = map_classes(["ant", "crane", "crane", "dog"], known, keep=True)
    assert names == [*known, "dog"] and table is not None and table.tolist() == [0, 1, 3, 4]
    names, table = map_classes(["bee", "gnu", "gnu"], known, keep=True)
    assert names == [*known, "gnu", "gnu"] and table is not None and table.tolist() == [2, 4, 5]
    with pytest.raises(UserError, match="'crane' is the name of 2 of the model's classes and of 1 of the"):
        map_classes(["crane", "dog"], known, keep=True)
    rows = torch.arange(5.0)[:, None].expand(5, 2)
    grown = for_classes({TABLE: rows}, known, ["crane", "dog", "crane", "bee"], seed=0)[TABLE]
    assert grown[[0, 2, 3, 4], 0].tolist() == [1, 3, 2, 4]


def test_rows_of_classes_that_the_data_lack_stay_to_the_bit(base, tmp_path):
    data, out = draw(tmp_path / "pictures", ("dog", "yak")), tmp_path / "mine"
    assert finetune(base, "--data", data, "--out", out, "--adapter", "none") == 0
    spec = load_spec(latest_model(out))
    assert spec.class_names == ["cat", "dog", "owl", "yak"] and spec.model.num_classes == 4
    before, after = weights_of(base)[TABLE], weights_of(out)[TABLE]
    assert torch.equal(after[[0, 2]], before[[0, 2]]), "cat and owl"
    assert not torch.equal(after[1], before[1]), "dog learned"
    assert not torch.equal(after[4], before[3]), "so did the null class, which is still the last"
    assert not torch.equal(weights_of(out)["image_in.weight"], weights_of(base)["image_in.weight"])
    assert load_spec(latest_model(out)).diffusion == load_spec(latest_model(base)).diffusion


def test_the_classes_of_the_data_may_be_all(base, tmp_path):
    data, out = draw(tmp_path / "pictures", ("dog", "yak")), tmp_path / "mine"
    assert finetune(base, "--data", data, "--out", out, "--adapter", "none", "--no-keep-classes") == 0
    assert load_spec(latest_model(out)).class_names == ["dog", "yak"]
    images = Pipeline.load(out).generate(["yak"])
    assert images.shape == (1, 3, 8, 8)


def test_another_resolution(base, tmp_path):
    data, out = draw(tmp_path / "pictures", ("cat",), side=12), tmp_path / "mine"
    assert finetune(base, "--data", data, "--data.image-size", 12, "--out", out, "--adapter", "none") == 0
    spec = load_spec(latest_model(out))
    assert (spec.model.grid_height, spec.codec.image_width) == (6, 12)
    assert weights_of(out)["image_position"].shape == (36, 16)


def test_low_rank_additions_and_new_rows_are_all_that_learns(base, tmp_path):
    data, out = draw(tmp_path / "pictures", ("dog", "yak")), tmp_path / "mine"
    assert finetune(base, "--data", data, "--out", out, "--adapter", "lora", "--rank", 2) == 0
    before, after = weights_of(base), weights_of(out)
    assert torch.equal(after[TABLE][[0, 1, 2, 4]], before[TABLE]), "all but the row of yak"
    changed = {name for name in before if name != TABLE and not torch.equal(after[name], before[name])}
    assert not changed
    assert after["blocks.1.mlp.fc2.lora_b"].abs().max() > 0


def test_a_run_that_is_stopped_goes_on_to_the_bit(base, tmp_path):
    data = draw(tmp_path / "pictures", ("dog", "yak"))
    for adapter in ("none", "lora"):
        whole, parts = tmp_path / f"{adapter}-whole", tmp_path / f"{adapter}-parts"
        line = [base, "--data", data, "--adapter", adapter, "--prior-preservation", 0.5, "--prior-images", 6]
        constant = ["--train.lr-schedule", "constant"]
        assert finetune(*line, *constant, "--out", whole, images=32) == 0
        assert finetune(*line, *constant, "--out", parts, images=16) == 0
        assert finetune(*line, *constant, "--out", parts, images=32) == 0
        one, other = weights_of(whole), weights_of(parts)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_goes_on_from_its_model_in_any_spelling_and_no_other(base, tmp_path, capsys, monkeypatch):
    """What is advised where it cannot go on is something that finetune takes."""
    data, model = draw(tmp_path / "pictures", ("dog", "yak")), tmp_path / "model"
    shutil.copytree(base, model)
    monkeypatch.chdir(tmp_path)
    for adapter in ("none", "lora"):
        line = ["--data", data, "--adapter", adapter, "--out", tmp_path / adapter]
        assert finetune("model", *line, images=8) == 0
        assert finetune("./model/", *line, images=16) == 0
    assert finetune("model", *line, "--rank", 3, images=24) == 2
    assert "--rank = 8, now it is 3; give the value it began with, or begin a new run: another --out\n" in (
        capsys.readouterr().err
    )
    shutil.move(model, tmp_path / "moved")
    assert finetune(tmp_path / "moved", *line, images=24) == 0
    weights = latest_model(tmp_path / "moved") / "model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    assert finetune(tmp_path / "moved", *line, images=32) == 2
    assert "moved are not those that" in capsys.readouterr().err
    line[3], line[5] = "none", tmp_path / "none"
    assert finetune(base, *line, "--train.lr", 1e-6, images=24) == 2
    said = capsys.readouterr().err
    assert "was begun with the model './model/', now it is" in said
    assert f"from its weights: finetune {tmp_path / 'none'}, with another --out" in said


def test_own_images_are_drawn_once_and_kept(base, tmp_path, capsys):
    data, out = draw(tmp_path / "pictures", ("yak",)), tmp_path / "mine"
    line = [base, "--data", data, "--out", out, "--adapter", "none"]
    line += ["--prior-preservation", 0.5, "--prior-images", 6]
    assert finetune(*line) == 0
    parts = sorted((out / "prior").glob("part-*.npz"))
    with np.load(parts[0]) as drawn:
        assert drawn["images"].shape == (6, 8, 8, 3) and drawn["labels"].tolist() == [0, 1, 2, 0, 1, 2]
    before = parts[0].stat().st_mtime_ns
    assert finetune(*line, images=32) == 0
    assert parts[0].stat().st_mtime_ns == before
    assert not torch.equal(weights_of(out)[TABLE][:3], weights_of(base)[TABLE][:3]), "their classes learn"
    settings = json.loads((out / "prior" / "settings.json").read_text())
    (out / "prior" / "settings.json").write_text(json.dumps({**settings, "seed": 5}))
    assert finetune(*line, images=48) == 2
    assert "holds images of another model, or of other settings" in capsys.readouterr().err


def test_own_images_keep_their_classes_beside_images_without_any():
    """They were of the null class, as the data were."""

    class Photos:
        name, class_names, has_captions = "photos", list[str](), False

        def __len__(self) -> int:
            return 1

        def read(self, index: int) -> Example:
            return Example(np.zeros((8, 8, 3), np.uint8))

        def fingerprint(self) -> str:
            return ""

    own = object.__new__(OwnImages)
    own.class_names, image = ["cat", "dog"], np.ones((8, 8, 3), np.uint8)
    own.examples = [Example(image, 1), Example(image)]
    mixed = Mixed(Photos(), own)
    config = RunConfig(finetune=FinetuneConfig(base="x", classes=["cat", "dog"]))
    _, names, table = classes_of(config, mixed, mixed.class_names)
    assert names == ["cat", "dog"] and table is not None
    labels = np.array([mixed.read(index).label for index in range(3)])
    assert table[labels].tolist() == [2, 1, 2], "null, dog, null"


@pytest.mark.parametrize(
    ("images", "share", "most"),
    [(80, 0.5, 200), (80, 0.5, 40), (10_000, 0.5, 200), (80, 0.2, 200), (5, 0.9, 200)],
)
def test_own_images_have_their_share(images, share, most):
    shares = Shares.of(images, share, most)
    own = shares.own * shares.count
    assert shares.count <= most
    assert own / (own + shares.given * images) == pytest.approx(share, abs=0.01)


def test_a_hub_id(base, tmp_path, monkeypatch):
    """A name on the hub is the base, wherever models are looked up; its folder is fetched by `saved.hub`."""
    fetched = latest_model(base)
    monkeypatch.setattr(
        "causalfusion.saved.folder.model_of_hub", lambda path: fetched if str(path) == "user/pets" else None
    )
    data, out = draw(tmp_path / "pictures", ("yak",)), tmp_path / "mine"
    assert finetune("user/pets", "--data", data, "--out", out, "--adapter", "lora") == 0
    assert json.loads((out / "adapter" / "causalfusion.json").read_text())["base"] == "user/pets"


def test_what_is_missing_or_does_not_fit_is_said_in_one_line(base, tmp_path, capsys):
    data = draw(tmp_path / "pictures", ("yak",))
    for line, said in [
        ([], "finetune needs a model"),
        ([base], "finetune needs data"),
        ([base, "other", "--data", data], "takes one model"),
        ([base, "--data", data, "--task", "sing"], "expected one of generate"),
        ([base, "--data", data, "--adapter", "text-inversion"], "expected a word"),
        ([base, "--data", data, "--adapter", "text-inversion", "--word", "<x>"], "has no words of its own"),
        ([base, "--data", data, "--word", "<x>"], "without --adapter text-inversion"),
        ([base, "--data", data, "--adapter", "lora", "--no-keep-classes"], "adapters only add classes"),
        (["shapes", "--data.source", "shapes", "--text.tokenizer", "train"], "the tokenizer of its model"),
        ([base, "--data.source", "in_context"], "finetune takes images"),
        ([base, "--data", data, "--prior-preservation", "1"], "a share in [0, 1)"),
        (
            [base, "--data", data, "--adapter", "none", "--no-keep-classes", "--prior-preservation", "0.5"],
            "images of the model's classes, and --no-keep-classes leaves out those",
        ),
    ]:
        assert cli.run(["finetune", *map(str, line), "--out", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
    assert not checkpoints_of(tmp_path / "out")
    assert finetune(base, "--data", data, "--out", base) == 2
    assert "is the model that the run goes on from; give another folder" in capsys.readouterr().err


def test_images_of_other_channels_are_refused_before_any_are_drawn(base, tmp_path, capsys):
    np.savez(tmp_path / "grey.npz", images=np.zeros((20, 8, 8), np.uint8))
    grey = ["--data", tmp_path / "grey.npz", "--out", tmp_path / "out"]
    assert finetune(base, *grey, "--prior-preservation", 0.5) == 2
    assert "have 1 channel (grey, such as an .npz file may hold), the model's 3" in capsys.readouterr().err
    assert not (tmp_path / "out" / "prior").exists()
