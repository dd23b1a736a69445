"""Putting a model's folder in its place when it is complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError

from causalfusion.errors import UserError
from causalfusion.files import LOCK_FILE, holds_anything, remove_leftovers, temporary_name

OWN = (
    *("*.json", "*.safetensors", "*.toml", "*.pt2", "*.jinja", "README.md", LOCK_FILE),
    *("adapter", "autoencoder", "figures", "language", "pictures", "state"),
)
"""Patterns of what a model's folder holds."""


def replace_folder(folder: Path, write: Callable[[Path], None], *, config: bytes = b"") -> None:
    """A model's folder as `write` makes it, in place of a model of ours that is there, or of a folder whose
    config.json is `config`: what was written before in another library's format. Raises UserError if it holds
    anything else, or cannot be written."""
    _require_replaceable(folder, config)
    temporary = temporary_name(folder)
    remove_leftovers(folder.parent)
    try:
        write(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"model {folder} could not be written: {error}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _require_replaceable(folder: Path, config: bytes) -> None:
    """Raises UserError for a folder with anything that is not of a model of ours."""
    if not holds_anything(folder):
        return
    file = folder / "config.json"
    found = file.read_bytes() if file.is_file() else b""
    if not (_is_ours(found) or (config and found == config)):
        what = "another library's model" if found else "other things than a model"
        raise UserError(f"{folder} holds {what}; give another --out")
    others = sorted(e.name for e in folder.iterdir() if not any(fnmatch(e.name, own) for own in OWN))
    if others:
        raise UserError(f"{folder} holds {others[0]} beside a model; give another --out, or move it away")


def _is_ours(config: bytes) -> bool:
    try:
        values = json.loads(config)
    except ValueError:
        return False
    return isinstance(values, dict) and str(values.get("format")).startswith("causalfusion-")
