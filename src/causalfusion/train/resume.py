"""What a run may go on with: the training it began with, on whatever machine and for however long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from causalfusion.config import RunConfig
from causalfusion.config_json import flat, read_json, to_dict
from causalfusion.earlier_settings import rename_settings
from causalfusion.errors import UserError, check

MAY_CHANGE = (
    "out", "data.path", "data.num_workers", "train.images", "train.epochs", "train.minutes",
    "train.micro_batch",
    "train.grad_accumulation", "train.checkpoint_minutes", "train.sample_minutes",
    "train.attention", "train.compile", "train.length_multiple",
    "train.parallel", "train.replicas", "train.activation_checkpointing", "train.async_checkpoint",
    "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.evaluate_every",
    "train.evaluate_images", "train.sample_every", "train.max_skipped_steps", "sample",
)  # fmt: skip
"""Settings that a resumed run may change; with lr_schedule = cosine, train.images changes later rates."""


LATER = {"train.ema_schedule": "constant"}
"""Settings that came with a default other than what runs did before, which they go on doing."""


def with_earlier_behaviour(config: RunConfig, checkpoint: Path) -> RunConfig:
    """The settings for a run that began before some of them existed."""
    stored = flat(_stored(checkpoint))
    earlier: dict[str, Any] = {}
    for name, value in LATER.items():
        if name not in stored:
            table, _, field = name.partition(".")
            earlier.setdefault(table, {})[field] = value
    tables = {table: replace(getattr(config, table), **values) for table, values in earlier.items()}
    return replace(config, **tables)


def micro_batches_of(checkpoint: Path) -> int:
    """How many micro-batches a train step of the run was last computed in: going on with as many, it is the
    same run to the bit."""
    number = flat(_stored(checkpoint)).get("train.grad_accumulation")
    return number if isinstance(number, int) and number >= 1 else 1


def _stored(checkpoint: Path) -> dict[str, Any]:
    """The settings that the run of a checkpoint began with, under the names that they have now."""
    remedy = "delete this checkpoint folder to resume from the one before"
    try:
        values = read_json(checkpoint / "state" / "run.json", "training state")
        check(isinstance(values, dict), "run.json", values, "a table of settings")
    except UserError as error:
        raise UserError(f"training state in {checkpoint} cannot be read ({error}); {remedy}") from error
    return rename_settings(values)


def check_same_run(config: RunConfig, checkpoint: Path) -> None:
    """A run can only go on with the settings it began with, but for those in MAY_CHANGE."""
    before = {**LATER, **flat(_stored(checkpoint))}
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
