from pathlib import Path

import pytest

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
