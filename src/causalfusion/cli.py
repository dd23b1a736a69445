"""`causalfusion`: the commands. A user's mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App, CycloptsError
from cyclopts.config import Dict

from causalfusion import __version__
from causalfusion.earlier_settings import rename_options
from causalfusion.errors import STOPPED, TrainingStopped, UserError
from causalfusion.presets import load_layers

app = App(
    name="causalfusion",
    help="Causal diffusion transformers: train, sample, edit, between autoregression and diffusion.",
    version=__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # `run` says "stopped"
)
for _command in (
    "train", "sample", "edit", "caption", "complete", "encode", "convert", "tokenizer", "doctor", "demo",
    "evaluate", "compare", "study", "plan", "estimate",
):  # fmt: skip
    app.command(f"causalfusion.commands.{_command}:app", name=_command)


GENERATING = ("sample", "edit", "complete", "evaluate")
SETTINGS_OF_MODEL = "sample.toml"
"""In a model's folder: how it is best sampled, beneath all that the user says."""


def config_names(tokens: Sequence[str]) -> list[str]:
    """The values of every `--config` on a command line: they are laid beneath its other options."""
    if tokens[:1] == ["estimate"]:  # which reads them itself, without the data that they name
        return []
    return values_of("--config", tokens)


def values_of(option: str, tokens: Sequence[str]) -> list[str]:
    values = []
    for place, token in enumerate(tokens):
        if token.startswith(f"{option}="):
            values.append(token.removeprefix(f"{option}="))
        elif token == option:
            values += tokens[place + 1 : place + 2]
    return values


def model_settings(tokens: Sequence[str]) -> list[str]:
    """The settings that the model of a generating command brings along, if it does."""
    if not tokens or tokens[0] not in GENERATING or {"--help", "-h"} & set(tokens):
        return []
    from causalfusion.saved import latest_model

    try:
        folder = latest_model(Path((values_of("--model", tokens) or ["shapes"])[-1]))
    except UserError:  # the command itself refuses it
        return []
    path = folder / SETTINGS_OF_MODEL
    return [str(path)] if path.is_file() else []


def evaluation_preset(tokens: Sequence[str]) -> list[str]:
    """The file of the named evaluation that `evaluate` is to follow, on the command line or in a --config."""
    if not tokens or tokens[0] != "evaluate" or {"--help", "-h"} & set(tokens):
        return []
    names = values_of("--preset", tokens) or [load_layers(config_names(tokens)).get("preset", "")]
    if not names[-1]:
        return []
    from causalfusion.evaluate.evaluation_presets import evaluation_file

    return [str(evaluation_file(names[-1]))]


def beneath(tokens: Sequence[str]) -> list[str]:
    """Names and files of the settings beneath a command line, the last on top. A preset decides all that
    figures depend on: a model's own settings do not count under it, nor where images are only read."""
    preset = evaluation_preset(tokens)
    own = [] if preset or values_of("--samples", tokens) else model_settings(tokens)
    return [*own, *preset, *config_names(tokens)]


def run(tokens: Sequence[str]) -> int:
    """The exit code of a command line."""
    try:
        tokens = rename_options(tokens)
        names = beneath(tokens)
        if names:
            source = ", ".join(names)
            # Under the command's name: beside it, the tables [train] and [sample] would pass for commands.
            layers = load_layers(names)
            for command in reversed(app.parse_commands(tokens)[0]):
                layers = {command: layers}
            app.config = (Dict(layers, source=source),)
        result = app(list(tokens), exit_on_error=False, print_error=False)
        return result if isinstance(result, int) else 0
    except (CycloptsError, UserError) as error:
        return _refuse(str(error))
    except OSError as error:
        where = error.filename or "the output"
        if error.errno == errno.ENOSPC:
            return _refuse(f"the disk is full while writing {where}; free some space and run again")
        return _refuse(f"{where}: {error.strerror or error}")
    except TrainingStopped as stopped:
        print(f"causalfusion: {stopped}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    finally:
        app.config = ()


def _refuse(message: str) -> int:
    first_line = " ".join(message.split())
    print(f"causalfusion: {first_line}", file=sys.stderr)
    return 2


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
