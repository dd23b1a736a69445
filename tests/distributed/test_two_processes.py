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

from causalfusion.codec.tokenizer import train_tokenizer
from causalfusion.presets import load_config
from causalfusion.saved import checkpoints_of
from causalfusion.train.log import read_log
from causalfusion.train.run import train

SETTINGS = [
    "--train.images=96", "--train.batch-size=16", "--train.grad-accumulation=2", "--train.log-every=1",
    "--train.evaluate-every=3", "--train.evaluate-images=16", "--train.lr=1e-3", "--train.ema-decay=0.9",
    "--model.hidden-size=32", "--model.depth=2", "--model.num-heads=2", "--codec.patch-size=2", "--data.flip",
]  # fmt: skip

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]

TRAIN_WITHOUT_CLI = """
import json, sys
from causalfusion.presets import load_config
from causalfusion.train import run
run.measure_gemm_rate = lambda *_: 1e9  # it takes seconds
config = load_config("shapes", **json.loads(sys.argv[1]))
run.train(config, device="cpu", show_progress=False)
"""


def launch(processes: int, *arguments: str) -> None:
    command = [sys.executable, "-m", "causalfusion.cli"]
    if processes > 1:
        command = [*TORCHRUN, f"--nproc-per-node={processes}", "-m", "causalfusion.cli"]
    run([*command, *arguments])


def run(command: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
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


def test_training_with_text_is_the_same(tmp_path, monkeypatch):
    """Processes and micro-batches with unlike numbers of images and of text tokens, some without an image:
    each image and each text token counts as it does in one process."""
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(train_tokenizer(["a large red circle", "two blue squares"] * 2, 280).to_json())
    settings = {
        "data": {"split": "validation"},
        "text": {"tokenizer": str(tokenizer), "caption_first": 0.3, "image_first": 0.2, "text_only": 0.5},
        "model": {"hidden_size": 32, "depth": 2, "num_heads": 2},
        "train": {
            "images": 48, "batch_size": 8, "grad_accumulation": 2, "log_every": 1, "evaluate_every": 0,
            "precision": "float32", "lr": 1e-3, "warmup_images": 0, "ema_decay": 0.9,
        },
    }  # fmt: skip
    script = tmp_path / "run.py"
    script.write_text(TRAIN_WITHOUT_CLI)
    values = json.dumps({**settings, "out": str(tmp_path / "2")})
    run([*TORCHRUN, "--nproc-per-node=2", str(script), values])
    monkeypatch.setattr("causalfusion.train.run.measure_gemm_rate", lambda *_: 1e9)
    one = train(load_config("shapes", **settings, out=str(tmp_path / "1")), device="cpu", show_progress=False)
    two = checkpoints_of(tmp_path / "2")[-1]
    for name in ("model.safetensors", "raw.safetensors"):
        a, b = load_file(one / name), load_file(two / name)
        for key in (k for k in a if not k.endswith("k_norm.bias")):
            assert torch.allclose(a[key], b[key], atol=5e-5), f"{key}: {(a[key] - b[key]).abs().max()}"
    logs = [[r for r in read_log(tmp_path / n / "log.jsonl") if r["kind"] == "train"] for n in ("1", "2")]
    assert len(logs[0]) == 6
    for name in ("image_loss", "text_loss", "grad_norm"):
        first, second = ([record[name] for record in log] for log in logs)
        assert first == pytest.approx(second, rel=2e-5), name
