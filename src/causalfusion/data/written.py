"""Overview pictures that the commands write beside their images, and that are not images of a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BESIDE: dict[str, tuple[str, ...]] = {
    "sample": ("grid.png",),
    "edit": ("original.png", "mask.png", "sheet.png"),
    "complete": ("story.png",),
}
"""Names of these pictures by command."""
SETTINGS = {"sample": "settings.json", "edit": "settings.json", "complete": "story.json"}
"""Name, by command, of the file whose field `command` tells which command wrote a folder."""


def written_settings(folder: Path, name: str = "settings.json") -> dict[str, Any] | None:
    """The settings that one of these commands wrote beside its images; None if there are none."""
    try:
        settings = json.loads((folder / name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) and settings.get("command") in BESIDE else None


def pictures_beside(folder: Path) -> frozenset[str]:
    """Names of the overview pictures in a folder. A photo that happens to be called grid.png, in a folder
    that none of the commands wrote, is an image."""
    found: set[str] = set()
    for name in sorted(set(SETTINGS.values())):
        settings = written_settings(folder, name)
        if settings is not None and SETTINGS[settings["command"]] == name:
            found |= set(BESIDE[settings["command"]])
    return frozenset(found)
