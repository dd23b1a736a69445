"""Refusing options that would change nothing, as another setting leaves them without use.

Only what stands on the command line is refused. A recipe or a model's own sampling settings serve many
commands, and may say more than one of them uses: `--sampler euler` alone overrides a model's `sde`, whatever
its file says of `last_step`. A run that has begun is not refused the command that it began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from causalfusion.config import ClassifyConfig, FinetuneConfig, RunConfig, SampleConfig, WriteConfig
from causalfusion.config.autoencoding import AutoencoderConfig, ReconstructionConfig
from causalfusion.config.options import option_name
from causalfusion.config.serialize import flat, to_dict
from causalfusion.errors import UserError
from causalfusion.vocabulary.read import Line


class Use(NamedTuple):
    """When a setting is used: while another one has one of these values, or any value but one."""

    other: str
    values: tuple[str, ...] = ()
    unless: Any = None

    def holds(self, value: Any) -> bool:
        return value in self.values if self.values else value != self.unless

    def needed(self, name: str, now: Any) -> str:
        """The missing condition in words; `name` is that of the other setting, `now` its value."""
        if self.values:
            return f"{name} {' or '.join(self.values)}, not {now or 'none'}"
        return f"{name} other than {now}" if now != "" else name


CHAIN, FLOW = Use("diffusion.path", ("ddpm",)), Use("diffusion.path", ("rectified_flow", "gvp", "vp"))
SDE, SOLVER = Use("sample.sampler", ("sde", "sde_heun")), Use("sample.sampler", ("dpm++", "unipc"))
BOUNDED = Use("diffusion.beta_schedule", ("linear", "scaled_linear", "sigmoid"))
IN_CONTEXT = Use("data.source", ("in_context",))
STORED = ("folder", "webdataset", "jsonl", "npz", "parquet", "datasets")
IMAGES = Use("data.source", ("digits", "shapes", *STORED))
TABLES = Use("data.source", ("parquet", "datasets"))
ALIGNED = Use("align.encoder", unless="")
TEACHER = Use("distill.teacher", unless="")
TEXT, GUIDANCE = Use("text.tokenizer", unless=""), Use("sample.guidance_scale", unless=1.0)
CLASSIFIES, DESCRIBES = (Use("finetune.task", (task,)) for task in ("classify", "caption"))
ALL_WEIGHTS = Use("finetune.adapter", ("none",))
LORA, NO_NEW_WORD = Use("finetune.adapter", ("lora",)), Use("finetune.adapter", ("none", "lora"))
TRANSFORMERS = Use("kind", ("fixed_variance",))
NORMAL, WEIGHTED = (
    Use("diffusion.level_distribution", ("logit_normal",)),
    Use("factorization.loss_weight", ("linear", "cosine")),
)
USED: dict[str, tuple[Use, ...]] = {
    "sample.level_shift": (FLOW,),
    "sample.last_step": (SDE, Use("sample.last_step_rule", ("mean", "euler", "tweedie"))),
    "sample.last_step_rule": (SDE,),
    "sample.sde_noise": (SDE,),
    "sample.sde_norm": (SDE,),
    "sample.solver_order": (SOLVER,),
    "sample.step_spacing": (SOLVER, CHAIN),
    "sample.least_log_snr": (SOLVER, CHAIN),
    "sample.variance": (Use("sample.sampler", ("ddpm",)),),
    "sample.block_size": (Use("sample.order", ("block_raster", "dilated")),),
    "sample.guidance_schedule": (GUIDANCE,),
    "sample.guidance_interval": (GUIDANCE,),
    "sample.guided_channels": (GUIDANCE,),
    "sample.guidance_power": (GUIDANCE,),
    "write.top_k": (Use("write.text_temperature", unless=0.0),),
    "write.top_p": (Use("write.text_temperature", unless=0.0),),
    "data.path": (Use("data.source", (*STORED, "documents")),),
    **{f"data.{kind}_column": (TABLES,) for kind in ("image", "label", "caption")},
    "data.subset": (Use("data.source", ("datasets",)),),
    "data.streaming": (Use("data.source", ("datasets",)),),
    "data.object_shares": (Use("data.source", ("shapes",)),),
    "data.task": (IN_CONTEXT,),
    "data.examples": (IN_CONTEXT,),
    "data.max_area": (Use("data.image_size", ("native",)),),
    "data.packed_tokens": (Use("data.batches", ("packed",)),),
    "data.image_suffix": (Use("data.source", ("webdataset",)),),
    "diffusion.beta_schedule": (CHAIN,),
    "diffusion.beta_start": (CHAIN, BOUNDED),
    "diffusion.beta_end": (CHAIN, BOUNDED),
    "diffusion.cosine_offset": (CHAIN, Use("diffusion.beta_schedule", ("cosine",))),
    "diffusion.schedule_precision": (CHAIN,),
    "diffusion.least_level": (FLOW,),
    "diffusion.timestep_scale": (FLOW,),
    "diffusion.timestep_from": (FLOW,),
    "diffusion.timestep_shift": (FLOW,),
    "diffusion.snr_limit": (Use("diffusion.loss_weight", ("min_snr",)),),
    "diffusion.level_mean": (NORMAL,),
    "diffusion.level_std": (NORMAL,),
    "factorization.decay": (Use("factorization.distribution", ("decay",)),),
    "factorization.num_ar_steps": (Use("factorization.distribution", ("fixed",)),),
    "factorization.block_size": (Use("factorization.order", ("block_raster", "dilated")),),
    "factorization.loss_weight_first": (WEIGHTED,),
    "factorization.loss_weight_last": (WEIGHTED,),
    "text.vocab_size": (Use("text.tokenizer", ("train",)),),
    "text.caption_first": (TEXT, IMAGES, NO_NEW_WORD),
    "text.image_first": (TEXT, IMAGES, NO_NEW_WORD),
    "text.image_only": (TEXT, IMAGES, NO_NEW_WORD),
    "text.text_only": (TEXT, IMAGES, NO_NEW_WORD),
    "text.caption_dropout": (TEXT,),
    "text.loss_coefficient": (TEXT,),
    "text.max_context_timestep": (TEXT, Use("text.image_context", ("noised",))),
    "model.max_text_tokens": (TEXT,),
    "train.text_lr_factor": (TEXT, Use("train.trainable", ("all",))),
    "train.lr_decay": (Use("train.lr_schedule", ("wsd",)),),
    "train.trainable": (Use("train.init", unless=""), ALL_WEIGHTS),
    "train.class_dropout": (Use("model.num_class_tokens", unless=0),),
    "train.evaluate_images": (Use("train.evaluate_every", unless=0),),
    "finetune.rank": (LORA,),
    "finetune.alpha": (LORA,),
    "finetune.prior_images": (Use("finetune.prior_preservation", unless=0.0),),
    "finetune.caption_images": (DESCRIBES,),
    **{f"classify.{name}": (CLASSIFIES,) for name in flat(to_dict(ClassifyConfig()))},
    "align.layer": (ALIGNED,),
    "align.coefficient": (ALIGNED,),
    "align.width": (ALIGNED,),
    "align.cache": (ALIGNED,),
    "heads": (TRANSFORMERS,),
    "deviation": (TRANSFORMERS,),
    "perceptual_weight": (Use("perceptual", unless=""),),
    "distill.steps": (TEACHER,),
    "distill.teacher_steps": (TEACHER,),
    "distill.ahead": (TEACHER,),
    "distill.guidance_scale": (TEACHER,),
}
"""All conditions of a setting have to hold. Not listed: settings that a longer list or a duration overrides,
as their help says (`sizes`, `given_order`, `epochs`), and those that their configuration itself refuses
(`eta`, `temperature`)."""
_OF_AUTOENCODERS = {**to_dict(AutoencoderConfig()), **to_dict(ReconstructionConfig())}
DEFAULTS = {**_OF_AUTOENCODERS, **flat(to_dict(RunConfig())), **flat({"write": to_dict(WriteConfig())})}
OUT = {"train": DEFAULTS["out"], "finetune": "runs/finetune"}
"""The commands that train by the settings of a run, and the folder of each where none is given."""


_OF_COMMANDS = {
    "sample": SampleConfig, "write": WriteConfig, "finetune": FinetuneConfig, "classify": ClassifyConfig,
}  # fmt: skip
"""Tables whose settings are options without their name (--rank) of some commands."""


_OF_TRAINING = frozenset(
    f"--data.{name}"
    for name in (
        "max-area", "batches", "packed-tokens", "flip", "captions", "class-words", "cache", "task",
        "examples",
    )
)  # fmt: skip
"""Options of data that a probe, which reads plain images and their classes, has no use for."""


def refuse_unused(line: Line, layers: dict[str, Any]) -> None:
    """Raise UserError for the first option of the line that would change nothing, given the line and the
    settings beneath it. An option that repeats the default is none."""
    if "--samples" in line.given or "samples" in layers:
        return  # nothing is generated, which `evaluate` says itself
    if line.command.name == "probe":
        _refuse_of_training(line)
    beneath = flat(layers)
    given: dict[str, Sequence[str]] = {_setting(option): values for option, values in line.given.items()}
    for setting in given:
        if setting not in USED or _typed(setting, given[setting]) == DEFAULTS[setting]:
            continue
        for use in USED[setting]:
            now = _value(line, given, beneath, use.other)
            if not use.holds(now) and not _has_begun(line, layers):
                raise UserError(_refusal(line, setting, given[setting], use, now))


def _refuse_of_training(line: Line) -> None:
    for option in line.given:
        if option == "--data.image-size":
            raise UserError(f"{option} would change nothing: the size of a probe's images is --size")
        if option in _OF_TRAINING:
            raise UserError(f"{option} is for training, and would change nothing in a probe; leave it out")


def _refusal(line: Line, setting: str, values: Sequence[str], use: Use, now: Any) -> str:
    known = line.command.get(_option(line, use.other)) is not None
    needed = use.needed(_option(line, use.other) if known else f"a model with {use.other}", now)
    given = f"{_option(line, setting)} {' '.join(values)}"
    return f"{given} would change nothing, as it needs {needed}; leave it out, or change the other"


def _setting(option: str) -> str:
    """The name in a run's configuration of what an option sets: `sample.sampler` for --sampler."""
    name = option.removeprefix("--").replace("-", "_")
    for table, config in _OF_COMMANDS.items():
        if name in config.__dataclass_fields__:
            return f"{table}.{name}"
    return name


def _option(line: Line, setting: str) -> str:
    """The option of the line's command for a setting."""
    short, full = option_name(setting.rpartition(".")[2]), option_name(setting)
    return full if line.command.get(full) else short


def _value(line: Line, given: dict[str, Sequence[str]], beneath: dict[str, Any], setting: str) -> Any:
    """The value of a setting on a line, or beneath it; of the sampler `auto`, what that stands for."""
    now = _typed(setting, given[setting]) if setting in given else _value_beneath(line, beneath, setting)
    if setting == "sample.sampler" and now == "auto":
        from causalfusion.diffusion.process import process_of

        return process_of(_value(line, given, beneath, "diffusion.path")).samplers[0]
    return now


def _value_beneath(line: Line, beneath: dict[str, Any], setting: str) -> Any:
    """The value of a setting that the line does not give: from the files, the model or the default."""
    command, (table, _, name) = line.command.name, setting.partition(".")
    if setting == "diffusion.path" and command != "train":
        return _path_of_model(line, beneath)
    if setting == "train.init" and command == "finetune":
        return line.value("--model") or beneath.get("model")
    if table == "finetune" and command != "finetune":
        return "none" if setting == "finetune.adapter" else DEFAULTS[setting]
    own = table in _OF_COMMANDS and not line.command.get(option_name(setting))
    key = name if own else setting
    return beneath.get(key, DEFAULTS[setting])


def _path_of_model(line: Line, beneath: dict[str, Any]) -> Any:
    from causalfusion.saved.folder import latest_model, load_spec

    model = line.value("--model") or beneath.get("model") or "shapes"
    return load_spec(latest_model(Path(model))).diffusion.path


def _has_begun(line: Line, layers: dict[str, Any]) -> bool:
    """True for a training that has a checkpoint to go on from."""
    from causalfusion.saved.folder import checkpoints_of

    if line.command.name not in (*OUT, "codec train"):
        return False
    run = line.value("--out") or layers.get("out") or OUT.get(line.command.name)
    return bool(run and checkpoints_of(Path(run)))


def _typed(setting: str, values: Sequence[str]) -> Any:
    """The values of an option as its setting has them; the text itself where they are not of its type, which
    the command refuses."""
    default = DEFAULTS[setting]
    try:
        if isinstance(default, list):
            return [float(value) for value in values]
        if isinstance(default, bool):
            return values[-1] == "true"
        return type(default)(values[-1])
    except ValueError:
        return values[-1]
