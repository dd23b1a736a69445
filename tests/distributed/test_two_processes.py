"""Two gloo processes that copy the model (DDP) against one: the same training, the same images."""

import json
from pathlib import Path

import jobs
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from causalfusion import cli
from causalfusion.codec.tokenizer import train_tokenizer
from causalfusion.config.recipes import load_config
from causalfusion.saved.folder import checkpoints_of
from causalfusion.train.log import read_log


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    options = {"images": 96, "batch_size": 16, "grad_accumulation": 2, "evaluate_every": 3}
    for processes in (1, 2):
        jobs.run(processes, jobs.train, jobs.tiny_config(folder / str(processes), train=options))
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


def test_training_on_several_images_in_a_row_is_the_same(tmp_path):
    """Rows of the processes hold other images than those of one, and unlike numbers of them."""
    options = {"images": 48, "batch_size": 12, "checkpoint_every": 0}
    folder, random = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for number in range(30):
        pixels = random.integers(0, 256, (8, 8 + 4 * (number % 3), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    data = {"source": "folder", "path": str(folder), "image_size": "native", "max_area": 160}
    sections = {"data": {**data, "batches": "packed", "packed_tokens": 20}, "codec": {"patch_size": 4}}
    for processes in (1, 2):
        config = load_config(
            train={"lr": 1e-3, "log_every": 1, "evaluate_every": 0, **options},
            model={"hidden_size": 32, "depth": 2, "num_heads": 2},
            factorization={"split": "per_image", "distribution": "uniform"},
            **sections,
            out=str(tmp_path / str(processes)),
        )
        jobs.run(processes, jobs.train, config)
    one, two = (load_file(checkpoints_of(tmp_path / n)[-1] / "raw.safetensors") for n in ("1", "2"))
    assert all(
        torch.allclose(value, two[key], atol=5e-5) for key, value in one.items() if "k_norm.bias" not in key
    )
    losses = [[r["loss"] for r in read_log(tmp_path / n / "log.jsonl") if "loss" in r] for n in ("1", "2")]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_generated_images_are_the_same(runs):
    """Image i does not depend on the processes, nor on the batch size."""
    model = checkpoints_of(runs / "1")[-1]
    for processes, batch_size in ((1, 8), (2, 3)):
        arguments = [
            "sample", f"--model={model}", f"--out={runs / f's{processes}'}", "--images=8",
            f"--batch-size={batch_size}", "--output", "npz", "--num-ar-steps=2", "--diffusion-steps=4",
            "--guidance-scale=2", "--device=cpu",
        ]  # fmt: skip
        assert jobs.run(processes, cli.run, arguments) == [0] * processes
    with np.load(runs / "s1" / "samples.npz") as a, np.load(runs / "s2" / "samples.npz") as b:
        assert np.abs(a["arr_0"].astype(int) - b["arr_0"].astype(int)).max() <= 1
        assert (a["arr_1"] == b["arr_1"]).all()
    settings = json.loads((Path(runs) / "s2" / "settings.json").read_text())
    assert settings["settings"]["num_ar_steps"] == 2 and settings["num"] == 8


def test_training_with_text_is_the_same(tmp_path):
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
    for processes in (1, 2):
        jobs.run(processes, jobs.train, load_config("shapes", **settings, out=str(tmp_path / str(processes))))
    one, two = (checkpoints_of(tmp_path / n)[-1] for n in ("1", "2"))
    for name in ("model.safetensors", "raw.safetensors"):
        a, b = load_file(one / name), load_file(two / name)
        for key in (k for k in a if not k.endswith("k_norm.bias")):
            assert torch.allclose(a[key], b[key], atol=5e-5), f"{key}: {(a[key] - b[key]).abs().max()}"
    logs = [[r for r in read_log(tmp_path / n / "log.jsonl") if r["kind"] == "train"] for n in ("1", "2")]
    assert len(logs[0]) == 6
    for name in ("image_loss", "text_loss", "grad_norm"):
        first, second = ([record[name] for record in log] for log in logs)
        assert first == pytest.approx(second, rel=2e-5), name
