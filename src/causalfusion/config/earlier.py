"""Renaming settings of earlier versions.

`codec.path` became `codec.autoencoder`. `codec.kind` no longer exists: tokens are patches of latents if an
autoencoder is given, else of pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from causalfusion.errors import UserError

UNNAMED_AUTOENCODER = "autoencoder"
"""Placeholder for the path in files that say `codec.kind = "autoencoder"` and give none. Opening it fails, so
that pixels are never used by mistake."""


def rename_settings(values: dict[str, Any], source: str = "") -> dict[str, Any]:
    """Tables of settings under their current names. `source` names a file that the user wrote: a warning says
    what to change in it, and a contradiction raises UserError. It is empty for a file that this software
    wrote, in which `kind` overrode `path`."""
    codec = values.get("codec")
    if not isinstance(codec, dict) or not {"path", "kind"} & codec.keys():
        return values
    current = {key: value for key, value in codec.items() if key not in ("path", "kind")}
    if "path" in codec:
        current.setdefault("autoencoder", codec["path"])
    kind = codec.get("kind", "")
    if kind not in ("", "pixels", "autoencoder"):
        raise UserError(f"{source or 'settings'}: codec.kind is {kind!r}; expected pixels or autoencoder")
    given = current.get("autoencoder")
    if kind == "pixels":
        if source and given:
            raise UserError(
                f"{source} says codec.kind pixels and gives the autoencoder {given!r}; "
                "codec.autoencoder alone decides: remove one of the two"
            )
        current["autoencoder"] = ""
    elif kind == "autoencoder" and not given:
        current["autoencoder"] = UNNAMED_AUTOENCODER
    if source:
        old = " and ".join(f"codec.{name}" for name in ("kind", "path") if name in codec)
        warnings.warn(
            f"{source}: {old} became codec.autoencoder, the path of the autoencoder (none: pixels)",
            stacklevel=2,
        )
    return {**values, "codec": current}


def rename_options(tokens: Sequence[str]) -> list[str]:
    """A command line without `--codec.kind`, and with `--codec.autoencoder` instead of `--codec.path`. Raises
    UserError if the two contradict each other."""
    kept: list[str] = []
    kind: str | None = None
    takes_kind = False
    for token in tokens:
        option, equals, value = token.partition("=")
        if takes_kind:
            kind, takes_kind = token, False
        elif option == "--codec.kind":
            kind, takes_kind = value, not equals
        else:
            kept.append(f"--codec.autoencoder{equals}{value}" if option == "--codec.path" else token)
    if kept != list(tokens):
        note = "--codec.kind and --codec.path became --codec.autoencoder, the path of the autoencoder"
        warnings.warn(f"{note} (none: pixels)", stacklevel=2)
    if kind is None:
        return kept
    named = any(token.partition("=")[0] == "--codec.autoencoder" for token in kept)
    if kind == "pixels" and not named:
        return [*kept, "--codec.autoencoder="]
    if kind == "autoencoder" and named:
        return kept
    raise UserError(
        f"--codec.kind {kind} cannot be used {'with' if named else 'without'} --codec.autoencoder, "
        "which alone decides: give its path, or nothing for pixels"
    )
