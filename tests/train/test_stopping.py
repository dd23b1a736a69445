"""A run that is stopped says so, and one that is in use is left alone."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from causalfusion import cli
from causalfusion.config import RunConfig, TrainConfig
from causalfusion.errors import TrainingStopped, UserError
from causalfusion.files import in_use
from causalfusion.machine.processes import World
from causalfusion.saved.folder import checkpoints_of
from causalfusion.train.checkpoint import Progress
from causalfusion.train.run import TrainingLoop, _is_finished, train
from causalfusion.train.stopping import StopRequest, run_in_use
from causalfusion.train.trainer import Trainer

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def signalled(monkeypatch):
    """A signal arrives during the third train step."""
    real = Trainer.step

    def step(trainer, batch):
        if trainer.progress.train_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(trainer, batch)

    monkeypatch.setattr(Trainer, "step", step)


def test_a_stopped_training_is_saved_and_raised(tiny_run, signalled):
    config = tiny_run()
    with pytest.raises(TrainingStopped, match="stopped at 48 of 160 images") as stopped:
        train(config, device="cpu", show_progress=False)
    assert [p.name for p in checkpoints_of(Path(config.out))] == ["000000000048"]
    assert str(pickle.loads(pickle.dumps(stopped.value))) == str(stopped.value)  # from a study's workers


def test_a_signal_during_the_last_step_is_not_a_stop(tiny_run, signalled):
    folder = train(tiny_run(train={"images": 48}), device="cpu", show_progress=False)
    assert folder.name == "000000000048"


def test_the_command_has_an_exit_code_for_it(tmp_path, signalled, capsys):
    settings = ["--codec.patch-size=4", "--model.hidden-size=32", "--model.depth=1", "--model.num-heads=2",
                "--train.batch-size=8", "--train.evaluate-every=0", "--device=cpu"]  # fmt: skip
    assert cli.run(["train", "--config=digits", *settings, f"--out={tmp_path / 'run'}"]) == 3
    assert capsys.readouterr().err.endswith("the same command goes on from there\n")


TALK = """
import signal, sys
from causalfusion.machine.progress import ProgressLine, tell
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
line = ProgressLine(9, 0, seconds_between=0.0)
for number in range(2000):
    tell("a line that nobody reads " * 9)
    line.show(number, "nor this")
sys.exit(3)
"""


def test_work_goes_on_when_nobody_reads_it():
    """The terminal is gone, or `| head` has seen enough."""
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", TALK], stdout=write, stderr=write)
    os.close(write)
    os.read(read, 10)
    os.close(read)
    assert process.wait(timeout=30) == 3


def test_ignored_signals_stay_ignored():
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest()
        with stop.on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_trains_without_signals():
    def work():
        with StopRequest().on_signals():
            done.append(True)

    done = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_a_run_in_use_is_refused_and_untouched(tiny_run):
    config = tiny_run()
    log = Path(config.out) / "log.jsonl"
    with in_use(Path(config.out), "the run"):
        log.write_text("being written")
        with pytest.raises(UserError, match=rf"the run .* is in use by process {os.getpid()}; wait for it"):
            train(config, device="cpu", show_progress=False)
    assert log.read_text() == "being written"


def test_a_folder_made_for_the_lock_goes_with_it(tmp_path):
    with run_in_use(tmp_path / "run", ALONE):
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()
    with run_in_use(tmp_path / "run", ALONE):
        (tmp_path / "run" / "log.jsonl").touch()
    assert (tmp_path / "run" / "log.jsonl").is_file()


@pytest.mark.parametrize(
    ("length", "out_of_time", "said"),
    [
        ({"images": 96}, False, "a larger train.images goes on (now 96)"),
        ({"images": 96, "epochs": 2.0}, False, "a larger train.epochs goes on (now 2.0)"),
        ({"images": 500, "minutes": 1.0}, True, "a larger train.minutes goes on (now 1.0)"),
    ],
)
def test_a_finished_run_names_the_length_that_counts(length, out_of_time, said):
    """More images would change nothing, where epochs are given."""
    trainer = SimpleNamespace(progress=Progress(images_seen=96, train_step=12, seconds=60.0))
    run: Any = SimpleNamespace(trainer=trainer, config=RunConfig(train=TrainConfig(batch_size=8, **length)))
    assert said in _is_finished(run, Path("runs/x"), out_of_time=out_of_time)


@pytest.mark.parametrize(("trained", "drawn"), [(1.0, []), (60.0, ["000000000064.png"])])
def test_a_long_run_ends_with_samples_however_short_its_last_sitting_is(
    monkeypatch, tiny_run, trained, drawn
):
    """What counts is the training of all sittings, not how long ago this one began."""
    monkeypatch.setattr(TrainingLoop, "_add_time", lambda loop, seconds: None)  # on a slow machine, too
    sample = {"diffusion_steps": [1]}
    first = train(tiny_run(train={"images": 48}, sample=sample), device="cpu", show_progress=False)
    file = first / "state" / "progress.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": trained}))
    config = tiny_run(train={"images": 64}, sample=sample)
    train(config, device="cpu", show_progress=False)
    assert [file.name for file in Path(config.out).glob("samples/*")] == drawn
