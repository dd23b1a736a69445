"""The folder in which a run was started: where the relative paths among its settings begin.

It is written beside the training state alone, which never goes along with a published model. On another
machine it does not exist, and paths are then those of the current folder.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

from causalfusion.config.serialize import read_object
from causalfusion.data.guess import is_there
from causalfusion.data.names import find_path
from causalfusion.data.remote import is_url
from causalfusion.errors import UserError

AUTOENCODER_FOLDER = "autoencoder"
"""Folder in a self-contained model folder with the autoencoder that the model needs."""
DATA_FILE = "data.json"
"""In `state/` of a checkpoint: facts of the run's data, and the folder it was started in."""


def current_folder() -> str:
    """Where relative paths begin now; empty where the current folder was removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def started_in(model: Path) -> str:
    """The folder that the run of a model folder was last started in; empty where it is not known: for a
    model that is no checkpoint of a run, and for runs of earlier versions."""
    try:
        folder = read_object(model / "state" / DATA_FILE, "training state").get("folder")
    except UserError:  # none is there; resuming the run says what is wrong with a damaged one
        return ""
    return folder if isinstance(folder, str) else ""


def begins_elsewhere(folder: str, recorded: str) -> bool:
    """True for a relative path that was recorded by a run started in `folder`, and not in the current one."""
    relative = bool(recorded) and not recorded.startswith(("/", "~")) and not is_url(recorded)
    return bool(folder) and relative and folder != current_folder()


def found_from(folder: str, recorded: str) -> str:
    """A path, or a pattern of paths, that was recorded by a run started in `folder`: there, if something is,
    else as it is recorded."""
    if not begins_elsewhere(folder, recorded):
        return recorded
    place, pattern = os.path.join(folder, recorded), os.path.join(glob.escape(folder), recorded)
    if os.path.exists(find_path(place)):
        return place
    return pattern if is_there(pattern) else recorded


def same_place(folder: str, recorded: object, now: object) -> bool:
    """True if a path that was recorded by a run started in `folder`, and one of the current folder, lead to
    one file or folder."""
    if not (isinstance(recorded, str) and isinstance(now, str) and recorded and now):
        return False
    before = os.path.join(folder, os.path.expanduser(recorded))
    return os.path.realpath(before) == os.path.realpath(os.path.expanduser(now))


def autoencoder_place(folder: Path, recorded: str) -> str:
    """The autoencoder's path: in the model's folder, else as recorded, relative to that folder, to that in
    which its run was started, or to the current one."""
    for place in (folder / AUTOENCODER_FOLDER, folder / recorded):
        if place.exists():
            return str(place)
    return found_from(started_in(folder), recorded)
