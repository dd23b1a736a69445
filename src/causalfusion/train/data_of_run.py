"""The data that a run was trained on, for commands that go on from it in any folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from causalfusion.data.guess import is_there
from causalfusion.data.remote import is_url
from causalfusion.errors import UserError, printable
from causalfusion.saved.folder import read_latest
from causalfusion.saved.started import begins_elsewhere, found_from, started_in
from causalfusion.train.resume import settings_of_run

PLACES = ("path", "cache", "class_words")
"""Settings of data that are paths."""
_WITHOUT_FILES = ("digits", "shapes", "in_context", "datasets")
"""Sources that are built in, or whose path may be a name on the hub."""


def data_of_run(folder: Path) -> dict[str, Any]:
    """The settings of data that the run of a model folder was trained with, paths found from the folder in
    which it was started; {} for a model that is no checkpoint of a run."""
    data, start = dict(settings_of_run(folder).get("data", {})), started_in(folder)
    return data | {name: found_from(start, data[name]) for name in PLACES if data.get(name)}


def data_of_training(model: str) -> dict[str, Any]:
    """The settings of the images that a run's model was trained on; {} for a model that is no run's. Raises
    UserError where there is no model."""
    images = read_latest(Path(model), data_of_run)[0]
    images.pop("cache", None)
    return images


def require_data(model: str, data: Mapping[str, Any], expected: str) -> None:
    """Raises UserError where the data settings of a model's training name none, or none that are here;
    `expected`: what to give instead."""
    place, name = next(((data[n], n) for n in ("cache", "path") if data.get(n)), ("", ""))
    built_in = data.get("source") in _WITHOUT_FILES and name != "cache"
    if not (place or built_in):
        raise UserError(f"{model} does not say on what it was trained; give {expected}")
    if built_in or is_url(place) or is_there(place):
        return
    start = read_latest(Path(model), started_in)[0]
    where = "is not here"
    if begins_elsewhere(start, place):
        where = f"is neither in {printable(start)}, where it was started, nor here"
    raise UserError(f"{model} was trained on data.{name} {printable(place)}, which {where}; give {expected}")
