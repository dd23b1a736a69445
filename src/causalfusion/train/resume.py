"""What a run may go on with: the training it began with, on whatever machine and for however long."""

from __future__ import annotations

import json
from pathlib import Path

from causalfusion.config import RunConfig
from causalfusion.config_json import flat, to_dict
from causalfusion.earlier_settings import rename_settings
from causalfusion.errors import UserError

MAY_CHANGE = (
    "out", "data.path", "data.num_workers", "train.images", "train.grad_accumulation",
    "train.attention", "train.compile", "train.length_multiple",
    "train.parallel", "train.replicas", "train.activation_checkpointing", "train.async_checkpoint",
    "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.evaluate_every",
    "train.evaluate_images", "train.sample_every", "train.max_skipped_steps", "sample",
)  # fmt: skip
"""Settings that a resumed run may change; with lr_schedule = cosine, train.images changes later rates."""


def check_same_run(config: RunConfig, checkpoint: Path) -> None:
    """A run can only go on with the settings it began with, but for those in MAY_CHANGE."""
    try:
        before = flat(rename_settings(json.loads((checkpoint / "state" / "run.json").read_text())))
    except (OSError, ValueError) as error:
        raise UserError(
            f"training state in {checkpoint} cannot be read ({error}); delete this checkpoint folder to "
            "resume from the one before"
        ) from error
    now = flat(to_dict(config))
    before = {**flat(to_dict(RunConfig())), **before}  # settings that came later did what their default does
    for name in sorted(before.keys() | now.keys()):
        free = any(name == key or name.startswith(key + ".") for key in MAY_CHANGE)
        if not free and before.get(name) != now.get(name):
            raise UserError(
                f"{config.out} was begun with {name} = {before.get(name)!r}, now it is {now.get(name)!r}; "
                f"give the value it began with, or begin a new run from its weights: another --out and "
                f"--train.init {config.out}"
            )
