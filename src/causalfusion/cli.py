"""`causalfusion`: the commands. A user's mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from cyclopts.config import Dict

from causalfusion import __version__
from causalfusion.errors import UserError
from causalfusion.presets import load_layers

app = App(
    name="causalfusion",
    help="Causal diffusion transformers: train, sample, edit, between autoregression and diffusion.",
    version=__version__,
    result_action="return_value",
)
for _command in ("train", "sample", "edit", "encode", "convert", "doctor", "demo"):
    app.command(f"causalfusion.commands.{_command}:app", name=_command)


def config_names(tokens: Sequence[str]) -> list[str]:
    """The values of every `--config` on a command line: they are laid beneath its other options."""
    names = []
    for place, token in enumerate(tokens):
        if token.startswith("--config="):
            names.append(token.removeprefix("--config="))
        elif token == "--config":
            names += tokens[place + 1 : place + 2]
    return names


def run(tokens: Sequence[str]) -> int:
    """The exit code of a command line."""
    try:
        names = config_names(tokens)
        if names:
            source = ", ".join(names)
            # Under the command's name: beside it, the tables [train] and [sample] would pass for commands.
            app.config = (Dict({tokens[0]: load_layers(names)}, source=source),)
        result = app(list(tokens), exit_on_error=False, print_error=False)
        return result if isinstance(result, int) else 0
    except (CycloptsError, UserError) as error:
        return _refuse(str(error))
    except OSError as error:
        where = error.filename or "the output"
        if error.errno == errno.ENOSPC:
            return _refuse(f"the disk is full while writing {where}; free some space and run again")
        return _refuse(f"{where}: {error.strerror or error}")
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
