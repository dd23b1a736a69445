"""Settings under the names that they had in earlier versions, brought to today's names.

`codec.path` is `codec.autoencoder`; `codec.kind` is gone: the tokens are patches of latents where an
autoencoder is given, else of pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from causalfusion.errors import UserError

UNNAMED_AUTOENCODER = "autoencoder"
"""Stands for the autoencoder where a file only says `codec.kind = "autoencoder"`: refused where it is not
there, so that pixels are never taken instead in silence."""


def rename_settings(values: dict[str, Any], source: str = "") -> dict[str, Any]:
    """Tables of settings under today's names. `source` names a file that the user wrote, who is told of what
    is to be changed in it; empty: files that this software wrote, in which `kind` overruled `path`."""
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
    """A command line without `--codec.kind`, and with `--codec.autoencoder` for `--codec.path`."""
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
        warnings.warn(
            "--codec.kind and --codec.path became --codec.autoencoder, the path of the autoencoder "
            "(none: pixels)", stacklevel=2,
        )  # fmt: skip
    if kind is None:
        return kept
    named = any(token.partition("=")[0] == "--codec.autoencoder" for token in kept)
    if kind == "pixels" and not named:
        return [*kept, "--codec.autoencoder="]
    if kind == "autoencoder" and named:
        return kept
    raise UserError(
        f"--codec.kind {kind} is not to be had {'with' if named else 'without'} --codec.autoencoder, "
        "which alone decides: its path, or nothing for pixels"
    )
