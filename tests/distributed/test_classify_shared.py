"""Fine-tuning for classes on two processes, copies or shares: that of one process."""

from dataclasses import replace
from pathlib import Path

import jobs
import pytest
from jobs import tiny_config
from test_muon_and_averages import close

from causalfusion.config import ClassifyConfig, FinetuneConfig, RunConfig
from causalfusion.saved.folder import latest_model
from causalfusion.train.finetuning import continued
from causalfusion.train.log import read_log
from causalfusion.weight_files import read_weights


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("base") / "run"
    jobs.run(1, jobs.train, tiny_config(out, train={"images": 12}))
    return out


def classifying(base: Path, out: Path, **train: object) -> RunConfig:
    config = tiny_config(out, train={"images": 48, "lr": 3e-3, "evaluate_every": 2, **train})
    config = replace(config, train=replace(config.train, init=str(base)))
    finetune, classify = FinetuneConfig(task="classify", adapter="none"), ClassifyConfig(layer_decay=0.5)
    return continued(replace(config, finetune=finetune, classify=classify))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_classify_as_one(parallel, base, tmp_path):
    alone, two = tmp_path / "alone", tmp_path / "two"
    jobs.run(1, jobs.train, classifying(base, alone))
    jobs.run(2, jobs.train, classifying(base, two, parallel=parallel, grad_accumulation=2, images=24))
    jobs.run(2, jobs.train, classifying(base, two, parallel=parallel, grad_accumulation=2))
    one, many = (
        [(r["loss"], r["grad_norm"]) for r in read_log(run / "log.jsonl") if r["kind"] == "train"]
        for run in (alone, two)
    )
    assert len(one) == 4
    assert [v for row in many for v in row] == pytest.approx([v for row in one for v in row], rel=2e-4)
    for name in ("raw.safetensors", "classifier.safetensors", "state/classifier.safetensors"):
        a, b = (read_weights(latest_model(run) / name) for run in (alone, two))
        close(a, b, 3e-5)
    found = [[r["accuracy"] for r in read_log(run / "log.jsonl") if r["kind"] == "accuracy"][-1]
             for run in (alone, two)]  # fmt: skip
    assert found[0] == found[1]
