"""Files are whole or not there; a folder is one process's; JSON that is not as it should be is one line."""

import json
import multiprocessing
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass

import pytest

from causalfusion.config.serialize import read_record, toml_value
from causalfusion.errors import UserError
from causalfusion.files import (
    hash_of,
    holds_anything,
    in_use,
    map_array,
    temporary_name,
    write_whole,
)


@pytest.mark.parametrize("value", ["a 🟥 star\n", '\x7f\x1f"\\', "", 1e-05, -3, True, [1, 2], ["é"], []])
def test_values_are_read_back_from_toml(value):
    assert tomllib.loads(f"x = {toml_value(value)}") == {"x": value}


def test_a_failed_write_leaves_the_file_as_it_was_and_nothing_else(tmp_path):
    file = tmp_path / "a"
    write_whole(file, "first")

    def fail(stream):
        stream.write(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_whole(file, fail)
    assert file.read_text() == "first"
    assert os.listdir(tmp_path) == ["a"]


def _write_often(file, letter):
    for _ in range(40):
        write_whole(file, letter * 100_000)


def test_processes_that_write_one_file_never_mix(tmp_path):
    file = tmp_path / "a"
    writers = [multiprocessing.get_context("fork").Process(target=_write_often, args=(file, c)) for c in "xy"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if file.exists():
            text = file.read_text()
            assert len(text) == 100_000
            seen |= set(text)
            assert len(set(text)) == 1
    assert all(writer.exitcode == 0 for writer in writers)
    assert seen <= set("xy")
    assert os.listdir(tmp_path) == ["a"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    ).stdout.strip()
    left = temporary_name(tmp_path / "old")
    left = left.with_name(left.name.replace(f".{os.getpid()}.", f".{gone}."))
    left.mkdir()
    (left / "inside").write_text("half")
    busy, others = temporary_name(tmp_path / "new"), tmp_path / ".partial-download"
    busy.write_text("mine")
    others.write_text("not ours")
    assert holds_anything(tmp_path), "two of the three are somebody's"
    assert sorted(os.listdir(tmp_path)) == sorted([busy.name, others.name])


def test_a_folder_is_in_use_by_one_process_and_says_which(tmp_path):
    code = (
        "from causalfusion.files import in_use; from pathlib import Path\n"
        f"with in_use(Path({str(tmp_path)!r}), 'the run'): pass"
    )
    with in_use(tmp_path, "the run"):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert f"is in use by process {os.getpid()}" in other.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_folder_in_which_nothing_was_put_goes_again(tmp_path):
    with pytest.raises(UserError), in_use(tmp_path / "runs" / "mine", "the run"):
        raise UserError("refused")
    assert not list(tmp_path.iterdir())
    with in_use(tmp_path / "runs" / "mine", "the run"):
        (tmp_path / "runs" / "mine" / "log").write_text("")
    assert sorted(p.name for p in (tmp_path / "runs" / "mine").iterdir()) == [".lock", "log"]


def test_headers_of_arrays_that_are_none_are_value_errors(tmp_path):
    for header in (
        b"{'descr': '|u1', 'shape': (8, \n(((",
        b"{'descr': 3, 'shape': 'x'}",
        b"((((",
        b"\x00" * 20,
    ):
        length = len(header).to_bytes(2, "little")
        (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + length + header + bytes(100))
        with pytest.raises((ValueError, OSError)):
            map_array(tmp_path / "a.npy")


def test_hashes_take_names_that_are_not_unicode():
    assert hash_of([os.fsdecode(b"caf\xe9.png")]) != hash_of(["caf.png"])


@dataclass(frozen=True)
class Record:
    name: str
    count: int
    share: float
    sizes: list[tuple[int, int]]
    note: str | None


GOOD = {"name": "a", "count": 3, "share": 1, "sizes": [[1, 2]], "note": None}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "expected an object"),
        (json.dumps(GOOD | {"count": "3"}), "count is '3'"),
        (json.dumps(GOOD | {"count": True}), "count is True"),
        (json.dumps(GOOD | {"sizes": [[1, "2"]]}), "sizes is '2'"),
        (json.dumps(GOOD | {"sizes": [[1, 2, 3]]}), "expected 2 values"),
        (json.dumps(GOOD | {"other": 1}), "unknown setting other"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "note"}), "note is missing"),
        (json.dumps(GOOD | {"share": float("nan")}), "NaN is not a number"),
        (json.dumps(GOOD | {"share": 10**400}), "finite"),
    ],
)
def test_a_record_that_is_not_as_it_should_be_is_one_line(tmp_path, content, named):
    file = tmp_path / "r.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"^the record: ") as raised:
        read_record(Record, file, "the record")
    assert named in str(raised.value)
    assert str(file) in str(raised.value)


def test_a_record_comes_back_as_it_was(tmp_path):
    file = tmp_path / "r.json"
    file.write_text(json.dumps(GOOD))
    assert read_record(Record, file, "the record") == Record("a", 3, 1.0, [(1, 2)], None)


def test_a_lock_and_leftovers_are_nothing(tmp_path):
    assert not holds_anything(tmp_path / "missing")
    (tmp_path / ".lock").write_text("1")
    assert not holds_anything(tmp_path)
    (tmp_path / "photo.png").write_text("mine")
    assert holds_anything(tmp_path)


def test_the_error_of_a_read_only_folder_names_the_file(tmp_path, monkeypatch):
    """And not its temporary name, which cannot be removed there either."""

    def refuse(path, *_, **__):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(OSError, match="Read-only") as error:
        write_whole(tmp_path / "classes.jsonl", "x")
    assert error.value.filename == str(tmp_path / "classes.jsonl")
