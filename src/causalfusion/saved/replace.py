"""Putting a model's folder in its place when it is complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError

from causalfusion.errors import UserError, printable
from causalfusion.files import LOCK_FILE, holds_anything, remove_leftovers, temporary_name
from causalfusion.saved.earlier_formats import is_ours

OWN = (
    *("*.json", "*.safetensors", "*.toml", "*.pt2", "*.jinja", "README.md", LOCK_FILE),
    *("adapter", "autoencoder", "figures", "language", "pictures", "state"),
)
"""Patterns of what a model's folder holds."""


def is_model(folder: Path) -> bool:
    """Whether the config.json of a folder is that of a model of ours."""
    try:
        return is_ours(json.loads((folder / "config.json").read_bytes()))
    except (OSError, ValueError):
        return False


def replace_folder(
    folder: Path,
    write: Callable[[Path], None],
    is_own: Callable[[Path], bool] = is_model,
    what: str = "a model of causalfusion",
    beside: Iterable[Path] = (),
    origin: str | None = None,
) -> None:
    """A model's folder as `write` makes it, with copies of those of the paths `beside` that exist, in place
    of one that is there: that `is_own`, was made of the same (`origin`, as its settings have it; None: of
    anything), and holds nothing else. Raises UserError if it is another or does, or cannot be written."""
    if holds_anything(folder):
        if not is_own(folder):
            raise UserError(f"{folder} holds other things than {what}; give another --out")
        if origin is not None:
            _refuse_another(folder, origin)
        others = sorted(e.name for e in folder.iterdir() if not any(fnmatch(e.name, own) for own in OWN))
        if others:
            raise UserError(f"{folder} holds {others[0]} beside {what}; give another --out, or move it away")
    temporary = temporary_name(folder)
    remove_leftovers(folder.parent)
    try:
        write(temporary)
        _copy_into(temporary, beside)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{folder} could not be written: {error}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _refuse_another(model: Path, origin: str) -> None:
    """Raises UserError for a model that was made of something else than `origin`: who replaces one makes it
    from the same again."""
    found = json.loads((model / "config.json").read_bytes()).get("origin", "")
    if found != origin:
        told = f", {found}" if found else ""
        raise UserError(
            f"{printable(model)} holds another model{printable(told)}; give another --out, or move it away"
        )


def _copy_into(folder: Path, paths: Iterable[Path]) -> None:
    """Copy those of these files and folders that are there, under their own names."""
    for path in paths:
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        elif path.is_file():
            shutil.copyfile(path, folder / path.name)
