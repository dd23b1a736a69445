"""Folders that `sample`, `edit` and `complete` write: whole or not, one's own or others', read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causalfusion import cli
from causalfusion.config import DataConfig
from causalfusion.data import open_source
from causalfusion.data.written import pictures_beside
from causalfusion.errors import UserError
from causalfusion.evaluate.samples.open_images import open_images
from causalfusion.generate import run as sample_run
from causalfusion.generate.caption_run import image_files
from causalfusion.generate.store import PartStore, PngStore, runs_of, write_npz

FAST = ["--diffusion-steps", "2", "--device", "cpu"]


def sample(model: Path, out: Path, *options: object) -> int:
    return cli.run(["sample", "--model", str(model), "--out", str(out), *FAST, *map(str, options)])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def settings_of(folder: Path) -> dict:
    return json.loads((folder / "settings.json").read_text())


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.array(Image.open(path)) for path in sorted(folder.glob("0*.png"))])


def test_own_images_are_replaced_and_others_files_stay(models, tmp_path, capsys, recwarn):
    out = tmp_path / "out"
    assert sample(models["classes"], out, "--images", 6, "--output", "png", "grid", "npz") == 0
    (out / "cat.png").write_bytes(b"mine")
    assert sample(models["both"], out, "--images", 3) == 0
    assert names(out) == ["000000.png", "000001.png", "000002.png", "cat.png", "grid.png", "settings.json"]
    assert (out / "cat.png").read_bytes() == b"mine"
    told = capsys.readouterr().err + " ".join(str(w.message) for w in recwarn)
    assert f"{out} holds 1 other file (cat.png), left as it is" in told
    assert f"note: {out}: 8 files of an earlier sample replaced" in told
    assert settings_of(out)["finished"] is True and settings_of(out)["num"] == 3


@pytest.mark.parametrize("name", ["000001.png", "grid.png", "settings.json"])
def test_a_file_that_no_sample_wrote_is_never_written_over(models, tmp_path, name, capsys):
    (tmp_path / name).write_text('{"mine": 1}')
    assert sample(models["classes"], tmp_path, "--images", 3) == 2
    assert name in capsys.readouterr().err
    assert names(tmp_path) == [name] and (tmp_path / name).read_text() == '{"mine": 1}'


def stop_after(monkeypatch, batches: int) -> None:
    """Ctrl-C, or a kill, once so many batches lie on the disk."""
    true, calls = sample_run.generate_best, []

    def stop(*arguments, **options):
        calls.append(1)
        if len(calls) > batches:
            raise KeyboardInterrupt
        return true(*arguments, **options)

    monkeypatch.setattr(sample_run, "generate_best", stop)


def test_a_set_that_was_stopped_does_not_pass_as_whole_and_goes_on(models, tmp_path, monkeypatch, capsys):
    """Over a finished set of another model: never a mixture that somebody takes for one set."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    again = ("--images", 6, "--batch-size", 2, "--seed", 4)
    assert sample(models["classes"], whole, *again) == 0
    assert sample(models["both"], out, "--images", 6) == 0
    assert len(open_images(str(out))) == 6
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert sample(models["classes"], out, *again) == 130
    assert names(out) == [*(f"{k:06d}.png" for k in range(4)), "settings.json"]
    with pytest.raises(UserError, match="is not finished: its `sample` was stopped"):
        open_images(str(out))
    before = (out / "000000.png").stat().st_mtime_ns
    assert sample(models["classes"], out, *again) == 0
    assert "4 of 6 images are there already" in capsys.readouterr().out
    assert (out / "000000.png").stat().st_mtime_ns == before, "what was there was not made again"
    assert abs(pixels(out).astype(int) - pixels(whole)).max() <= 1 and len(open_images(str(out))) == 6


def test_a_stopped_set_goes_on_under_another_output(models, tmp_path, monkeypatch, capsys):
    """PNGs stay and are used, and no hidden parts are left behind."""
    whole, again = tmp_path / "whole", ("--images", 4, "--batch-size", 2, "--output")
    assert sample(models["classes"], whole, *again, "png") == 0
    for begun, then, kept in (("png", "npz", True), ("npz", "png", False)):
        out = tmp_path / begun
        with monkeypatch.context() as patch:
            stop_after(patch, 1)
            assert sample(models["classes"], out, *again, begun) == 130
        capsys.readouterr()
        assert sample(models["classes"], out, *again, then) == 0
        assert ("2 of 4 images are there already, PNGs, which stay" in capsys.readouterr().out) == kept
        made = ["samples.npz"] if then == "npz" else []
        assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == sorted(
            [*(f"{k:06d}.png" for k in range(4)), "settings.json", *made]
        )
        assert abs(pixels(out).astype(int) - pixels(whole)).max() <= 1
    arrays = np.load(tmp_path / "png" / "samples.npz")["arr_0"]
    assert (arrays == pixels(tmp_path / "png").reshape(arrays.shape)).all()


def test_a_stopped_set_is_not_gone_on_with_under_other_settings(models, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert sample(models["classes"], out, "--images", 4, "--batch-size", 2) == 130
    first = pixels(out)
    assert sample(models["classes"], out, "--images", 4, "--batch-size", 2, "--seed", 1) == 0
    assert (pixels(out)[:2] != first).any() and len(pixels(out)) == 4


def test_a_set_is_not_gone_on_with_under_another_adapter(models, tmp_path, make_adapter):
    adapter, out = make_adapter(tmp_path / "adapter", models["classes"]), tmp_path / "out"
    for weight in (1, 0.5):
        told = ("--adapters", adapter, "--adapter-weights", weight)
        assert sample(models["classes"], out, "--images", 2, *told) == 0
        assert sample(models["classes"], out, "--images", 1, "--first", 2, *told) == 0
        assert len(pixels(out)) == 3
        assert sample(models["classes"], out, "--images", 1, "--first", 3) == 0
        assert names(out) == ["000003.png", "grid.png", "settings.json"], "and not the adapter's beside it"


def test_first_goes_on_with_a_finished_set(models, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert sample(models["classes"], whole, "--images", 5) == 0
    assert sample(models["classes"], out, "--images", 3) == 0
    assert sample(models["classes"], out, "--images", 2, "--first", 3, "--output", "png", "npz") == 0
    assert abs(pixels(out).astype(int) - pixels(whole)).max() <= 1
    assert settings_of(out)["labels"] == settings_of(whole)["labels"] == [0, 1, 2, 0, 1]
    with np.load(out / "samples.npz") as arrays:
        assert (arrays["arr_0"] == pixels(out)).all() and arrays["arr_1"].tolist() == [0, 1, 2, 0, 1]
    assert not (out / "grid.png").exists(), "that of the first three"
    assert sample(models["classes"], out, "--images", 1, "--first", 5, "--output", "png") == 0
    assert not (out / "samples.npz").exists() and len(pixels(out)) == 6


def test_images_of_two_runs_in_one_folder_are_noticed(models, tmp_path):
    assert sample(models["classes"], tmp_path / "a", "--images", 3) == 0
    assert sample(models["classes"], tmp_path / "b", "--images", 3, "--seed", 1) == 0
    (tmp_path / "b" / "000002.png").write_bytes((tmp_path / "a" / "000002.png").read_bytes())
    images = open_images(str(tmp_path / "b"))
    with pytest.raises(UserError, match=r"000002.png was made by another `sample` than .*two runs"):
        list(images.batches(8))
    (tmp_path / "a" / "000001.png").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of its 3 images \(000001.png"):
        open_images(str(tmp_path / "a"))


@pytest.mark.parametrize("change", [{"labels": "x"}, {"first": None}, {"finished": 1}, {"class_names": [1]}])
def test_damaged_settings_are_one_line(models, tmp_path, change):
    assert sample(models["classes"], tmp_path, "--images", 1) == 0
    (tmp_path / "settings.json").write_text(json.dumps(settings_of(tmp_path) | change))
    with pytest.raises(UserError, match=r"settings.json: .*; it is damaged"):
        open_images(str(tmp_path))


def test_pictures_for_people_are_no_images(models, tmp_path):
    """grid.png, sheet.png, mask.png, original.png, story.png as the commands write them; a photo that is
    called so is a photo."""
    made, edited, story = tmp_path / "made", tmp_path / "edited", tmp_path / "story"
    assert sample(models["both"], made, "--images", 2) == 0
    edit = ["edit", str(made / "000000.png"), "--model", str(models["both"]), "--region", "top"]
    assert cli.run([*edit, "--class", "dog", "--variants", "2", "--out", str(edited), *FAST]) == 0
    complete = [
        "complete",
        "red",
        str(made / "000001.png"),
        "--model",
        str(models["text"]),
        "--elements",
        "1",
    ]
    assert cli.run([*complete, "--out", str(story), "--max-tokens", "2", *FAST]) == 0
    assert {"original.png", "mask.png", "sheet.png"} < set(names(edited)) and "story.png" in names(story)
    assert [path.name for path in image_files([made, edited])] == [
        "000000.png", "000001.png", "edited-00.png", "edited-01.png",
    ]  # fmt: skip
    assert "story.png" in pictures_beside(story)
    assert len(open_images(str(made))) == 2 and len(open_images(str(edited))) == 2
    assert len(open_source(DataConfig(source="folder", path=str(made)))) == 2
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("grid.png", "mask.png"):
        Image.new("RGB", (8, 8)).save(photos / name)
    assert len(image_files([photos])) == 2 and len(open_images(str(photos))) == 2


def test_an_edit_replaces_an_earlier_one_and_no_samples(models, tmp_path, capsys):
    made, edited = tmp_path / "made", tmp_path / "edited"
    assert sample(models["classes"], made, "--images", 1) == 0
    edit = ["edit", str(made / "000000.png"), "--model", str(models["classes"]), "--region", "top"]
    edit += ["--class", "cat", *FAST]
    assert cli.run([*edit, "--variants", "3", "--out", str(edited)]) == 0
    assert cli.run([*edit, "--variants", "1", "--out", str(edited)]) == 0
    assert names(edited) == ["edited-00.png", "mask.png", "original.png", "settings.json", "sheet.png"]
    assert cli.run([*edit, "--out", str(made)]) == 2
    assert "holds a settings.json of `sample`; give another --out" in capsys.readouterr().err
    assert names(made) == ["000000.png", "grid.png", "settings.json"]


def test_another_numbered_file_is_no_image_of_the_set(models, tmp_path):
    (tmp_path / "1.png").write_bytes(b"mine")
    (tmp_path / "2").mkdir()
    assert sample(models["classes"], tmp_path, "--images", 3) == 0
    assert {"000000.png", "000001.png", "000002.png", "1.png", "2"} < set(names(tmp_path))


def test_both_stores_give_the_same_arrays(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)
    made = {}
    for name in ("png", "parts"):
        folder = tmp_path / name
        folder.mkdir()
        store = PngStore(folder, "x") if name == "png" else PartStore(folder)
        for batch in (range(3, 5), range(5, 10)):
            store.write(batch, images[batch.start - 3 : batch.stop - 3])
        assert store.has() == set(range(3, 10)) and (store.read(range(4, 8)) == images[1:5]).all()
        write_npz(folder / "samples.npz", store, list(runs_of(range(3, 10), 4)), [2] * 7)
        with np.load(folder / "samples.npz") as arrays:
            assert (arrays["arr_0"] == images).all() and arrays["arr_1"].tolist() == [2] * 7
        store.close()
        made[name] = names(folder)
    assert made["parts"] == ["samples.npz"] and len(made["png"]) == 8


def test_runs_have_no_gaps():
    assert list(runs_of([0, 1, 2, 5, 6, 7, 8], 3)) == [range(3), range(5, 8), range(8, 9)]
    assert list(runs_of([], 3)) == []


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00\x04\x00((((", None])
def test_a_damaged_part_of_a_stopped_run_is_one_line(tmp_path, content):
    parts = PartStore(tmp_path)
    parts.write(range(4), np.zeros((4, 2, 2, 3), np.uint8))
    (path,) = tmp_path.iterdir()
    if content is None:
        np.save(path, np.zeros((3, 2, 2, 3)))
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match="damaged: remove it"):
        parts.read(range(2))


def test_words_that_the_captions_hardly_had_are_named_once(tmp_path, capsys, recwarn):
    line = ["sample", "a purple heart", "a heart to the left of a star", "--out", str(tmp_path), *FAST]
    assert cli.run([*line, "--images", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("1 image in ")
    told = [str(w.message) for w in recwarn] + printed.err.splitlines()
    (note,) = [text for text in told if "spells them in pieces" in text]
    assert note.endswith("pieces: heart (3 pieces)")
