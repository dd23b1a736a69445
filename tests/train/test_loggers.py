"""Where a run's records go besides its log: read back from TensorBoard's, W&B's and trackio's own files."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from causalfusion.errors import UserError
from causalfusion.train import loggers
from causalfusion.train.log import RunLog, read_log
from causalfusion.train.run import train

SITTINGS = {"images": 96, "batch_size": 16, "evaluate_every": 3, "sample_every": 3, "checkpoint_every": 3}
"""Two sittings of three steps each, with a checkpoint at 48 images."""


@pytest.fixture
def small_run(tiny_run):

    def sit(images: int, *log_to: str) -> Path:
        settings = {**SITTINGS, "images": images, "log_to": list(log_to)}
        config = tiny_run(train=settings, sample={"diffusion_steps": [2]})
        train(config, device="cpu", show_progress=False)
        return Path(config.out)

    return sit


@pytest.mark.usefixtures("real_charts")
def test_tensorboard_has_all_and_a_resumed_run_is_one(small_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for images in (48, 96):
        run = small_run(images, "tensorboard")
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    board.Reload()
    records = [r for r in read_log(run / "log.jsonl") if r["kind"] == "train"]
    found = [(e.step, pytest.approx(e.value, rel=1e-6)) for e in board.Scalars("train/loss")]
    assert found == [(r["images_seen"], r["loss"]) for r in records] and len(found) == 6
    assert {"train/images_per_second", "evaluation/mean"} <= set(board.Tags()["scalars"])
    for name in ("samples", "loss_map"):
        assert [e.step for e in board.Images(name)] == [48, 96], name
        assert board.Images(name)[0].encoded_image_string.startswith(b"\x89PNG")
    assert "train.batch_size | 16" in str(board.Tensors("settings/text_summary")[0].tensor_proto)
    assert (run / "loss_map.png").is_file()


def test_nothing_but_the_log_is_written_where_nothing_is_asked_for(small_run):
    run = small_run(48)
    assert len([r for r in read_log(run / "log.jsonl") if r["kind"] == "train"]) == 3
    assert not (run / "tensorboard").exists() and not (run / "loss_map.png").exists()


def test_a_missing_tool_is_told_before_training_begins(small_run, monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb, which is not installed; .*causalfusion\[logs\]"):
        small_run(48, "wandb")
    assert not list(tmp_path.glob("run/*"))


def test_a_tool_that_fails_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Failing:
        where = "wandb"
        seen = 0

        def scalars(self, values, images_seen):
            self.seen += 1
            raise RuntimeError("no\nspace in the cloud")

        picture = scalars

        def close(self):
            raise AssertionError("it was left out")

    failing = Failing()
    monkeypatch.setattr("causalfusion.train.log.open_loggers", lambda *_: [failing])
    log = RunLog(tmp_path, 0, ["wandb"])
    with pytest.warns(UserWarning, match=r"wandb takes no more records \(no space in the cloud\)"):
        log.write("train", 8, {"loss": 1.0})
    log.write("train", 16, {"loss": 1.0})
    log.close()
    assert failing.seen == 1 and not log.failure and len(read_log(tmp_path / "log.jsonl")) == 2


def test_the_id_of_a_run_stays(tmp_path: Path):
    first = loggers.id_of(tmp_path, "wandb")
    assert loggers.id_of(tmp_path, "trackio") != first
    assert loggers.id_of(tmp_path, "wandb") == first
    (tmp_path / loggers.IDS_FILE).write_text("[damaged")
    assert loggers.id_of(tmp_path, "wandb") == loggers.id_of(tmp_path, "wandb") != first


# On machines that have them


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file: 7 bytes, then LevelDB's log format (blocks of 32 KiB; checksum, length,
    and type: whole, first, middle, last)."""
    content, place, parts = file.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def test_wandb_offline(small_run, monkeypatch: pytest.MonkeyPatch, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed (the extra `logs`)")
    from wandb.proto import wandb_internal_pb2

    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    for images in (48, 96):
        run = small_run(images, "wandb")
    ids, seen, keys, settings = set(), [], set(), set()
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    for file in files:
        for data in wandb_records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                settings |= {item.key for item in record.run.config.update}
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if "train/loss" in items:
                seen.append(int(items["images_seen"]))
            keys |= {key.removesuffix("/_type") for key in items}
    assert ids == {json.loads((run / loggers.IDS_FILE).read_text())["wandb"]}
    assert seen == [16, 32, 48, 64, 80, 96]
    assert {"train/loss", "evaluation/mean", "samples", "loss_map", "train/images_per_second"} <= keys
    assert {"train.batch_size", "model.depth"} <= settings
    assert list(run.glob("wandb/offline-run-*/files/media/images/samples_*.png"))


def test_trackio(small_run, monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads when it is imported
    pytest.importorskip("trackio", reason="trackio is not installed (the extra `trackio`)")
    for images in (48, 96):
        run = small_run(images, "trackio")
    name = f"run-{json.loads((run / loggers.IDS_FILE).read_text())['trackio']}"
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_runs("causalfusion") == [name]
    records = SQLiteStorage.get_logs("causalfusion", name)
    assert [r["step"] for r in records if "train/loss" in r] == [16, 32, 48, 64, 80, 96]
    assert {"samples", "loss_map", "evaluation/mean"} <= {key for record in records for key in record}
