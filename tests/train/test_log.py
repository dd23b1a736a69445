"""The log of a run: valid JSON, whole records only, and no end of a run for its sake."""

import errno
import json
import math
import warnings
from pathlib import Path

import pytest
import torch

from causalfusion.config import RunConfig, TrainConfig
from causalfusion.errors import UserError
from causalfusion.machine.processes import World
from causalfusion.saved.folder import checkpoints_of
from causalfusion.train import log as log_module
from causalfusion.train.display import Display
from causalfusion.train.log import RunLog, read_log
from causalfusion.train.run import train
from causalfusion.train.trainer import StepResult


class NoBoard:
    def __init__(self, *_, **__):
        self.scalars = []

    def add_scalar(self, name, value, images_seen):
        self.scalars.append((name, value))

    def close(self):
        pass


@pytest.fixture
def run_log(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.utils.tensorboard.writer.SummaryWriter", NoBoard)
    return lambda images_seen: RunLog(tmp_path, images_seen)


def record(images_seen, **values):
    return {"kind": "train", "images_seen": images_seen, "loss": 0.5, **values}


def test_no_line_holds_what_is_no_json(run_log, tmp_path):
    log = run_log(0)
    log.write("train", 8, {"loss": math.nan, "grad_norm": math.inf, "parts": [1.0, -math.inf], "n": 3})
    log.close()
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    values = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert values == record(8, loss=None, grad_norm=None, parts=[1.0, None], n=3)
    assert [name for name, _ in log._loggers[0]._board.scalars] == ["train/parts/00", "train/n"]


def test_infinities_of_an_earlier_version_are_read_and_replaced(run_log, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "train", "images_seen": 8, "loss": 1.0, "grad_norm": Infinity}\n')
    run_log(8).close()
    assert path.read_text() == json.dumps(record(8, loss=1.0, grad_norm=None)) + "\n"


DAMAGED = [
    b"", b"{", b"\xff\xfe{}", b"null", b"[]", b"7", b"{}", b'{"kind": "train", "images_seen": "8"}',
    b'{"kind": 3, "images_seen": 8}', b'{"kind": "train", "images_seen": -8, "loss": 1}',
    b'{"kind": "train", "images_seen": 8, "loss": "low"}', b'{"kind": "train", "images_seen": 8}',
    b'{"kind": "train", "images_seen": true, "loss": 1}', b"[" * 100_000, b"\0" * 512,
    b'{"kind": "evaluation", "images_seen": 8, "mean": 1.0, "by_timestep": 3, "by_progress": {}}',
]  # fmt: skip


@pytest.mark.parametrize("bad", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_takes_nothing_with_it(run_log, tmp_path, bad):
    whole = [json.dumps(record(n)).encode() for n in (8, 16, 24, 32)]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join([*whole[:2], bad, *whole[2:], b""]))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run_log(24).close()
    assert [str(w.message) for w in said] == [f"{path}: 1 of 5 lines are damaged and left out"] * bool(bad)
    assert [r["images_seen"] for r in read_log(path)] == [8, 16, 24]


def test_a_last_line_cut_short_is_left_out_in_silence(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(record(8)) + "\n" + json.dumps(record(16))[:-9])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [r["images_seen"] for r in read_log(path)] == [8]


@pytest.mark.parametrize("what", ["log.jsonl", "tensorboard"])
def test_a_full_disk_ends_a_run_saved_and_named(tiny_run, monkeypatch, what):
    from torch.utils.tensorboard.writer import SummaryWriter

    config = tiny_run(train={"checkpoint_every": 0, "evaluate_every": 0})

    def fail_at(images_seen: object) -> None:
        if images_seen == 48:
            raise OSError(errno.ENOSPC, "No space left on device")

    if what == "log.jsonl":
        real = log_module._line
        monkeypatch.setattr(log_module, "_line", lambda v: (fail_at(v["images_seen"]), real(v))[1])
    else:
        monkeypatch.setattr(SummaryWriter, "add_scalar", lambda *arguments: fail_at(arguments[-1]))
    with pytest.raises(UserError, match=rf"{what} could not be written \(No space left.*saved at 64 images"):
        train(config, device="cpu", show_progress=False)
    (checkpoint,) = checkpoints_of(Path(config.out))
    assert int(checkpoint.name) == 64
    monkeypatch.undo()
    assert int(train(config, device="cpu", show_progress=False).name) == 160


def test_the_last_line_of_a_run_counts_a_whole_batch_and_no_time_below_zero(capsys):
    train = TrainConfig(images=100, batch_size=32)
    display = Display(RunConfig(train=train), World(0, 1, torch.device("cpu")), 0, show=True, peak=1e12)
    display.line.start -= 100
    display.after_step(StepResult(0.5, 1.0, 1e-3, False, [1], image_loss=0.5), 128, 1e9)
    display.show(128, force=True)
    line = capsys.readouterr().err
    assert line.startswith("128/128 images  loss 0.5000") and line.endswith("  0:00 left\n")


@pytest.mark.parametrize(("seconds", "said"), [(64.0, "0.5 images/s"), (0.1, "320 images/s")])
def test_the_speed_of_a_slow_run_is_shown_and_not_rounded_to_zero(monkeypatch, capsys, seconds, said):
    config = RunConfig(train=TrainConfig(images=64, batch_size=32))
    display = Display(config, World(0, 1, torch.device("cpu")), 0, show=True, peak=1e12)
    monkeypatch.setattr(display.clock, "read", lambda: (32 / seconds, 1e9, 0.0))
    display.after_step(StepResult(0.5, 1.0, 1e-3, False, [1], image_loss=0.5), 32, 1e9)
    display.show(32, force=True)
    assert f"  {said}  " in capsys.readouterr().err
