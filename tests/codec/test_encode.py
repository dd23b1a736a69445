"""`causalfusion encode` on the digits: what it prints, its workers, and which runs may use its cache."""

from __future__ import annotations

import json
import pickle
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from causalfusion import cli
from causalfusion.codec.cache import check_cache, open_cache
from causalfusion.codec.encode import encode_to_cache, write_cache
from causalfusion.codec.for_source import open_codec_for
from causalfusion.config import CodecConfig, DataConfig, RunConfig
from causalfusion.config.recipes import load_config
from causalfusion.data import open_source
from causalfusion.data.digits import Digits
from causalfusion.data.loader import load_indices
from causalfusion.errors import UserError

DIGITS = RunConfig(data=DataConfig(source="digits"))


def test_the_source_and_the_size_of_the_images_are_compared(tmp_path: Path) -> None:
    config = replace(DIGITS, data=replace(DIGITS.data, image_size=8))
    cache = encode_to_cache(config, tmp_path / "digits", device="cpu")
    check_cache(cache, config.codec, config.data)

    def refused(data: DataConfig, message: str) -> None:
        with pytest.raises(UserError) as caught:
            check_cache(cache, config.codec, data)
        assert message in str(caught.value) and "\n" not in str(caught.value)

    refused(
        replace(config.data, source="shapes"),
        "data.source = digits, the run has shapes; give --data.source=digits, or encode again",
    )
    refused(
        replace(config.data, image_size=0),
        "data.image_size = 8, the run has 0; give --data.image-size=8, or encode again",
    )
    cache.manifest["source"] = "of another release"
    refused(config.data, "data.source (hash of the data) = of another release, the run has")


def test_captions_of_other_words_are_another_cache(tmp_path: Path) -> None:
    """A cache that is there, or half there, is none with the captions of other settings."""

    def encode(out: str, words: str = "", captions: str = "class_names") -> list[str]:
        (tmp_path / "words.txt").write_text("".join(f"{n} {words}{n}\n" for n in range(10)))
        told = str(tmp_path / "words.txt") if words else ""
        data = replace(DIGITS.data, captions=captions, class_words=told)
        cache = encode_to_cache(replace(DIGITS, data=data), tmp_path / out, device="cpu")
        return [text for texts in cache.captions(np.arange(3)) for text in texts]

    assert encode("cache", "digit ") == encode("cache", "digit ") == ["digit 0", "digit 1", "digit 2"]
    for words, captions, told in (
        ("number ", "class_names", "hash of the words"),
        ("", "class_names", "hash of the words"),
        ("", "own", "data.captions = class_names, the run has own"),
    ):
        with pytest.raises(UserError, match=told):
            encode("cache", words, captions)
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    del manifest["words"]
    (tmp_path / "cache" / "manifest.json").write_text(json.dumps(manifest))
    assert encode("cache", "number ") == ["digit 0", "digit 1", "digit 2"], "an earlier version's"


@pytest.mark.parametrize("first", ["own", "class_names"])
def test_half_a_cache_with_other_captions_is_left_as_it_is(tmp_path, monkeypatch, first) -> None:
    def encode(captions: str) -> None:
        data = replace(DIGITS.data, captions=captions)
        write_cache(
            tmp_path / "cache", source := open_source(data), open_codec_for(source, data, CodecConfig()),
            replace(DIGITS, data=data), dtype="float32", shard_size=1000,
        )  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr(
            "causalfusion.codec.encode._finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            encode(first)
    with pytest.raises(UserError, match="holds shards of an unfinished cache made with data"):
        encode("own" if first == "class_names" else "class_names")
    encode(first)


def test_a_cache_travels_as_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_to_cache(DIGITS, tmp_path / "cache", device="cpu")
    monkeypatch.chdir(tmp_path)
    cache = open_cache("cache")
    sent = pickle.dumps(cache)
    assert len(sent) < 1000 < cache.labels.nbytes
    monkeypatch.chdir("/")
    there, chosen = pickle.loads(sent), np.arange(20)
    assert torch.equal(there.read(chosen, None, None), cache.read(chosen, None, None))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_of_every_start_method(tmp_path: Path, method: str) -> None:
    """A worker's arguments must survive being sent to it."""
    config = replace(DIGITS, data=replace(DIGITS.data, num_workers=1))
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method(method, force=True)
    try:
        cache = encode_to_cache(config, tmp_path, device="cpu")
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    chosen = np.arange(len(cache))
    images = load_indices(Digits(), chosen, DIGITS.data).images
    assert torch.equal(cache.read(chosen, None, None), images)


def test_the_training_line_repeats_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.Generator(np.random.Philox(1)).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "few.npz", images=images)
    out, own = tmp_path / "my latents", tmp_path / "own.toml"
    own.write_text('base = ["digits"]\n[train]\nlr = 0.5\n[sample]\nsizes = [1, 3]\n')
    options = [
        f"--config={own}",
        "--data.flip",
        "--data.source",
        "npz",
        "--data.path",
        str(tmp_path / "few.npz"),
    ]
    options += ["--data.image-size=4"]
    assert cli.run(["encode", *options, "--out", str(out), "--device=cpu"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "train on it with" in line)
    command, *given = shlex.split(line.partition(": ")[2])
    seen: list[RunConfig] = []
    monkeypatch.setattr("causalfusion.train.run.train", lambda config, **_: seen.append(config))
    assert command == "causalfusion" and cli.run(given) == 0
    digits = load_config("digits")
    assert seen == [
        replace(
            digits,
            data=replace(digits.data, source="npz", flip=True, image_size=4, cache=str(out)),
            train=replace(digits.train, lr=0.5),
            sample=replace(digits.sample, sizes=[1, 3]),
        )
    ]
    check_cache(open_cache(str(out)), seen[0].codec, seen[0].data)


@pytest.mark.parametrize("in_recipe", [True, False])
def test_the_training_line_leaves_the_captions_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], in_recipe: bool
) -> None:
    words, own, out = tmp_path / "words.txt", tmp_path / "own.toml", tmp_path / "latents"
    words.write_text("".join(f"{number} the digit {number}\n" for number in range(10)))
    told = {"captions": "class_names", "class_words": str(words)}
    own.write_text("[data]\n" + "".join(f'{name} = "{value}"\n' for name, value in told.items()))
    given = [f"--config={own}"] if in_recipe else [f"--data.captions={told['captions']}"]
    given += [] if in_recipe else [f"--data.class-words={words}"]
    line = ["encode", "--data.source=digits", *given, "--out", str(out), "--device=cpu"]
    assert cli.run(line) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "train on it with" in line)
    seen: list[RunConfig] = []
    monkeypatch.setattr("causalfusion.train.run.train", lambda config, **_: seen.append(config))
    assert cli.run(shlex.split(line.partition(": ")[2])[1:]) == 0
    (config,) = seen
    assert (config.data.cache, config.data.captions, config.data.class_words) == (str(out), "own", "")
    assert open_cache(str(out)).captions(np.arange(2)) == [("the digit 0",), ("the digit 1",)]


def test_files_that_no_encode_wrote_are_never_replaced(tmp_path, capsys) -> None:
    own = tmp_path / "labels.npy"
    own.write_text("years of work")
    assert cli.run(["encode", "--data.source=digits", "--out", str(tmp_path), "--device=cpu"]) == 2
    said = f"{tmp_path} holds other things than a cache (labels.npy); give another --out"
    assert capsys.readouterr().err == f"causalfusion: {said}\n"
    assert own.read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["labels.npy"]


@pytest.mark.parametrize("size", ["0x16", "0X0", "16x0", "999999999", "-3"])
def test_a_size_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    """0x16 is no number in hexadecimal digits, 22."""
    line = ["encode", "--data.source", "digits", f"--data.image-size={size}", "--out", str(tmp_path / "out")]
    assert cli.run(line) == 2
    assert f"data.image_size is '{size}'; expected 0 to 65535 pixels, WIDTHx" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
