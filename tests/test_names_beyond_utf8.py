"""Files and classes whose names are not UTF-8, in `encode` and in `evaluate` (row 15 of ../shared/cases)."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causalfusion.cli import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file systems refuse such names")


def folder(root: Path, names: list[bytes]) -> Path:
    """Images of rising brightness, under these names."""
    for number, name in enumerate(names):
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as stream:
            Image.new("RGB", (8, 8), (30 * number, 0, 0)).save(stream, "PNG")
    return root


PLAIN = [b"ant/a.png", b"ant/b.png", b"bee/a.png", b"bee/b.png"]
ODD = {
    "file": [b"ant/a.png", b"ant/caf\xe9.png", b"bee/a.png", b"bee/\xff.png"],
    "class": [b"ant/a.png", b"ant/b.png", b"caf\xe9/a.png", b"caf\xe9/b.png"],
}


@pytest.mark.parametrize("odd", ODD)
def test_encode_reads_them(odd, tmp_path, capsys):
    caches = []
    for name, names in (("plain", PLAIN), ("odd", ODD[odd])):
        out = tmp_path / f"{name}-cache"
        images = folder(tmp_path / name, names)
        assert run(["encode", str(images), "--out", str(out), "--codec.patch-size", "4"]) == 0
        caches.append(out)
    said = capsys.readouterr()
    assert said.out.count("cache: 4 images") == 2 and "Traceback" not in said.err
    assert said.out.replace("\n", "").isprintable()
    for array in ("00000.npy", "labels.npy"):  # contents.npy has hashes of the images with their classes
        found, expected = (np.load(cache / array) for cache in reversed(caches))
        np.testing.assert_array_equal(found, expected)
    manifest = json.loads((caches[1] / "manifest.json").read_bytes())
    classes = manifest["class_names"]
    assert classes[0] == "ant" and len(classes) == 2


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("odd", ODD)
def test_evaluate_reads_them_as_samples_and_as_reference(odd, workers, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "features"))
    images = str(folder(tmp_path / "odd", ODD[odd]))
    options = ["--features", "pixels:4", "--num-workers", workers, "--out", str(tmp_path / "card")]
    assert run(["evaluate", "--samples", images, "--reference", images, *options]) == 0
    card = json.loads((tmp_path / "card" / "card.json").read_bytes())
    found = {name: figure["value"] for name, figure in card["figures"].items()}
    assert found["frechet_pixels4_4"] == pytest.approx(0, abs=1e-6) and found["precision_pixels4_4"] == 1
    assert "4 images of" in capsys.readouterr().out


def test_those_that_are_damaged_are_named_in_one_line(tmp_path, capsys):
    names = [b"ant/caf\xe9.png", b"ant/\xff.png"]
    images = folder(tmp_path / "odd", names)
    for name in names:
        with open(os.fsencode(images) + b"/" + name, "wb") as stream:
            stream.write(b"no picture")
    reference = str(folder(tmp_path / "plain", PLAIN))
    options = ["--features", "pixels:4", "--out", str(tmp_path / "card")]
    assert run(["evaluate", "--samples", str(images), "--reference", reference, *options]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("causalfusion: ")]
    assert r"can be read: ant/caf\xe9.png: it is damaged" in line and line.isprintable()
