"""Checks of a resumed run: the training it began with, on whatever machine and for however long."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from causalfusion.codec.cache import LatentCache
from causalfusion.codec.tokenizer import Tokenizer, open_tokenizer
from causalfusion.config import RunConfig
from causalfusion.config.earlier import rename_settings
from causalfusion.config.options import option_name
from causalfusion.config.serialize import flat, from_dict, read_object, to_dict
from causalfusion.data.source import TracedSource, content_hashes, digest
from causalfusion.errors import UserError
from causalfusion.saved.started import DATA_FILE, current_folder, same_place, started_in
from causalfusion.train.checkpoint import REMEDY, DataRecord
from causalfusion.train.feed import TrainingData

MAY_CHANGE = (
    "out",
    "align.cache",
    "data.path",
    "data.num_workers",
    "data.packed_tokens",
    "finetune.caption_images",
    "train.images",
    "train.epochs",
    "train.minutes",
    "train.micro_batch",
    "train.grad_accumulation",
    "train.checkpoint_minutes",
    "train.sample_minutes",
    "train.attention",
    "train.compile",
    "train.length_multiple",
    "train.parallel",
    "train.replicas",
    "train.activation_checkpointing",
    "train.async_checkpoint",
    "train.log_every",
    "train.log_to",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.evaluate_every",
    "train.evaluate_images",
    "train.sample_every",
    "train.ema_snapshot_images",
    "train.max_skipped_steps",
    "sample",
)
"""Settings that a resumed run may change. Where the learning rate falls towards the end of the run,
train.images and train.minutes change later rates."""

MAY_MOVE = ("data.cache", "codec.autoencoder", "text.tokenizer", "distill.teacher", "align.encoder")
"""Settings that say where something lies: it may lie elsewhere, if its contents are the same."""

NAMED = ("data.class_words", "finetune.base", "train.init")
"""Settings that name one file or folder: it may be named otherwise, as from another current folder."""

COMPARED_IMAGES = 2000
"""Largest number of images whose contents decide whether the data changed; beyond, sizes and times do."""

LATER = {"train.ema_schedule": "constant"}
"""Settings that came with a default other than what runs did before, which they go on doing."""


def with_earlier_behaviour(config: RunConfig, checkpoint: Path) -> RunConfig:
    """The settings for a run that began before some of them existed."""
    stored = flat(stored_settings(checkpoint))
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
    number = flat(stored_settings(checkpoint)).get("train.grad_accumulation")
    return number if isinstance(number, int) and number >= 1 else 1


def stored_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings that the run of a checkpoint began with, under the names that they have now."""
    try:
        return rename_settings(read_object(checkpoint / "state" / "run.json", "training state"))
    except UserError as error:
        raise UserError(f"{error}; {REMEDY.format(checkpoint)}") from error


def settings_of_run(folder: Path) -> dict[str, Any]:
    """`stored_settings` of a model folder; {} for one that is no checkpoint of a run."""
    return stored_settings(folder) if (folder / "state" / "run.json").is_file() else {}


def check_same_run(config: RunConfig, checkpoint: Path, data: TrainingData) -> DataRecord:
    """A run can only go on with the settings it began with, but for those in MAY_CHANGE, and with its data;
    returns what is to be known of these the next time.

    Raises UserError that says what changed; files that changed are said in a warning.
    """
    before = {**LATER, **flat(stored_settings(checkpoint))}
    kept = _stored_facts(checkpoint)
    facts = facts_of(data, kept)
    if kept is not None:
        _check_data(config, kept, facts, data.examples, is_main=data.world.is_main)
    elif config.codec.autoencoder != before.get("codec.autoencoder", "") and data.world.is_main:
        warnings.warn(
            f"{config.out} was begun by an earlier version, with the autoencoder "
            f"{before.get('codec.autoencoder')}; whether {config.codec.autoencoder} is the same is not known",
            stacklevel=2,
        )
    now, start = flat(to_dict(config)), started_in(checkpoint)
    before = {**flat(to_dict(RunConfig())), **before}  # settings that came later did what their default does
    for name in sorted(before.keys() | now.keys()):
        free = any(name == key or name.startswith(key + ".") for key in MAY_CHANGE)
        moved = name in MAY_MOVE and before.get(name) and now.get(name)
        if free or moved or before.get(name) == now.get(name):
            continue
        if name not in NAMED or not _same_named(name, start, before, now):
            raise UserError(_change(config, name, before.get(name), now.get(name)))
    _check_tokenizer(config, before["text.tokenizer"], data.tokenizer)
    return facts


def _stored_facts(checkpoint: Path) -> DataRecord | None:
    """Facts of the run's data when it began; None if an earlier version began it."""
    path = checkpoint / "state" / DATA_FILE
    if not path.is_file():
        return None
    try:
        return from_dict(DataRecord, read_object(path, "training state"), f"{path}: ")
    except UserError as error:
        raise UserError(f"{error}; {REMEDY.format(checkpoint)}") from error


def facts_of(data: TrainingData, kept: DataRecord | None = None) -> DataRecord:
    """Facts with which a resumed run compares its data. Contents are read where files are not known to be
    those of an earlier sitting, and by the main process alone."""
    source, contents = data.origin, ""
    if isinstance(source, LatentCache):
        found = str(source.manifest["source"])
    else:
        found = source.fingerprint()
        if kept is not None and kept.fingerprint == found:
            contents = kept.contents
        elif data.world.is_main and isinstance(source, TracedSource) and len(source) <= COMPARED_IMAGES:
            contents = digest(content_hashes(source, range(len(source))).tobytes()).hex()
    return DataRecord(
        class_names=list(data.class_names),
        images=len(source),
        fingerprint=found,
        autoencoder=data.codec.autoencoder_fingerprint,
        contents=contents,
        folder=current_folder(),
    )


def _same_named(name: str, start: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """True if a setting names what it named in a run started in `start`, however its path is written, or a
    model anywhere whose weights an adapter knows as those it belongs to."""
    known, found = (settings.get("finetune.fingerprint") for settings in (before, now))
    if name in ("finetune.base", "train.init") and known and known == found:
        return True
    return same_place(start, before.get(name), now.get(name))


def _change(config: RunConfig, name: str, before: Any, now: Any) -> str:
    if name == "finetune.fingerprint" and before and now:
        return (
            f"the weights of {config.finetune.base} are not those that {config.out} was begun with (hash "
            f"{now[:16]}, was {before[:16]}); give the model it began with, or {_new_run(config)}"
        )
    table, _, field = name.rpartition(".")
    setting = "the model" if name == "finetune.base" else f"{name} ="
    if table in ("finetune", "distill") and name != "finetune.base":
        setting = f"{option_name(field)} ="  # as their commands have it
    return (
        f"{config.out} was begun with {setting} {before!r}, now it is {now!r}; give the value it began with, "
        f"or {_new_run(config)}"
    )


def _new_run(config: RunConfig) -> str:
    if config.finetune.trained != "none":  # the weights of an adapter go on from its model alone
        return "begin a new run: another --out"
    if config.finetune.base:
        return f"begin a new run from its weights: finetune {config.out}, with another --out"
    return f"begin a new run from its weights: another --out, and --train.init {config.out}"


def _check_data(
    config: RunConfig, kept: DataRecord, found: DataRecord, examples: str, *, is_main: bool
) -> None:
    where = config.data.cache or config.data.path or config.data.source
    if kept.class_names != found.class_names:
        raise UserError(
            f"the classes of {where} are not those that {config.out} was begun with: "
            f"{_class_changes(kept.class_names, found.class_names)}; go on with the data it began with, or "
            f"{_new_run(config)}"
        )
    if kept.images != found.images:
        raise UserError(
            f"{where} has {found.images} {examples}, {config.out} was begun with {kept.images}; go on with "
            f"the data it began with, or {_new_run(config)}"
        )
    if kept.autoencoder != found.autoencoder:
        raise UserError(
            f"the weights of the autoencoder {config.codec.autoencoder} are not those that {config.out} was "
            f"begun with (hash {found.autoencoder or 'none'}, was {kept.autoencoder or 'none'}); give "
            f"that one, or {_new_run(config)}"
        )
    same = kept.fingerprint == found.fingerprint or (kept.contents and kept.contents == found.contents)
    if is_main and not same:
        warnings.warn(
            f"files of {where} have changed since {config.out} was begun; it goes on with them as they are",
            stacklevel=2,
        )


def _class_changes(before: list[str], now: list[str]) -> str:
    gone = [name for name in before if name not in set(now)]
    new = [name for name in now if name not in set(before)]
    parts = [f"{_few_are(gone)} missing"] * bool(gone) + [f"{_few_are(new)} new"] * bool(new)
    return ", ".join(parts) or "they have another order"


def few(names: list[str]) -> str:
    """The first five names."""
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _few_are(names: list[str]) -> str:
    return few(names) + (" are" if len(names) > 1 else " is")


def _check_tokenizer(config: RunConfig, before: str, tokenizer: Tokenizer | None) -> None:
    """The run has its tokenizer with it; one that is given anew has to be the same."""
    name = config.text.tokenizer
    if tokenizer is None or name == before:
        return
    if name == "train" or open_tokenizer(name).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"the tokenizer {name} is not the one that {config.out} was begun with ({before}); give that "
            f"one, or {_new_run(config)}"
        )
