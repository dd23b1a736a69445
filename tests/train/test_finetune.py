"""`causalfusion finetune`: a model goes on with other data."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from causalfusion import cli
from causalfusion.saved.folder import latest_model, load_spec, load_weights

SHORT = ["--train.batch-size", "8", "--train.evaluate-every", "0", "--train.log-every", "1"]


def draw(folder: Path, names: tuple[str, ...], side: int = 8) -> Path:
    """A folder of pictures, 12 of each class."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (side, side), (20 * index, 60 * number, 90)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A run of two small layers on pictures of the classes cat, dog and owl."""
    folder = tmp_path_factory.mktemp("base")
    data = draw(folder / "pictures", ("cat", "dog", "owl"))
    small = ["--model.hidden-size", "16", "--model.depth", "2", "--model.num-heads", "2"]
    small += ["--model.num-class-tokens", "2", "--codec.patch-size", "2", "--train.images", "32"]
    assert cli.run(["train", "--data", str(data), *small, *SHORT, "--out", str(folder / "run")]) == 0
    return folder / "run"


def finetune(*options: object) -> int:
    return cli.run(["finetune", *map(str, options), *SHORT])


def test_a_run_goes_on_with_other_pictures(base, tmp_path):
    data, out = draw(tmp_path / "pictures", ("cat", "dog", "owl")), tmp_path / "mine"
    assert finetune(base, "--data", data, "--out", out, "--train.images", 16) == 0
    before, after = load_spec(latest_model(base)), load_spec(latest_model(out))
    assert after.diffusion == before.diffusion and after.factorization == before.factorization
    assert after.model.hidden_size == before.model.hidden_size
    weights, begun = load_weights(latest_model(out)), load_weights(latest_model(base))
    same = {name for name in begun if torch.equal(weights[name], begun[name])}
    assert "image_in.weight" not in same


def test_what_is_missing_is_said_in_one_line(capsys):
    for line, said in [
        ([], "finetune needs a model"),
        (["shapes"], "finetune needs data"),
        (["shapes", "other", "--data", "x"], "takes one model"),
        (["shapes", "--data.source", "digits", "--task", "sing"], "expected one of generate"),
    ]:
        assert cli.run(["finetune", *line]) == 2
        assert said in capsys.readouterr().err
