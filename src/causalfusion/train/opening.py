"""From a configuration to a run that can take its first, or its next, step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from causalfusion.codec.language_tokenizer import drawing_tokenizer
from causalfusion.codec.tokenizer import Tokenizer
from causalfusion.config import RunConfig
from causalfusion.config.graft import grafted
from causalfusion.config.serialize import flat
from causalfusion.diffusion.process import make_process
from causalfusion.errors import UserError
from causalfusion.estimate.devices import faster_in_bfloat16
from causalfusion.generate.settings import check_settings
from causalfusion.machine.processes import World
from causalfusion.saved.folder import ModelSpec, checkpoints_of, latest_model, load_spec, load_tokenizer
from causalfusion.train.checkpoint import DataRecord
from causalfusion.train.document_feed import open_document_data
from causalfusion.train.feed import TrainingData, open_training_data
from causalfusion.train.finetuning import check_captions, check_task
from causalfusion.train.grids import SIZES
from causalfusion.train.loggers import check_installed
from causalfusion.train.open_alignment import open_alignment, with_features
from causalfusion.train.parallel import fit_to_memory
from causalfusion.train.resume import (
    check_same_run,
    facts_of,
    micro_batches_of,
    stored_settings,
    with_earlier_behaviour,
)
from causalfusion.train.teacher import check_student, with_teacher
from causalfusion.train.trainer import Trainer


@dataclass(frozen=True)
class OpenRun:
    """A run at its start, or where its last checkpoint left it."""

    config: RunConfig
    """With everything that follows from data and machine filled in."""
    data: TrainingData
    data_record: DataRecord
    """Facts of the data, with which a resumed run compares its own."""
    trainer: Trainer
    spec: ModelSpec
    resumed: bool


def open_run(config: RunConfig, world: World) -> OpenRun:
    """Open the data, build the model, and load the last checkpoint of `config.out`, or the weights of
    `train.init`. Raises UserError, one line, for what would fail later."""
    if config.train.attention == "flex" and world.device.type == "cpu":
        raise UserError("train.attention is flex, which has no backward on the CPU; expected auto there")
    check_installed(config.train.log_to)
    checkpoints = checkpoints_of(Path(config.out))
    last = checkpoints[-1] if checkpoints else None
    _refuse_itself(config, last)
    # A run that has begun no longer needs what it began with.
    init = config.train.init or config.distill.teacher  # a student begins as its teacher
    begin_with = latest_model(Path(init)) if init and last is None else None
    source = last or begin_with
    if config.text.tokenizer == "init" and source is None:
        raise UserError("text.tokenizer is init; expected train.init too, the model whose tokenizer it is")
    if source is not None:
        config = grafted(config, load_spec(source).model)
    config = with_teacher(_with_precision(config, last, world), last)
    config = replace(config, sample=make_process(config.diffusion).settled(config.sample))
    if last is not None:
        config = _as_begun(config, last)
    open_data = open_document_data if config.data.has_documents else open_training_data
    data = open_data(config, world, _tokenizer(config, source, resumed=last is not None))
    config = data.config
    check_student(config, data.class_names)
    check_task(config, data)
    config, encoder = open_alignment(config, last, world)
    told = config.finetune.base and config.finetune.task != "classify"
    if told and data.tokenizer is not None and last is None and world.is_main:
        check_captions(data.some_captions(), data.tokenizer, config.finetune)
    record = facts_of(data) if last is None else check_same_run(config, last, data)
    if config.train.sample_every or config.train.sample_minutes:
        sizes, cell = data.frequent_sizes(SIZES), data.codec.cell
        for grid in [(height // cell, width // cell) for height, width in sizes] or [None]:
            check_settings(config.sample, config.model, config.diffusion, grid)
    config = fit_to_memory(config, world, at_least=1 if last is None else micro_batches_of(last))
    if encoder is not None:
        data = with_features(data, config, encoder, world, show_progress=world.is_main)
    trainer = Trainer(config, world, data.tokenizer)
    if last is not None:
        trainer.restore(last)
    elif begin_with is not None:
        trainer.begin_with(begin_with, data.class_names)
    return OpenRun(config, data, record, trainer, _spec(config, data), resumed=last is not None)


def _refuse_itself(config: RunConfig, checkpoint: Path | None) -> None:
    """Raises UserError for a run that is to begin from its own weights."""
    init = config.train.init
    if not init or Path(init).resolve() != Path(config.out).resolve():
        return
    if checkpoint is None or flat(stored_settings(checkpoint)).get("train.init") != init:
        resumes = "; to go on with it, leave --train.init out" if checkpoint is not None else ""
        raise UserError(f"--out {config.out} is the model of --train.init; give another folder{resumes}")


def _with_precision(config: RunConfig, checkpoint: Path | None, world: World) -> RunConfig:
    """The settings with the precision that `auto` stands for: what the run began with, else what is faster on
    this machine, for all processes alike."""
    if config.train.precision != "auto":
        return config
    if checkpoint is not None:
        low = flat(stored_settings(checkpoint)).get("train.precision") == "bfloat16"
    else:
        low = world.any(faster_in_bfloat16(world.device))
    return replace(config, train=replace(config.train, precision="bfloat16" if low else "float32"))


def _as_begun(config: RunConfig, checkpoint: Path) -> RunConfig:
    """The settings for a run that has begun: what an earlier version did, and the normalisation that was
    measured then, not again on every start."""
    config = with_earlier_behaviour(config, checkpoint)
    if config.codec.normalization != "measured":
        return config
    codec = load_spec(checkpoint).codec
    return replace(
        config, codec=replace(config.codec, normalization="given", scale=codec.scale, shift=codec.shift)
    )


def _tokenizer(config: RunConfig, source: Path | None, *, resumed: bool) -> Tokenizer | None:
    """The tokenizer of the checkpoint that is resumed, or of the model that a run with text begins with."""
    if source is None or not (resumed or config.text.tokenizer):
        return None
    spec = load_spec(source)
    if spec.model.text_only:
        return drawing_tokenizer(source, spec.model.vocab_size)
    tokenizer, word = load_tokenizer(source, spec), config.finetune.word
    return tokenizer.with_word(word) if word and tokenizer is not None and not resumed else tokenizer


def _spec(config: RunConfig, data: TrainingData) -> ModelSpec:
    return ModelSpec(
        model=config.model,
        codec=config.codec,
        diffusion=config.diffusion,
        factorization=config.factorization,
        text=config.text,
        class_names=data.class_names,
        class_dropout=config.train.class_dropout,
        autoencoder_fingerprint=data.codec.autoencoder_fingerprint,
    )
