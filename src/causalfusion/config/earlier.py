"""Renaming settings of earlier versions.

`codec.path` became `codec.autoencoder`. `codec.kind` no longer exists: tokens are patches of latents if an
autoencoder is given, else of pixels. `model.qk_norm`, which was true or false, became a table.
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
    return _rename_codec(_rename_qk_norm(values, source), source)


def _rename_qk_norm(values: dict[str, Any], source: str) -> dict[str, Any]:
    model = values.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("qk_norm"), bool):
        return values
    kind = "layer_norm" if model["qk_norm"] else "none"
    table = {"kind": kind}
    if source:
        warnings.warn(
            f'{source}: model.qk_norm became a table: qk_norm = {{ kind = "{kind}" }}', stacklevel=3
        )
    else:
        table |= {"over": "head", "weight": "learned", "eps": 1e-5}
    return {**values, "model": {**model, "qk_norm": table}}


def _rename_codec(values: dict[str, Any], source: str) -> dict[str, Any]:
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
            stacklevel=3,
        )
    return {**values, "codec": current}


def _rename_qk_norm_option(tokens: Sequence[str]) -> list[str]:
    renamed: list[str] = []
    for token in tokens:
        current = _QK_NORM.get(token, (token,))
        if len(current) > 1:
            warnings.warn(f"{token} became {' '.join(current)}", stacklevel=3)
        renamed += current
    return renamed


_QK_NORM = {
    "--model.qk-norm": ("--model.qk-norm.kind", "layer_norm"),
    "--model.no-qk-norm": ("--model.qk-norm.kind", "none"),
}


def rename_options(tokens: Sequence[str]) -> list[str]:
    """A command line without `--codec.kind`, and with `--codec.autoencoder` instead of `--codec.path`. Raises
    UserError if the two contradict each other."""
    kept: list[str] = []
    kind: str | None = None
    takes_kind = False
    tokens = _rename_qk_norm_option(tokens)
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
