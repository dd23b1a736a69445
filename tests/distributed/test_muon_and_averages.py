"""Muon and averages of several widths on two processes, copies or shares: those of one process."""

from pathlib import Path

import jobs
import pytest
import torch
from jobs import tiny_config
from safetensors.torch import load_file

from causalfusion.saved.folder import checkpoints_of
from causalfusion.train.log import read_log

OPTIONS = {
    "optimizer": "muon", "ema_widths": [0.05, 0.2], "ema_snapshot_images": 24, "images": 60, "lr": 3e-3,
    "weight_decay": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    jobs.run(1, jobs.train, tiny_config(out, train=OPTIONS))
    return out


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_are_as_one(parallel, alone, tmp_path):
    """After a resume on another number of processes too, in the last of five steps."""
    options = {**OPTIONS, "parallel": parallel, "grad_accumulation": 2}
    jobs.run(2, jobs.train, tiny_config(tmp_path, train={**options, "images": 36}))
    stored = checkpoints_of(tmp_path)[-1] / "state"
    assert (stored / "sharded").is_dir() == (parallel == "fsdp")
    jobs.run(3, jobs.train, tiny_config(tmp_path, train={**options, "images": 48, "grad_accumulation": 1}))
    jobs.run(1, jobs.train, tiny_config(tmp_path, train={**OPTIONS, "images": 60}))
    one, many = (
        [(r["loss"], r["grad_norm"]) for r in read_log(run / "log.jsonl") if r["kind"] == "train"]
        for run in (alone, tmp_path)
    )
    assert len(one) == 5
    assert [v for pair in many for v in pair] == pytest.approx([v for pair in one for v in pair], rel=1e-4)
    files = ["raw.safetensors", "state/ema_widths.safetensors", "state/optimizer.safetensors"]
    for name in files:
        a, b = (load_file(checkpoints_of(run)[-1] / name) for run in (alone, tmp_path))
        close(a, b, 2e-5)
    # At 36 and 48 images a run ended, and took a snapshot more.
    assert {p.name for p in snapshots(alone)} == {f"{n:012d}.safetensors" for n in (24, 48, 60)}
    for file in snapshots(alone):
        close(load_file(file), load_file(tmp_path / "ema_snapshots" / file.name), 1e-3)


def snapshots(run: Path) -> list[Path]:
    return sorted((run / "ema_snapshots").iterdir())


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys() and a
    for key in (k for k in a if "k_norm.bias" not in k):  # a gradient of zero but for rounding (LESSONS)
        assert torch.allclose(a[key], b[key], atol=tolerance, rtol=tolerance), (
            f"{key}: {(a[key] - b[key]).abs().max()}"
        )
