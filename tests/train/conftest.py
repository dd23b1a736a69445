from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion.config import RunConfig
from causalfusion.config.recipes import load_config


@pytest.fixture
def tiny_run(tmp_path: Path):
    """A run of a few small steps on digits; settings may be laid on top: tiny_run(train={"images": 64})."""

    def make(out: str = "run", **sections: dict) -> RunConfig:
        train = {
            "images": 160, "batch_size": 16, "lr": 1e-3, "log_every": 1, "checkpoint_every": 3,
            "evaluate_every": 4, "evaluate_images": 32, "ema_decay": 0.9, **sections.pop("train", {}),
        }  # fmt: skip
        model = {
            "hidden_size": 32,
            "depth": 2,
            "num_heads": 2,
            "num_class_tokens": 2,
            **sections.pop("model", {}),
        }
        codec = {"patch_size": 2, **sections.pop("codec", {})}
        values = {"train": train, "model": model, "codec": codec, "data": {"flip": True}, **sections}
        return load_config(**values, out=str(tmp_path / out))

    return make


@pytest.fixture
def one_thread():
    """One thread, as in a process with OMP_NUM_THREADS=1: sums are then the same to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SIZES = [(8, 8)] * 30 + [(8, 12)] * 25 + [(13, 8)] * 20 + [(3, 9)] * 2 + [(20, 40)] * 15


@pytest.fixture
def native_run(tiny_run, tmp_path):
    """A run on a folder of pictures of several sizes, some of which are too small or too large."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        level = random.integers(0, 200, (1, 1, 3))
        pixels = level + random.integers(0, 56, (height, width, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")

    def make(out: str = "run", **sections):
        data = {
            "source": "folder", "path": str(folder), "image_size": "native", "max_area": 160, "flip": True,
            **sections.pop("data", {}),
        }  # fmt: skip
        return tiny_run(out, data=data, codec={"patch_size": 4}, **sections)

    return make
