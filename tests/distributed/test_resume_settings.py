"""A run may be resumed with other processes and other memory, but only with the same training."""

import json
from dataclasses import replace

import jobs
import pytest
from jobs import tiny_config

from causalfusion.config import RunConfig
from causalfusion.config.serialize import flat, to_dict
from causalfusion.errors import UserError
from causalfusion.saved.folder import checkpoints_of
from causalfusion.train.log import read_log

NEWER = (
    "train.parallel", "train.replicas", "train.async_checkpoint", "diffusion.loss_weight",
    "diffusion.snr_limit", "model.predicts_variance", "diffusion.path", "diffusion.beta_schedule",
    "diffusion.variance", "diffusion.error_in", "diffusion.level_distribution", "diffusion.level_range",
)  # fmt: skip
"""Settings that runs of the first release know nothing of."""


def without(settings: dict, names: tuple[str, ...]) -> dict:
    """Nested settings without those of the dotted names."""
    kept = {section: dict(v) if isinstance(v, dict) else v for section, v in settings.items()}
    for name in names:
        section, key = name.split(".")
        del kept[section][key]
    return kept


@pytest.fixture
def old_run(tmp_path) -> RunConfig:
    """A run of two steps, as an older version has left it."""
    config = tiny_config(tmp_path / "run", train={"images": 24})
    jobs.train(config)
    path = checkpoints_of(tmp_path / "run")[-1] / "state" / "run.json"
    settings = json.loads(path.read_text())
    assert set(NEWER) <= flat(settings).keys()
    path.write_text(json.dumps(without(settings, NEWER)))
    return config


def test_an_older_run_goes_on_in_another_layout(old_run, tmp_path):
    """The losses equal those of a run that knew nothing of it."""
    train = replace(
        old_run.train, images=48, parallel="fsdp", replicas=2, async_checkpoint=True, grad_accumulation=2,
        activation_checkpointing="selective",
    )  # fmt: skip
    jobs.train(replace(old_run, train=train))
    jobs.train(replace(old_run, out=str(tmp_path / "whole"), train=replace(old_run.train, images=48)))
    losses = [[r["loss"] for r in read_log(tmp_path / n / "log.jsonl")] for n in ("run", "whole")]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-6)
    settings = json.loads((checkpoints_of(tmp_path / "run")[-1] / "state" / "run.json").read_text())
    assert settings["train"] == to_dict(replace(old_run, train=train))["train"]


def test_a_setting_it_did_not_know_counts_as_its_default(old_run):
    changed = replace(old_run.diffusion, loss_weight="min_snr")
    with pytest.raises(UserError, match=r"begun with diffusion.loss_weight = 'none', now it is 'min_snr'"):
        jobs.train(replace(old_run, diffusion=changed, train=replace(old_run.train, images=48)))
    with pytest.raises(UserError, match=r"begun with train.lr = 0.001, now it is 0.1"):
        jobs.train(replace(old_run, train=replace(old_run.train, images=48, lr=0.1)))
