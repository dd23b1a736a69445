"""Two gloo processes under torchrun against one: the same training, the same images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from causalfusion.saved import checkpoints_of
from causalfusion.train.log import read_log

SETTINGS = [
    "--train.images=96", "--train.batch-size=16", "--train.grad-accumulation=2", "--train.log-every=1",
    "--train.evaluate-every=3", "--train.evaluate-images=16", "--train.lr=1e-3", "--train.ema-decay=0.9",
    "--model.hidden-size=32", "--model.depth=2", "--model.num-heads=2", "--codec.patch-size=2", "--data.flip",
]  # fmt: skip


def launch(processes: int, *arguments: str) -> None:
    command = [sys.executable, "-m", "causalfusion.cli"]
    if processes > 1:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
            "-m", "causalfusion.cli",
        ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for processes in (1, 2):
        launch(processes, "train", *SETTINGS, f"--out={folder / str(processes)}")
    return folder


def test_training_is_the_same(runs):
    """Losses, weights and EMA of two processes equal those of one, to rounding."""
    one, two = (checkpoints_of(runs / n)[-1] for n in ("1", "2"))
    for name in ("model.safetensors", "raw.safetensors"):
        a, b = load_file(one / name), load_file(two / name)
        # A gradient that is zero but for rounding moves this bias by ±lr under AdamW (LESSONS).
        for key in (k for k in a if not k.endswith("k_norm.bias")):
            assert torch.allclose(a[key], b[key], atol=5e-5), f"{key}: {(a[key] - b[key]).abs().max()}"
    losses = [
        [r["loss"] for r in read_log(runs / n / "log.jsonl") if r["kind"] == "train"] for n in ("1", "2")
    ]
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_generated_images_are_the_same(runs):
    """Image i does not depend on the processes, nor on the batch size."""
    model = checkpoints_of(runs / "1")[-1]
    for processes, batch_size in ((1, 8), (2, 3)):
        launch(
            processes, "sample", f"--model={model}", f"--out={runs / f's{processes}'}", "--images=8",
            f"--batch-size={batch_size}", "--output", "npz", "--num-ar-steps=2", "--diffusion-steps=4",
            "--guidance-scale=2",
        )  # fmt: skip
    with np.load(runs / "s1" / "samples.npz") as a, np.load(runs / "s2" / "samples.npz") as b:
        assert np.abs(a["arr_0"].astype(int) - b["arr_0"].astype(int)).max() <= 1
        assert (a["arr_1"] == b["arr_1"]).all()
    settings = json.loads((Path(runs) / "s2" / "settings.json").read_text())
    assert settings["settings"]["num_ar_steps"] == 2 and settings["num"] == 8
