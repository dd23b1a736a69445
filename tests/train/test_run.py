"""Whole runs: what they write, that they can be killed at any moment, that bad numbers stay out."""

import errno
import json
import os
import signal
import time
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import forked
from causalfusion.errors import UserError
from causalfusion.machine.processes import World
from causalfusion.saved.folder import checkpoints_of, latest_model, load_model, load_spec
from causalfusion.train import checkpoint as checkpoint_module
from causalfusion.train.feed import open_training_data
from causalfusion.train.log import read_log
from causalfusion.train.run import train
from causalfusion.train.step import TokenBatch
from causalfusion.train.trainer import Trainer

ALONE = World(0, 1, torch.device("cpu"))
TIMED = ("images_per_second", "flops_share", "waiting_share")


def state_of(folder: Path) -> dict:
    """Everything exact about a finished run: tensors by file, and the log without its timings."""
    tensors = {
        name: load_file(folder / name)
        for name in ("model.safetensors", "raw.safetensors", "state/optimizer.safetensors")
    }
    records = read_log(folder.parents[1] / "log.jsonl")
    log = [{k: v for k, v in record.items() if k not in TIMED} for record in records]
    progress = json.loads((folder / "state/progress.json").read_text())
    assert progress.pop("seconds") > 0
    return {"tensors": tensors, "log": log, "progress": progress}


def assert_same_run(first: Path, second: Path) -> None:
    a, b = state_of(first), state_of(second)
    assert a["log"] == b["log"] and a["progress"] == b["progress"]
    for name, tensors in a["tensors"].items():
        assert tensors.keys() == b["tensors"][name].keys()
        for key, value in tensors.items():
            assert value.equal(b["tensors"][name][key]), f"{name} {key} differs"


def test_a_run_learns_and_leaves_a_model(tiny_run):
    config = tiny_run(train={"images": 800, "checkpoint_every": 20, "evaluate_every": 50, "sample_every": 50},
                      sample={"diffusion_steps": [3]})  # fmt: skip
    folder = train(config, device="cpu", show_progress=False)
    records = read_log(Path(config.out) / "log.jsonl")
    losses = [r["loss"] for r in records if r["kind"] == "train"]
    assert len(losses) == 50 and sum(losses[-10:]) < 0.8 * sum(losses[:10])
    evaluation = [r for r in records if r["kind"] == "evaluation"]
    assert len(evaluation) == 1 and len(evaluation[0]["by_timestep"]) == 10
    assert len(evaluation[0]["by_progress"]) == 5
    model, spec = load_model(folder)
    assert spec.images_seen == 800 and spec.class_names == [str(i) for i in range(10)]
    assert model.config.num_classes == 10 and model.config.num_tokens == 16
    assert len(checkpoints_of(Path(config.out))) == config.train.keep_checkpoints
    assert (Path(config.out) / "samples" / "000000000800.png").is_file()
    assert list((Path(config.out) / "tensorboard").iterdir())


def test_resumed_run_is_the_same_run(tiny_run):
    """Stopped twice, at and between checkpoints, mid-epoch and with a partial log window."""
    options = {"log_every": 4, "grad_accumulation": 2}
    whole = train(tiny_run("whole", train=options), device="cpu", show_progress=False)
    for images in (64, 112, 160):
        part = train(tiny_run("part", train={**options, "images": images}), device="cpu", show_progress=False)
    # A run that ended early logged its last window early: compare tensors, and the step count.
    a, b = state_of(whole), state_of(part)
    assert a["progress"]["images_seen"] == b["progress"]["images_seen"] == 160
    for name, tensors in a["tensors"].items():
        for key, value in tensors.items():
            assert value.equal(b["tensors"][name][key]), f"{name} {key} differs"


@pytest.fixture
def start():
    """Start the run of a configuration in a process of its own, which does not outlive the test."""
    started = list[ForkServerProcess]()

    def start(config, *, own_session: bool = False) -> ForkServerProcess:
        started.append(forked.start(forked.train_until_stopped, config, own_session))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


def wait_for_images(config, images: int, process: ForkServerProcess) -> None:
    log = Path(config.out) / "log.jsonl"
    for _ in range(1200):
        if log.exists() and any(r["images_seen"] >= images for r in read_log(log)):
            return
        assert process.is_alive(), "the run ended before it could be killed"
        time.sleep(0.05)
    raise AssertionError("the run made no progress")


def test_killed_run_goes_on_as_the_same_run(tiny_run, start, one_thread):
    """SIGKILL at arbitrary moments; the same command ends in the same bits."""
    options = {"images": 1200, "checkpoint_every": 7, "log_every": 3, "evaluate_every": 31}
    whole = train(tiny_run("whole", train=options), device="cpu", show_progress=False)
    config = tiny_run("killed", train=options)
    for images in (200, 700):
        process = start(config)
        wait_for_images(config, images, process)
        process.kill()
        process.join()
    assert_same_run(whole, train(config, device="cpu", show_progress=False))


def test_signal_to_the_whole_group_saves(tiny_run, start):
    """Schedulers and torchrun signal the group: the data workers must not die under the run."""
    config = tiny_run(train={"images": 160_000, "checkpoint_every": 0}, data={"num_workers": 1})
    process = start(config, own_session=True)
    wait_for_images(config, 64, process)
    os.killpg(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 3
    assert len(checkpoints_of(Path(config.out))) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_has_an_exit_code_of_its_own(tiny_run, start, number):
    """SIGHUP: the terminal is gone. In a script, `train && sample` does not go on."""
    config = tiny_run(train={"images": 160_000, "checkpoint_every": 0})
    process = start(config)
    wait_for_images(config, 64, process)
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == 3
    (saved,) = checkpoints_of(Path(config.out))
    assert int(saved.name) >= 64
    assert not list(saved.parent.glob(".partial-*"))


def test_full_disk_leaves_the_previous_checkpoint_whole(tiny_run, monkeypatch):
    config = tiny_run(train={"images": 48})
    first = train(config, device="cpu", show_progress=False)
    real, written = checkpoint_module.save_file, []

    def full(tensors, path, **options):
        real(tensors, path, **options)
        written.append(path)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    longer = replace(config, train=replace(config.train, images=96))
    with pytest.raises(UserError, match=r"could not be written .*No space left.*000000000048, is whole"):
        train(longer, device="cpu", show_progress=False)
    assert written and checkpoints_of(Path(config.out)) == [first]
    assert not list(first.parent.glob(".partial-*"))
    load_model(first)
    monkeypatch.undo()
    assert int(train(longer, device="cpu", show_progress=False).name) == 96


def batches_of(config):
    data = open_training_data(config, ALONE)
    return data.config, data.batches(0)


def test_a_step_that_is_not_finite_touches_nothing(tiny_run):
    config, batches = batches_of(tiny_run())
    trainer = Trainer(config, ALONE)
    trainer.step(next(batches))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    average = {k: v.clone() for k, v in trainer.ema.state_dict().items()}
    batch = next(batches)
    batch.tokens[3, 0, 0] = float("nan")
    result = trainer.step(batch)
    assert result.skipped and trainer.progress.skipped_steps == 1 and trainer.progress.images_seen == 32
    assert all(before[k].equal(v) for k, v in trainer.model.state_dict().items())
    assert all(average[k].equal(v) for k, v in trainer.ema.state_dict().items())
    assert not trainer.step(next(batches)).skipped and trainer.progress.skipped_in_a_row == 0


def test_several_bad_steps_in_a_row_stop_with_the_facts(tiny_run):
    config, batches = batches_of(tiny_run(train={"max_skipped_steps": 3}))
    trainer = Trainer(config, ALONE)
    with pytest.raises(UserError, match=r"3 steps in a row were not finite.*input samples \[35\] not finite"):
        for _ in range(3):
            batch = next(batches)
            batch.tokens[3] = float("inf")
            trainer.step(TokenBatch(batch.tokens, batch.labels, batch.sample_indices))


def test_accumulation_and_activation_checkpointing_change_nothing(tiny_run):
    """To rounding: micro-batches and recomputed blocks give the gradients of the whole batch."""
    results = []
    for options in ({}, {"grad_accumulation": 4}, {"activation_checkpointing": "full"}):
        config, batches = batches_of(tiny_run(train=options))
        trainer = Trainer(config, ALONE)
        torch.nn.init.normal_(trainer.model.image_out.weight, generator=torch.Generator().manual_seed(0))
        result = trainer.step(next(batches))
        results.append((result.loss, result.grad_norm))
    for loss, norm in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6) and norm == pytest.approx(
            results[0][1], rel=1e-5
        )


class Names(TorchDispatchMode):
    """The operations that run, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_train_step_reads_nothing_back_between_its_passes_and_the_optimizer(tiny_run):
    """Reading a number waits for a GPU, which has nothing to do until the next operation comes."""
    config, batches = batches_of(tiny_run(train={"grad_accumulation": 2, "attention": "dense"}))
    trainer, batch = Trainer(config, ALONE), next(batches)
    with Names() as names:
        trainer.step(batch)
    first = next(k for k, name in enumerate(names.seen) if "backward" in name)
    assert any("_local_scalar_dense" in name for name in names.seen[:first])  # the watch sees some
    assert not any("_local_scalar_dense" in name for name in names.seen[first:])


def test_wrong_sample_settings_are_refused_before_training(tiny_run):
    config = tiny_run(train={"sample_every": 50}, sample={"num_ar_steps": 99})
    with pytest.raises(UserError, match="num_ar_steps is 99; expected at most 16"):
        train(config, device="cpu", show_progress=False)
    assert not Path(config.out).exists()
    with pytest.raises(UserError, match=r"model.num_classes is 77, the data make it 10"):
        train(tiny_run(model={"num_classes": 77}), device="cpu", show_progress=False)


def test_measured_scale_is_measured_once(tiny_run):
    options = {"codec": {"normalization": "measured"}}
    first = load_spec(train(tiny_run(train={"images": 48}, **options), device="cpu", show_progress=False))
    assert first.codec.normalization == "given" and first.codec.scale != 1 and first.codec.shift != 0
    second = load_spec(train(tiny_run(train={"images": 96}, **options), device="cpu", show_progress=False))
    assert second.codec == first.codec and second.images_seen == 96


def test_a_run_goes_on_only_with_its_own_settings(tiny_run):
    train(tiny_run(train={"images": 48}), device="cpu", show_progress=False)
    with pytest.raises(UserError, match=r"begun with train.lr = 0.001, now it is 0.01"):
        train(tiny_run(train={"lr": 0.01}), device="cpu", show_progress=False)


def test_damaged_checkpoints_are_one_line(tiny_run):
    folder = train(tiny_run(train={"images": 48}), device="cpu", show_progress=False)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"model.safetensors cannot be read"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        load_model(folder)
    (folder / "config.json").write_text('{"format": "causalfusion-1", "model": {"depht": 3}}')
    with pytest.raises(UserError, match=r"unknown setting model\.depht"):
        load_model(folder)
    with pytest.raises(UserError, match="holds no model"):
        latest_model(folder.parent / "nothing")


def test_weights_load_strictly(tiny_run):
    folder = train(tiny_run(train={"images": 48}), device="cpu", show_progress=False)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["depth"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model\.depth 3, its weights have 2 blocks"):
        load_model(folder)


def test_a_run_says_what_comes_next_and_that_its_warmup_is_too_long(tiny_run, capsys):
    config = tiny_run(train={"images": 32, "warmup_images": 32, "evaluate_every": 0})
    train(config, device="cpu")
    said = capsys.readouterr().out
    assert "rises over 32 images (train.warmup_images) and the run has 32: it never gets there" in said
    assert said.rstrip().endswith(f"{config.out}: causalfusion sample --model {config.out}")
    train(replace(config, train=replace(config.train, images=48)), device="cpu")
    assert "train.warmup_images" not in capsys.readouterr().out
