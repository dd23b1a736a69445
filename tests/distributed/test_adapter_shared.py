"""An adapter that processes learn together, each with a share of the weights."""

import jobs
import numpy as np
import pytest
from safetensors.torch import load_file

from causalfusion import cli
from causalfusion.saved.folder import latest_model

TABLE = "class_embedding.table.weight"


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_rows_of_known_classes_and_of_none_stay_while_new_ones_learn(tmp_path, parallel):
    """They are not in the adapter's files: were they to learn, it would not draw what the run draws."""
    base, images = tmp_path / "base", tmp_path / "images.npz"
    jobs.run(1, jobs.train, jobs.tiny_config(base, train={"images": 24}))
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    np.savez(images, images=pixels, labels=8 + np.arange(12) % 4)
    arguments = [
        "finetune", str(base), "--data", str(images), "--data.holdout=0", f"--out={tmp_path / 'run'}",
        "--adapter=lora", "--train.images=24", "--train.batch-size=4", "--train.class-dropout=0.5",
        f"--train.parallel={parallel}", "--train.sample-minutes=0", "--device=cpu",
    ]  # fmt: skip
    assert jobs.run(2, cli.run, arguments) == [0, 0]
    before = load_file(latest_model(base) / "model.safetensors")[TABLE]
    for weights in ("model", "raw"):
        after = load_file(latest_model(tmp_path / "run") / f"{weights}.safetensors")[TABLE]
        assert after[:10].equal(before[:10]) and after[-1].equal(before[-1])
    assert len(after) == 13 and (after[10] - after[11]).abs().max() > 0
