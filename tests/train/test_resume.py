"""A resumed run has its own data and settings; what changed is said, what only moved is found."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causalfusion.config import RunConfig
from causalfusion.config.recipes import load_config
from causalfusion.errors import UserError
from causalfusion.saved.folder import checkpoints_of
from causalfusion.train.run import train


def draw_folder(folder: Path, classes: str, count: int = 6) -> Path:
    """`count` images of each class."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = np.full((8, 8, 3), 20 * number + k, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def began(tmp_path_factory) -> tuple[Path, Path]:
    """A run of two steps on the classes a, b and c."""
    root = tmp_path_factory.mktemp("began")
    photos = draw_folder(root / "photos", "abc")
    train(settings(root / "run", photos), device="cpu", show_progress=False)
    return root / "run", photos


def settings(out: Path, photos: Path, **changes) -> RunConfig:
    values = {"images": 16, "batch_size": 8, "evaluate_every": 0, "sample_every": 0, **changes}
    return load_config(
        out=str(out), data={"source": "folder", "path": str(photos), "image_size": 8}, train=values,
        codec={"patch_size": 4}, model={"hidden_size": 32, "depth": 1, "num_heads": 2},
    )  # fmt: skip


@pytest.fixture
def go_on(began, tmp_path):
    """Go on with a copy of the run, with other data or settings."""
    run, photos = began
    shutil.copytree(run, tmp_path / "run")

    def go(other: Path = photos, **changes) -> Path:
        config = settings(tmp_path / "run", other, images=24, **changes)
        return train(config, device="cpu", show_progress=False)

    return go


def test_other_classes_are_refused_by_name(go_on, tmp_path):
    said = (
        r"photos are not those that .*run was begun with: 'a' is missing, 'z' is new; .*--train\.init .*run$"
    )
    with pytest.raises(UserError, match=said):
        go_on(draw_folder(tmp_path / "other" / "photos", "bcz"))


def test_another_number_of_classes_is_refused_by_name(go_on, tmp_path):
    with pytest.raises(UserError, match=r"'y', 'z' are new; go on with the data it began with"):
        go_on(draw_folder(tmp_path / "photos", "abcyz"))


def test_more_images_are_refused_with_both_numbers(go_on, tmp_path):
    with pytest.raises(
        UserError, match=r"photos has 21 images, .*run was begun with 18; go on with the data"
    ):
        go_on(draw_folder(tmp_path / "photos", "abc", 7))


def test_the_same_data_elsewhere_are_the_same(go_on, began, tmp_path):
    shutil.copytree(began[1], tmp_path / "moved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert go_on(tmp_path / "moved").name == "000000000024"


def test_files_of_other_times_and_equal_contents_are_the_same(go_on, tmp_path):
    photos = draw_folder(tmp_path / "photos", "abc")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert go_on(photos).name == "000000000024"


def test_a_file_that_changed_is_said(go_on, tmp_path):
    photos = draw_folder(tmp_path / "photos", "abc")
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(photos / "a" / "0.png")
    with pytest.warns(UserWarning, match=r"files of .*photos have changed since .*run was begun; it goes on"):
        go_on(photos)


def test_a_run_of_an_earlier_version_has_nothing_to_compare(go_on, tmp_path):
    for checkpoint in checkpoints_of(tmp_path / "run"):
        (checkpoint / "state" / "data.json").unlink()
    assert go_on(draw_folder(tmp_path / "photos", "abc", 7)).name == "000000000024"


def test_a_lower_learning_rate_is_refused_with_the_way_that_exists(go_on, tmp_path, began):
    said = r"begun with train\.lr = 0\.0001, now it is 1e-05; .*another --out, and --train\.init .*run$"
    with pytest.raises(UserError, match=said):
        go_on(lr=1e-5)
    config = settings(tmp_path / "new", began[1], lr=1e-5, init=str(tmp_path / "run"))
    assert train(config, device="cpu", show_progress=False).name == "000000000016"


def test_what_a_killed_process_left_is_gone_at_the_next_start(go_on, tmp_path, began):
    """Also of a run that is finished, and saves nothing more."""
    folder = tmp_path / "run" / "checkpoints"
    for name in (".partial-000000000024", ".partial-old-000000000008"):
        (folder / name / "state").mkdir(parents=True)
    config = settings(tmp_path / "run", began[1])
    assert train(config, device="cpu", show_progress=False).name == "000000000016"
    assert [p.name for p in folder.iterdir()] == ["000000000016"]


def test_a_cache_may_move_and_nothing_else_may_take_its_place(began, tmp_path):
    from causalfusion.codec.encode import encode_to_cache

    config = settings(tmp_path / "run", began[1])
    for name in ("cache", "moved"):
        encode_to_cache(config, tmp_path / name, device="cpu")
    first = replace(config, data=replace(config.data, cache=str(tmp_path / "cache")))
    train(first, device="cpu", show_progress=False)
    shutil.rmtree(tmp_path / "cache")
    moved = replace(
        first, data=replace(first.data, cache=str(tmp_path / "moved")), train=replace(first.train, images=24)
    )
    assert train(moved, device="cpu", show_progress=False).name == "000000000024"
    with pytest.raises(UserError, match=r"begun with data\.cache = .*now it is ''"):
        train(replace(moved, data=config.data), device="cpu", show_progress=False)
