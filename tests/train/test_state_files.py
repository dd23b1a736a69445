"""A training state that is damaged, or not that of this run, is refused in one line that names the file."""

import json
import math
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from causalfusion.config import RunConfig, SampleConfig, TrainConfig
from causalfusion.config.recipes import load_config
from causalfusion.errors import UserError
from causalfusion.machine.processes import World
from causalfusion.saved.folder import load_model
from causalfusion.train.checkpoint import Progress, read_progress
from causalfusion.train.run import train
from causalfusion.train.share_file import ShareReader
from causalfusion.train.trainer import Trainer

ALONE = World(0, 1, torch.device("cpu"))
KEY = "blocks.0.attn.qkv.weight"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[RunConfig, Path]:
    """A run of two steps, and its checkpoint."""
    config = load_config(
        "digits", out=str(tmp_path_factory.mktemp("trained") / "run"), codec={"patch_size": 4},
        train={"images": 16, "batch_size": 8, "evaluate_every": 0, "checkpoint_every": 0, "sample_every": 0},
        model={"hidden_size": 32, "depth": 1, "num_heads": 2},
    )  # fmt: skip
    return config, train(config, device="cpu", show_progress=False)


@pytest.fixture
def restored(trained, tmp_path):
    """(a copy of the checkpoint, the function that restores a run from it)."""
    _, checkpoint = trained
    copy = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, copy)

    def restore() -> Progress:
        from causalfusion.saved.folder import load_spec

        spec = load_spec(copy)
        config = RunConfig(model=spec.model, codec=spec.codec, diffusion=spec.diffusion)
        trainer = Trainer(config, ALONE)
        trainer.restore(copy)
        return trainer.progress

    return copy, restore


def refused(restore, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        restore()
    text = str(caught.value)
    assert "\n" not in text and "delete the checkpoint" in text
    assert all(word in text for word in words), text


def test_a_whole_state_is_restored(restored):
    _, restore = restored
    assert replace(restore(), seconds=0.0) == Progress(images_seen=16, train_step=2)


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("images_seen", -8, "images_seen is -8"),
        ("images_seen", [16], "images_seen is [16]"),
        ("images_seen", 24, "images_seen is 24, not 000000000016"),
        ("train_step", "two", "train_step is 'two'"),
        ("train_step", True, "train_step is True"),
        ("skipped_steps", 3, "skipped_steps is 3"),
        ("pending_losses", [0.5], "pending_losses is 0.5"),
        ("pending_losses", [[0.5, "x"]], "pending_losses is 'x'"),
        ("pending_losses", [[0.5, math.nan]], "NaN is not a number"),
        ("unheard", 1, "unheard"),
        ("train_step", None, "train_step is None"),
    ],
)
def test_progress_of_other_types_is_refused(restored, name, value, word):
    checkpoint, restore = restored
    path = checkpoint / "state" / "progress.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    refused(restore, str(path), word)


@pytest.mark.parametrize("content", ["", "[]", "{}", "7", '{"images_seen": 16', "[" * 100_000])
def test_a_progress_file_that_is_none_is_refused(restored, content):
    checkpoint, _ = restored
    path = checkpoint / "state" / "progress.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"progress\.json") as caught:
        read_progress(checkpoint)
    assert "\n" not in str(caught.value)


def change(path: Path, **tensors: torch.Tensor | None) -> None:
    values = load_file(path)
    for name, value in tensors.items():
        if value is None:
            del values[name]
        else:
            values[name] = value
    save_file(values, path)


OPTIMIZER = "state/optimizer.safetensors"


@pytest.mark.parametrize("file", ["raw.safetensors", "model.safetensors", OPTIMIZER])
def test_tensors_that_are_not_the_run_s_are_refused(restored, file):
    checkpoint, restore = restored
    path, key = checkpoint / file, KEY + ("/exp_avg" if file == OPTIMIZER else "")
    whole = load_file(path)
    for wrong, words in (
        (whole[key].half(), "is float16 (96, 32), expected float32 (96, 32)"),
        (whole[key][:5].contiguous(), "is float32 (5, 32), expected float32 (96, 32)"),
        (torch.full_like(whole[key], math.nan), "not finite"),
        (torch.full_like(whole[key], math.inf), "not finite"),
        (None, f"lacks tensor {key}"),
    ):
        change(path, **{key: wrong})
        refused(restore, str(path), key, words)
        save_file(whole, path)
    change(path, unheard=torch.zeros(1))
    refused(restore, str(path), "has the unexpected tensor unheard")
    path.write_bytes(path.read_bytes()[:1000])
    refused(restore, path.name)


@pytest.mark.parametrize("earlier", [False, True])
def test_an_empty_optimizer_file_does_not_reset_it(restored, earlier):
    """Neither does one that lacks a parameter; that of an earlier version neither."""
    checkpoint, restore = restored
    path = checkpoint / OPTIMIZER
    if earlier:
        (checkpoint / "state" / "data.json").unlink()
        assert restore().train_step == 2
    whole = load_file(path)
    save_file({}, path)
    refused(restore, str(path), "lacks tensor")
    save_file({key: value for key, value in whole.items() if not key.startswith(KEY)}, path)
    refused(restore, str(path), f"lacks tensor {KEY}/exp_avg and 2 more")
    save_file({**whole, f"{KEY}/exp_avg_sq": -whole[f"{KEY}/exp_avg_sq"]}, path)
    refused(restore, str(path), f"{KEY}/exp_avg_sq", "not possible")


def test_an_earlier_version_s_first_checkpoint_may_lack_the_moments(restored):
    """It wrote none of parameters that no step had touched; all steps of this run were skipped."""
    checkpoint, restore = restored
    (checkpoint / "state" / "data.json").unlink()
    path = checkpoint / "state" / "progress.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "skipped_steps": 2, "skipped_in_a_row": 2}))
    save_file({}, checkpoint / OPTIMIZER)
    assert restore().skipped_steps == 2


def test_a_model_that_is_not_finite_is_not_sampled(restored):
    checkpoint, _ = restored
    change(checkpoint / "model.safetensors", **{KEY: torch.full((96, 32), math.nan)})
    with pytest.raises(UserError, match=rf"model\.safetensors: {KEY} holds values that are not finite"):
        load_model(checkpoint)


@pytest.mark.parametrize("content", ["", "[]", '{"class_names": "abc"}', '{"images": "many"}'])
@pytest.mark.parametrize("name", ["run.json", "data.json"])
def test_other_files_of_the_state_are_refused_too(trained, name, content):
    config, checkpoint = trained
    path = checkpoint / "state" / name
    whole = path.read_text()
    path.write_text(content)
    try:
        if not (name == "run.json" and content.startswith("{")):
            refused(lambda: train(config, device="cpu", show_progress=False), name)
    finally:
        path.write_text(whole)


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e30, 2.0, 0.0, -1e-4])
def test_learning_rates_that_destroy_a_model_are_refused(value):
    with pytest.raises(UserError, match=r"train\.lr is .*expected a"):
        TrainConfig(lr=value)


@pytest.mark.parametrize("name", ["eps", "weight_decay", "max_grad_norm", "ema_decay", "beta1"])
def test_no_setting_is_infinite(name):
    with pytest.raises(UserError, match=rf"train\.{name} is inf; expected a finite number"):
        TrainConfig(**{name: math.inf})
    with pytest.raises(UserError, match=r"sample\.guidance_scale is nan"):
        SampleConfig(guidance_scale=math.nan)


@pytest.fixture
def exploding(tmp_path, monkeypatch):
    """A run that saves after each step, its weights infinite from the third on."""
    real = torch.optim.AdamW.step

    def step(optimizer, *args):
        real(optimizer, *args)
        calls.append(1)
        if len(calls) == 3:
            next(p for group in optimizer.param_groups for p in group["params"]).data.fill_(math.inf)

    calls: list[int] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", step)

    def make(**changes) -> RunConfig:
        values = {"images": 400, "batch_size": 8, "evaluate_every": 0, "sample_every": 0, **changes}
        return load_config(
            "digits", out=str(tmp_path / "exploding"), codec={"patch_size": 4}, train=values,
            model={"hidden_size": 32, "depth": 1, "num_heads": 2},
        )  # fmt: skip

    return make


def names_in(config: RunConfig) -> list[int]:
    return sorted(int(p.name) for p in (Path(config.out) / "checkpoints").iterdir())


@pytest.mark.parametrize("background", [False, True])
def test_weights_that_are_not_finite_are_not_saved(exploding, background):
    config = exploding(checkpoint_every=1, async_checkpoint=background)
    with pytest.raises(
        UserError, match=r"stopped at 24 images: .* is not finite, nothing was saved.*0016, is"
    ):
        train(config, device="cpu", show_progress=False)
    assert names_in(config) == [8, 16]
    for checkpoint in (Path(config.out) / "checkpoints").iterdir():
        load_model(checkpoint)


def test_nothing_is_saved_while_steps_are_skipped(exploding):
    """The last line does not say that the weights were left alone."""
    config = exploding(checkpoint_every=2, max_skipped_steps=4)
    said = (
        r"4 steps in a row were not finite, .* an earlier step made .* not finite, and the last checkpoint, "
    )
    with pytest.raises(UserError, match=said + r".*000000000016, is whole"):
        train(config, device="cpu", show_progress=False)
    assert names_in(config) == [16]


def test_a_save_that_is_due_waits_for_the_run_to_recover(exploding, monkeypatch):
    """One step's input is bad; its checkpoint comes one step later, and pruning with it."""
    config = exploding(checkpoint_every=2, images=48, keep_checkpoints=1)
    real = Trainer.step

    def step(trainer, batch):
        if trainer.progress.train_step == 3:
            batch.tokens[0] = math.inf
        return real(trainer, batch)

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: None)
    saved = []
    save = Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda *a: (saved.append(a[0].progress.train_step), save(*a)))
    train(config, device="cpu", show_progress=False)
    assert saved == [2, 5, 6]
    assert names_in(config) == [48]


def test_parameters_that_no_step_touches_have_a_state(trained):
    """So that a file without one is known to be damaged."""
    _, checkpoint = trained
    from causalfusion.train.optimizer import make_optimizer, optimizer_tensors

    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    optimizer = make_optimizer(model.parameters(), TrainConfig())
    model["used"](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tensors = optimizer_tensors(model, optimizer)
    assert len(tensors) == 12 and tensors["used.weight/step"] == 1
    assert tensors["unused.weight/step"] == 0 and not tensors["unused.weight/exp_avg_sq"].any()
    assert len(load_file(checkpoint / OPTIMIZER)) % 3 == 0


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("content", [b"", b"\x80", pickle.dumps([1]), pickle.dumps({"a": 1}), None])
def test_the_index_of_a_sharded_state_is_an_index(tmp_path, content):
    """Nothing in the file is executed."""
    target = tmp_path / "executed"
    content = pickle.dumps(Hostile(target)) if content is None else content
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(UserError, match=r"\.metadata is no index of a training state") as caught:
        ShareReader(tmp_path).layout()
    assert "\n" not in str(caught.value) and not target.exists()


def test_a_sharded_state_without_an_index_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"\.metadata is missing"):
        ShareReader(tmp_path).layout()
