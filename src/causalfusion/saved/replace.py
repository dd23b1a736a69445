"""Putting a model's folder in its place when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from causalfusion.errors import UserError
from causalfusion.files import holds_anything, remove_leftovers, temporary_name


def replace_folder(
    folder: Path, write: Callable[[Path], None], file: str = "config.json", what: str = "a model"
) -> None:
    """A model's folder as `write` makes it, in place of a model that is there, which has this `file`. Raises
    UserError if it holds anything else, or cannot be written."""
    if not (folder / file).is_file() and holds_anything(folder):
        raise UserError(f"{folder} holds other things than {what}; give another --out")
    temporary = temporary_name(folder)
    remove_leftovers(folder.parent)
    try:
        write(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{folder} could not be written: {error}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
