"""The command line `causalfusion`. A user's mistake prints one line on stderr and exits with code 2."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict

from causalfusion import __version__
from causalfusion.config import RunConfig
from causalfusion.config.earlier import rename_options
from causalfusion.config.recipes import merge, without_overruled
from causalfusion.config.serialize import flat, to_dict
from causalfusion.errors import STOPPED, TrainingStopped, UserError, printable
from causalfusion.vocabulary.data_path import settle_data
from causalfusion.vocabulary.help import EVERYTHING, Help, default_in_help
from causalfusion.vocabulary.layers import READ_BY_COMMAND, layers_for
from causalfusion.vocabulary.notes import say, warnings_as_notes
from causalfusion.vocabulary.options import command_of
from causalfusion.vocabulary.read import Line, read_line
from causalfusion.vocabulary.unused import refuse_unused

COMMANDS = (
    *("train", "finetune", "distill"),
    *("sample", "edit", "caption", "complete", "classify", "app"),
    *("evaluate", "compare", "plan", "study", "probe"),
    *("encode", "codec", "tokenizer", "estimate"),
    *("convert", "ema", "merge", "publish"),
    *("demo", "doctor"),
)
"""In the order of the help: making a model, using it, measuring it, what goes before a training, what comes
after it."""
BROKEN_PIPE = 141
"""Exit code if the reader of the output is gone, as in a shell (128 + SIGPIPE)."""


HELP = Help()
app = App(
    name="causalfusion",
    help="Causal diffusion transformers: train, sample, edit, between autoregression and diffusion.",
    version=__version__,
    result_action="return_value",
    exit_on_error=False,  # `run` prints errors in one line
    print_error=False,
    suppress_keyboard_interrupt=False,  # `run` prints "stopped"
    default_parameter=Parameter(negative_iterable=(), show_default=default_in_help),
    help_formatter=HELP,
)
for _place, _command in enumerate(COMMANDS):
    app.command(f"causalfusion.commands.{_command}:app", name=_command, sort_key=_place)

GENERATING = ("sample", "edit", "complete", "evaluate")


@dataclass
class Prepared:
    """A command line in the form that the command takes."""

    tokens: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings from recipes and files, which the tokens override."""
    source: str = ""
    notes: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """Lines to print before the command runs."""

    def config(self) -> tuple[Dict, ...]:
        """The settings for cyclopts, under the command's name: at the top, it would take the tables [train]
        and [sample] for commands."""
        if not self.settings:
            return ()
        settings = self.settings
        for command in reversed(app.parse_commands(self.tokens)[0]):
            settings = {command: settings}
        return (Dict(settings, source=self.source),)


def prepare(tokens: Sequence[str]) -> Prepared:
    """Read a command line in any accepted spelling, with settings from its recipes and files. Raises
    UserError.

    Spellings come before cyclopts, which knows one name for each option and asks for `--name=value` where a
    value begins with a dash; it then takes the line as one that it could have been given.
    """
    HELP.everything = EVERYTHING in tokens
    tokens = rename_options(["--help" if token == EVERYTHING else token for token in tokens])
    asking = {*app.help_flags, *app.version_flags}
    if not tokens or tokens[0] in asking:
        app.resolved_commands()  # the list of commands then shows their descriptions
    chain, apps, rest = app.parse_commands(tokens)
    HELP.command = " ".join(name for name in chain if name not in asking)
    if not tokens or asking & set(tokens[: tokens.index("--")] if "--" in tokens else tokens):
        return Prepared(tokens)  # which cyclopts answers, whatever else is on the line
    if not chain or apps[-1].default_command is None:
        return Prepared(tokens)
    line = read_line(command_of(" ".join(chain), apps[-1]), rest)
    names, layers = beneath(line)
    settle_data(line, layers)
    settings = without_overruled(layers, line.tables())
    prepared = Prepared(line.tokens(), settings, ", ".join(names), line.notes)
    if line.command.name == "train" and "images" not in settings.get("train", {}):
        decided = {name.removeprefix("--").replace("-", "_") for name in line.given} | flat(settings).keys()
        prepared = _with_choices(prepared, decided, line.value("--device") or settings.get("device", "auto"))
    if line.command.name in ("train", "codec train", "finetune", "caption", "probe", *GENERATING):
        refuse_unused(line, prepared.settings)
    return prepared


def _with_choices(prepared: Prepared, decided: Collection[str], device_name: str) -> Prepared:
    """The command line of a training whose length no recipe gives, with settings chosen for the data and the
    machine. `decided` are the names of given settings, which are kept. Raises UserError without data."""
    from causalfusion.machine.runtime import select_device
    from causalfusion.train.auto import model_for, settings_for

    device = select_device(device_name)
    app.config = replace(prepared, settings=merge([{"model": model_for(device)}, prepared.settings])).config()
    _, bound, _ = app.parse_args(prepared.tokens)
    if not {"data.path", "data.cache", "data.source"} & set(decided):
        raise UserError(
            "train needs data: give the path of images (a folder, shards, .jsonl, .npz), such as "
            "causalfusion train photos, or a recipe that has some, such as --config digits"
        )
    chosen, lines = settings_for(bound.arguments.get("run", RunConfig()), device, decided)
    return replace(
        prepared,
        settings=merge([chosen, prepared.settings]),
        source=", ".join(filter(None, ["the settings chosen for the data", prepared.source])),
        said=lines,
    )


def beneath(line: Line) -> tuple[list[str], dict[str, Any]]:
    """(names of the files beneath a line, their merged settings); later files override earlier ones. The
    sampling settings of a model are not used with an evaluation preset, which sets all that figures depend
    on, nor if existing images are evaluated."""
    command = line.command
    if command.name in READ_BY_COMMAND:
        return [], {}
    names = line.given.get("--config", [])
    layers = layers_for(command, names)
    if command.name == "distill":
        return names, merge([teacher_settings(line, layers), layers])
    if command.name == "finetune":
        return names, merge([finetune_settings(line, layers), layers])
    if command.name == "probe":
        return names, merge([probed_settings(line, layers), layers])
    if command.name == "plan":
        return names, merge([planned_settings(line, layers), layers])
    preset = evaluation_preset(line, layers)
    reads = "--samples" in line.given or "samples" in layers
    own = [] if preset or reads else model_settings(line, layers)
    if own or preset:
        layers = merge([layers_for(command, [*own, *preset]), layers])
    return [*own, *preset, *names], layers


def teacher_settings(line: Line, layers: dict[str, Any]) -> dict[str, Any]:
    """The settings that a distillation has from its teacher. Raises UserError without a teacher, or without
    data, which a model that is no training run does not name."""
    from causalfusion.train.data_of_run import require_data
    from causalfusion.train.teacher import settings_beneath

    teacher = line.value("--teacher") or layers.get("teacher")
    if not teacher:
        raise UserError("distill needs a model: causalfusion distill RUN --steps 1 --out models/fast")
    given = {name.removeprefix("--") for name in line.given} | flat(layers).keys()
    if "steps" not in given:
        raise UserError("distill needs --steps: the student's diffusion steps in each AR step, 1 to 4")
    beneath = settings_beneath(teacher)
    if not {"data.path", "data.cache", "data.source"} & given:
        require_data(teacher, beneath["data"], "its data, such as --data.path PATH or --data.source shapes")
    return beneath


def finetune_settings(line: Line, layers: dict[str, Any]) -> dict[str, Any]:
    """The settings that fine-tuning has from its model. Raises UserError without a model, or without data."""
    from causalfusion.commands.finetune import settings_beneath

    model = line.value("--model") or layers.get("model")
    given = {name.removeprefix("--") for name in line.given} | flat(layers).keys()
    if "--train.init" in line.given:
        raise UserError(f"--train.init {line.value('--train.init')} is for train; finetune takes one MODEL")
    if not model or not {"data.path", "data.cache", "data.source"} & given:
        lacks = "data" if model else "a model"
        raise UserError(f"finetune needs {lacks}: causalfusion finetune MODEL --data PATH --out models/mine")
    options = {name.removeprefix("--"): values[-1] for name, values in line.given.items() if values}
    return settings_beneath(model, {**layers, **options})


def probed_settings(line: Line, layers: dict[str, Any]) -> dict[str, Any]:
    """The settings of data that a probe has from its model's training: all where no data is given, else the
    share that was held out. Raises UserError without a model, or without data."""
    from causalfusion.train.data_of_run import data_of_training, require_data

    model = line.value("--model") or layers.get("model")
    if not model:
        raise UserError("probe needs a model: causalfusion probe RUN --levels clean 0.2")
    beneath = data_of_training(model)
    given = {name.removeprefix("--") for name in line.given} | flat(layers).keys()
    if {"data.path", "data.source"} & given:
        return {"data": {name: beneath[name] for name in ("holdout",) if name in beneath}}
    require_data(model, beneath, "labelled images, such as --data.path PATH or --data.source digits")
    return {"data": beneath}


def planned_settings(line: Line, layers: dict[str, Any]) -> dict[str, Any]:
    """The settings that a plan has from its model's own sampling: all but those that it varies."""
    from causalfusion.saved.sampling import read_sampling

    folder = _folder_of(line, layers)
    if not (folder and (own := read_sampling(folder))):
        return {}
    varied = {"num_ar_steps", "diffusion_steps", "guidance_scale", "respacing"}
    varied |= set() if own.eta else {"sampler"}  # without ddim there is no eta
    return {"sample": {name: value for name, value in to_dict(own).items() if name not in varied}}


def model_settings(line: Line, layers: dict[str, Any]) -> list[str]:
    """The file of sampling settings in the model folder of a generating command; [] if there is none."""
    if line.command.name not in GENERATING:
        return []
    from causalfusion.saved.folder import SAMPLING_FILE

    folder = _folder_of(line, layers)
    return [str(folder / SAMPLING_FILE)] if folder and (folder / SAMPLING_FILE).is_file() else []


def _folder_of(line: Line, layers: dict[str, Any]) -> Path | None:
    """The model folder of a command that generates; None where there is none, which the command reports."""
    from causalfusion.saved.folder import latest_model

    try:
        return latest_model(Path(line.value("--model") or layers.get("model") or "shapes"))
    except UserError:
        return None


def evaluation_preset(line: Line, layers: dict[str, Any]) -> list[str]:
    """The file of the preset of `evaluate`, named on the command line or in a --config; [] without one."""
    name = (line.value("--preset") or layers.get("preset")) if line.command.name == "evaluate" else None
    if not name:
        return []
    from causalfusion.evaluate.presets import evaluation_file

    return [str(evaluation_file(name))]


def run(tokens: Sequence[str]) -> int:
    """Run a command line. Returns its exit code."""
    try:
        with warnings_as_notes():
            prepared = prepare(tokens)
            for note in dict.fromkeys(prepared.notes):
                say(note)
            for text in prepared.said:
                print(printable(text))
            app.config = prepared.config()
            result = app(prepared.tokens)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (CycloptsError, UserError) as error:
        return _refuse(str(error))
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the rest of the buffer has no reader
        return BROKEN_PIPE
    except OSError as error:
        where = error.filename or "the output"
        if error.errno == errno.ENOSPC:
            return _refuse(f"the disk is full while writing {where}; free some space and run again")
        return _refuse(f"{where}: {error.strerror or error}")
    except TrainingStopped as stopped:
        say(str(stopped), "causalfusion: ")
        return STOPPED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _refuse(f"there is not enough memory ({error or 'the machine has no more'}); do less at once")
    finally:
        app.config = ()


def _is_out_of_memory(error: Exception) -> bool:
    """True for an out-of-memory error of Python, of a GPU, or of torch's allocator on a CPU."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _refuse(message: str) -> int:
    say(message, "causalfusion: ")
    return 2


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # characters that the terminal cannot encode are written out
            reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))  # cyclopts would read the line by itself, before `prepare`


if __name__ == "__main__":
    main()
