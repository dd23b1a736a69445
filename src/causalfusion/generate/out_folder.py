"""The folder that a command writes images to: its own earlier ones are replaced, others' are left alone.

A file of settings says what wrote the folder and whether it came to its end. It is the first thing that a
command touches, so that a command that is killed never leaves a folder that passes as whole.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from causalfusion.data.written import BESIDE, SETTINGS, written_settings
from causalfusion.errors import UserError
from causalfusion.files import write_whole
from causalfusion.machine.progress import tell

PART = ".part-"
"""Begins the names of what is put together at the end."""


def image_name(index: int) -> str:
    """An image of `sample`."""
    return f"{index:06d}.png"


def files_of(settings: dict[str, Any]) -> Iterator[str]:
    """Names of the files that belong to a folder with these settings."""
    command = settings.get("command", "")
    yield from BESIDE.get(command, ())
    if command == "sample":
        first, count = settings.get("first", 0), settings.get("num", 0)
        if isinstance(first, int) and isinstance(count, int):
            yield from map(image_name, range(first, first + min(count, 10**7)))
        yield "samples.npz"
    elif command == "edit":
        count = settings.get("variants", 0)
        yield from (f"edited-{index:02d}.png" for index in range(count if isinstance(count, int) else 0))
    elif command == "complete":
        elements = settings.get("elements", [])
        made = [e for e in elements if isinstance(e, dict) and e.get("from") == "model"]
        yield from (name for e in made if isinstance(name := e.get("image"), str) and "/" not in name)


def settings_there(folder: Path, command: str) -> dict[str, Any] | None:
    """The settings of an earlier run of the same command in the folder. Raises UserError where the file of
    settings is something else's."""
    path = folder / SETTINGS[command]
    if not path.exists():
        return None
    settings = written_settings(folder, path.name)
    if settings is None or settings["command"] != command:
        whose = "of something else" if settings is None else f"of `{settings['command']}`"
        raise UserError(f"{folder} holds a {path.name} {whose}; give another --out")
    return settings


def check_room(folder: Path, command: str, names: Iterable[str], earlier: dict[str, Any] | None) -> None:
    """Refuse to write over files that no earlier run of the command wrote; say what else is there."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--out {folder} is a file; expected a folder, or the name of a new one")
    there = {entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")}
    own = {SETTINGS[command], *files_of(earlier or {})}
    others = sorted(there - own)
    taken = sorted(set(names) & set(others))
    if taken:
        raise UserError(
            f"{folder} holds {taken[0]}, which no earlier `{command}` wrote there; give another --out, or "
            "move it away"
        )
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        warnings.warn(
            f"{folder} holds {len(others)} other file{'s' * (len(others) > 1)} ({shown}), left as "
            f"{'they are' if len(others) > 1 else 'it is'}",
            stacklevel=2,
        )


def begin(folder: Path, settings: dict[str, Any], earlier: dict[str, Any] | None, keep: bool) -> None:
    """Make the folder one of these settings, unfinished. Files of the earlier run go, unless they are kept to
    go on from."""
    path = folder / SETTINGS[settings["command"]]
    if earlier is not None and not keep:
        write_settings(path, {**earlier, "finished": False})
        old = {name for name in files_of(earlier) if (folder / name).exists()}
        for name in old | {e.name for e in os.scandir(folder) if e.name.startswith(PART)}:
            (folder / name).unlink(missing_ok=True)
        if old:
            files = f"{len(old)} file{'s' * (len(old) > 1)} of an earlier {earlier['command']}"
            tell(f"note: {folder}: {files} replaced (another --out keeps both)", stream=sys.stderr)
    write_settings(path, {**settings, "finished": False})


def finish(folder: Path, settings: dict[str, Any]) -> None:
    """Say that all is there."""
    write_settings(folder / SETTINGS[settings["command"]], {**settings, "finished": True})


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    write_whole(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
