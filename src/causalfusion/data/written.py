"""Pictures for people that the commands write beside their images, and which are no images of a set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BESIDE: dict[str, tuple[str, ...]] = {
    "sample": ("grid.png",),
    "edit": ("original.png", "mask.png", "sheet.png"),
    "complete": ("story.png",),
}
"""By command."""
SETTINGS = {"sample": "settings.json", "edit": "settings.json", "complete": "story.json"}
"""The file that says, by `command`, what wrote a folder."""


def written_settings(folder: Path, name: str = "settings.json") -> dict[str, Any] | None:
    """What one of these commands says in the folder of its images; None where none did."""
    try:
        settings = json.loads((folder / name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) and settings.get("command") in BESIDE else None


def pictures_beside(folder: Path) -> frozenset[str]:
    """Names of the pictures in the folder that are drawn for people. A photo that happens to be called
    grid.png, in a folder that none of the commands wrote, is an image."""
    found: set[str] = set()
    for name in sorted(set(SETTINGS.values())):
        settings = written_settings(folder, name)
        if settings is not None and SETTINGS[settings["command"]] == name:
            found |= set(BESIDE[settings["command"]])
    return frozenset(found)
