"""Settings that follow from the path of the data: the kind of source, or the settings of a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from causalfusion.config.serialize import read_json
from causalfusion.errors import UserError
from causalfusion.vocabulary.read import Line

IMAGES_OF_CACHE = ("source", "split", "image_size")
"""Settings that say from which images a cache was made."""

OF_IMAGES = ("encode", "codec train", "codec evaluate", "tokenizer train")
"""Commands that are of no use without data of the user's; others check it themselves."""


def settle_data(line: Line, layers: dict[str, Any]) -> None:
    """Add the kind of source at `data.path`, or the settings of the images in a cache, to the options of a
    line that do not give them. Several paths become one pattern. Raises UserError for a path without data."""
    if line.command.get("--data.path") is not None:
        _settle_source(line, layers.get("data", {}))
        _settle_cache(line, layers.get("data", {}))


def _settle_source(line: Line, beneath: dict[str, Any]) -> None:
    """A source on the command line is kept, and so is that of the file which gives the path."""
    from causalfusion.data import combine_paths, guess_source

    named = beneath.get("path") or ""
    paths = line.given.get("--data.path") or ([named] if named and "source" not in beneath else [])
    known = "source" in beneath or "--data.cache" in line.given
    if "--data.path" in line.given:
        line.given["--data.path"] = [combine_paths(paths)]
    told = known or "--data.source" in line.given or "--texts" in line.given
    if not paths and not told and line.command.name in OF_IMAGES:
        raise UserError(
            f"{line.command.name} needs data: give the path of images (a folder, shards, .jsonl, .npz), such "
            f"as causalfusion {line.command.name} photos, or --data.source digits"
        )
    if not paths or "--data.source" in line.given:
        return
    if not any(paths):
        if not known:
            raise UserError("data.path is ''; expected a folder, shards, a .jsonl or an .npz file")
        return
    try:
        kind = guess_source(paths)
    except UserError:
        if known or line.command.name == "estimate":
            return  # the source itself reports what is wrong with its path
        raise
    if kind != "cache":
        line.given["--data.source"] = [kind]
    elif line.command.name in ("train", "distill", "finetune", "estimate"):
        if line.given.pop("--data.path", None) is None:  # a file's, where it would be the images' path, too
            line.given["--data.path"] = [""]
        line.given["--data.cache"] = [combine_paths(paths)]
    else:
        raise UserError(f"{paths[0]} holds latents, written by causalfusion encode; expected images")


def _settle_cache(line: Line, beneath: dict[str, Any]) -> None:
    """Settings of the images that are not given are those with which the cache was made."""
    cache = line.value("--data.cache") or beneath.get("cache")
    if not cache or line.command.name not in ("train", "distill", "finetune"):
        return
    try:
        manifest = read_json(Path(cache) / "manifest.json", "cache")
    except UserError:  # training reports what is wrong with it
        return
    made = manifest.get("data") if isinstance(manifest, dict) else None
    if not isinstance(made, dict):
        return
    of_any_size = ("max_area",) if made.get("image_size") == "native" else ()
    for name in IMAGES_OF_CACHE + of_any_size:
        option = f"--data.{name}".replace("_", "-")
        if name in made and name not in beneath and option not in line.given:
            line.given[option] = [str(made[name])]
