"""What follows from the path of the data: the source, where nobody says it."""

from __future__ import annotations

from typing import Any

from causalfusion.errors import UserError
from causalfusion.vocabulary.read import Line


def settle_data(line: Line, layers: dict[str, Any]) -> None:
    """Put one `data.path`, and the source that it leads to, among the options of a line. A source on the
    command line counts; so does that of the file which names the path. Raises UserError for a path that is no
    data."""
    if line.command.get("--data.path") is None:
        return
    from causalfusion.data import guess_source, one_path

    beneath = layers.get("data", {})
    named = beneath.get("path") or ""
    paths = line.given.get("--data.path") or ([named] if named and "source" not in beneath else [])
    if not paths:
        return
    if "--data.path" in line.given:
        line.given["--data.path"] = [one_path(paths)]
    if "--data.source" in line.given:
        return
    try:
        kind = guess_source(paths)
    except UserError:
        if "source" in beneath or "--data.cache" in line.given or line.command.name == "estimate":
            return  # the source itself says what is wrong with its path
        raise
    if kind != "cache":
        line.given["--data.source"] = [kind]
    elif line.command.name in ("train", "estimate"):
        line.given.pop("--data.path", None)
        line.given["--data.cache"] = [one_path(paths)]
    else:
        raise UserError(f"{paths[0]} holds latents, written by causalfusion encode; expected images")
