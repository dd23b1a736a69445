"""A run with alignment on two processes, copies or shares: that of one process."""

from pathlib import Path

import jobs
import pytest
from jobs import tiny_config
from test_muon_and_averages import close

from causalfusion.saved.folder import latest_model
from causalfusion.train.log import read_log
from causalfusion.weight_files import read_weights

OPTIONS = {"images": 48, "lr": 3e-3}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("encoder") / "run"
    jobs.run(1, jobs.train, tiny_config(out, train={"images": 12}))
    return out


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_align_as_one(parallel, encoder, tmp_path):
    align = {"encoder": f"model:{encoder}:1", "width": 16}
    kept = {**align, "cache": str(tmp_path / "kept")}
    alone, two = tmp_path / "alone", tmp_path / "two"
    jobs.run(1, jobs.train, tiny_config(alone, train=OPTIONS, align=align))
    options = {**OPTIONS, "parallel": parallel, "grad_accumulation": 2}
    jobs.run(2, jobs.train, tiny_config(two, train={**options, "images": 24}, align=kept))
    jobs.run(2, jobs.train, tiny_config(two, train=options, align=kept))
    one, many = (
        [(r["image_loss"], r["alignment"], r["grad_norm"]) for r in read_log(run / "log.jsonl")
         if r["kind"] == "train"]
        for run in (alone, two)
    )  # fmt: skip
    assert len(one) == 4
    assert [v for row in many for v in row] == pytest.approx([v for row in one for v in row], rel=2e-4)
    for name in ("raw.safetensors", "state/projector.safetensors"):
        a, b = (read_weights(latest_model(run) / name) for run in (alone, two))
        close(a, b, 3e-5)
