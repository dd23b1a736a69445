"""FSDP2 over gloo processes against one process: weights, losses, memory, checkpoints."""

import hashlib
import json
from pathlib import Path

import jobs
import numpy as np
import pytest
import torch
from jobs import tiny_config
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.tensor import DTensor

from causalfusion.codec.tokenizer import train_tokenizer
from causalfusion.config import RunConfig
from causalfusion.config.recipes import load_config
from causalfusion.machine.processes import join_world
from causalfusion.saved.folder import checkpoints_of, load_model
from causalfusion.train.feed import open_training_data
from causalfusion.train.log import read_log
from causalfusion.train.sharding import gather, local_part
from causalfusion.train.trainer import Trainer

FSDP = {"parallel": "fsdp"}


def fingerprints(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in tensors.items()}


def facts(config: RunConfig) -> dict:
    """A trainer's facts on one process, at its start and after two train steps."""
    with join_world("cpu") as world:
        data = open_training_data(config, world)
        trainer = Trainer(data.config, world)
        at_first = fingerprints(gather(trainer.model.state_dict(), world, copy=True))
        positions = trainer.model.image_position.sum().item()
        batches = data.batches(0)
        results = [trainer.step(next(batches)) for _ in range(2)]
        state = [local_part(v) for s in trainer.optimizer.state.values() for k, v in s.items() if k != "step"]
        found = {
            "at_first": at_first,
            "positions": positions,
            "losses": [r.loss for r in results],
            "grad_norms": [r.grad_norm for r in results],
            "optimizer_bytes": sum(t.nbytes for t in state),
            "ema_bytes": sum(local_part(t).nbytes for t in trainer.ema.averages.values()),
            "weight_bytes": sum(local_part(p.detach()).nbytes for p in trainer.model.parameters()),
            "sharded": all(isinstance(p, DTensor) for p in trainer.model.parameters()),
            "ema": gather(trainer.ema.state_dict(), world, copy=True),
        }
        with trainer.averaged_model() as model:
            average = gather(model.state_dict(), world, copy=True)
            found["average_is_ema"] = all(average[name].equal(value) for name, value in found["ema"].items())
        found["ema"] = {name: value.double().norm().item() for name, value in found["ema"].items()}
        del trainer, model, batches, results, state, average
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    return facts(tiny_config(tmp_path_factory.mktemp("alone"), train={"max_grad_norm": 0.1}))


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, {"grad_accumulation": 3}),
        (3, {"activation_checkpointing": "selective"}),
        (4, {"replicas": 2, "grad_accumulation": 3, "activation_checkpointing": "full"}),
    ],
)
def test_shares_make_up_the_whole(processes, options, alone, tmp_path):
    """The same initial weights to the bit, the same losses and (clipped) gradients, 1/n of the memory."""
    config = tiny_config(tmp_path, train={**FSDP, **options, "max_grad_norm": 0.1})
    found = jobs.run(processes, facts, config)
    main = found[0]
    assert main["at_first"] == alone["at_first"]
    assert main["losses"] == pytest.approx(alone["losses"], rel=1e-6)
    assert (
        main["grad_norms"] == pytest.approx(alone["grad_norms"], rel=2e-6) and min(main["grad_norms"]) > 0.1
    )
    assert main["average_is_ema"]
    for name, norm in alone["ema"].items():
        if not name.endswith("k_norm.bias"):  # a gradient of zero but for rounding (LESSONS)
            assert main["ema"][name] == pytest.approx(norm, rel=1e-5, abs=1e-5), name
    groups = options.get("replicas", 1)
    shares = processes // groups
    for kind in ("optimizer_bytes", "ema_bytes", "weight_bytes"):
        held = [process[kind] for process in found]
        assert sum(held) == groups * alone[kind]
        assert max(held) < 1.08 * alone[kind] / shares, (kind, held, alone[kind])
    for process in found:
        assert process["sharded"] and process["positions"] == alone["positions"]
        assert process["losses"] == main["losses"]


def records(run: Path, kind: str) -> list[dict]:
    return [r for r in read_log(run / "log.jsonl") if r["kind"] == kind]


@pytest.mark.slow
def test_resumed_on_any_number_of_processes(tmp_path):
    """2 -> 3 -> 1 -> 2 -> 2 copies: the losses of one process all through, and a model all along."""
    common = {"evaluate_every": 3, "sample_every": 6}
    legs = [
        (2, 36, FSDP),
        (3, 72, {**FSDP, "async_checkpoint": True, "checkpoint_every": 1}),
        (1, 108, {}),
        (2, 144, {**FSDP, "activation_checkpointing": "selective"}),
        (2, 168, {"parallel": "ddp", "async_checkpoint": True}),
    ]
    sample = {"diffusion_steps": [2]}
    for processes, images, options in legs:
        train = {**common, **options, "images": images}
        jobs.run(processes, jobs.train, tiny_config(tmp_path / "many", train=train, sample=sample))
        last = checkpoints_of(tmp_path / "many")[-1]
        assert int(last.name) == images and not list(last.parent.glob(".partial-*"))
        assert (last / "state" / "sharded").is_dir() == (options.get("parallel") == "fsdp")
        _, spec = load_model(last)
        assert spec.images_seen == images
    whole = tiny_config(tmp_path / "one", train={**common, "images": 168}, sample=sample)
    jobs.run(1, jobs.train, whole)
    one, many = (records(tmp_path / name, "train") for name in ("one", "many"))
    assert len(one) == 14
    assert [r["loss"] for r in many] == pytest.approx([r["loss"] for r in one], rel=1e-6)
    assert [r["grad_norm"] for r in many] == pytest.approx([r["grad_norm"] for r in one], rel=1e-5)
    one, many = (records(tmp_path / name, "evaluation") for name in ("one", "many"))
    assert [r["mean"] for r in many] == pytest.approx([r["mean"] for r in one], rel=1e-6)
    assert len(one) == 5
    for name in ("model.safetensors", "raw.safetensors"):
        a, b = (load_file(checkpoints_of(tmp_path / run)[-1] / name) for run in ("one", "many"))
        for key in (k for k in a if not k.endswith("k_norm.bias")):
            assert torch.allclose(a[key], b[key], atol=1e-5), f"{key}: {(a[key] - b[key]).abs().max()}"
    for grid in sorted((tmp_path / "one" / "samples").iterdir()):
        a, b = (np.asarray(Image.open(p), int) for p in (grid, tmp_path / "many" / "samples" / grid.name))
        assert np.abs(a - b).max() <= 2, grid.name


@pytest.mark.parametrize("processes", [1, 2])
def test_written_in_the_background_is_the_same(processes, tmp_path):
    """While training goes on: the bytes of a save that training waits for, of every checkpoint."""
    for kind in ("waited", "background"):
        options = {**FSDP, "async_checkpoint": kind == "background", "checkpoint_every": 1, "images": 36}
        options |= {"keep_checkpoints": 9}
        jobs.run(processes, jobs.train, tiny_config(tmp_path / kind, train=options))
    waited, background = (checkpoints_of(tmp_path / kind) for kind in ("waited", "background"))
    assert [p.name for p in background] == [p.name for p in waited] and len(waited) == 3
    for a, b in zip(waited, background, strict=True):
        for name in ("model.safetensors", "raw.safetensors"):
            assert (a / name).read_bytes() == (b / name).read_bytes(), (a.name, name)
        one, other = (json.loads((at / "state/progress.json").read_text()) for at in (a, b))
        assert one | {"seconds": 0} == other | {"seconds": 0}, a.name
        first, second = optimizer_state(a), optimizer_state(b)
        assert first.keys() == second.keys() and sum(v.abs().sum().item() for v in first.values()) > 0
        assert all(value.equal(second[key]) for key, value in first.items()), a.name


def optimizer_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The whole tensors in a checkpoint, sharded or not."""
    file = checkpoint / "state" / "optimizer.safetensors"
    if file.is_file():
        return load_file(file)
    dcp_to_torch_save(checkpoint / "state" / "sharded", checkpoint.parent / "whole.pt")
    return torch.load(checkpoint.parent / "whole.pt")


def test_bfloat16_shares_compute_as_one_process_does(tmp_path):
    """To the rounding of bfloat16: blocks are gathered in it, what surrounds them stays float32."""
    options = {"precision": "bfloat16", "evaluate_every": 2}
    jobs.run(2, jobs.train, tiny_config(tmp_path / "2", train={**options, **FSDP}))
    jobs.run(1, jobs.train, tiny_config(tmp_path / "1", train=options))
    for kind, name, rel in (
        ("train", "loss", 2e-3),
        ("train", "grad_norm", 2e-2),
        ("evaluation", "mean", 2e-3),
    ):
        one, two = ([r[name] for r in records(tmp_path / n, kind)] for n in ("1", "2"))
        assert two == pytest.approx(one, rel=rel), name


def test_steps_without_an_image(tmp_path):
    """Parameters that a step leaves out on some processes, or on all, end as they do in one process."""
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(train_tokenizer(["a large red circle", "two blue squares"] * 2, 280).to_json())
    settings = {
        "data": {"split": "validation"},
        "text": {"tokenizer": str(tokenizer), "caption_first": 0.1, "image_first": 0.1, "text_only": 0.8},
        "model": {"hidden_size": 32, "depth": 2, "num_heads": 2},
        "train": {
            "images": 24, "batch_size": 4, "grad_accumulation": 2, "log_every": 1, "evaluate_every": 0,
            "precision": "float32", "lr": 1e-3, "warmup_images": 0, "ema_decay": 0.9,
        },
    }  # fmt: skip
    for processes, options in ((2, FSDP), (1, {})):
        values = {**settings, "train": {**settings["train"], **options}}
        config = load_config("shapes", **values, out=str(tmp_path / str(processes)))
        jobs.run(processes, jobs.train, config)
    one, two = (records(tmp_path / n, "train") for n in ("1", "2"))
    assert any(r["image_loss"] == 0 for r in one) and any(r["image_loss"] > 0 for r in one)
    for name in ("image_loss", "text_loss", "grad_norm"):
        assert [r[name] for r in two] == pytest.approx([r[name] for r in one], rel=1e-5), name
    a, b = (load_file(checkpoints_of(tmp_path / n)[-1] / "raw.safetensors") for n in ("1", "2"))
    for key in (k for k in a if not k.endswith("k_norm.bias")):
        assert torch.allclose(a[key], b[key], atol=5e-5), f"{key}: {(a[key] - b[key]).abs().max()}"
