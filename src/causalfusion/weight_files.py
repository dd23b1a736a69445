"""Reading and writing files of weights, with checks of their types, values and shapes."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save_file as save_for_the_user
from torch import Tensor

from causalfusion.errors import UserError

DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
"""Accepted types of weights, by their names in safetensors."""
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of weights by name, read from the file's header alone. Raises UserError for a file that is
    damaged or holds types other than DTYPES."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                dtype = part.get_dtype()
                if dtype not in DTYPES:
                    raise UserError(
                        f"{path}: {name} is stored as {dtype}; expected one of "
                        f"{', '.join(DTYPES.values())}: convert the weights"
                    )
                shapes[name] = tuple(part.get_shape())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); the file is damaged or cut short") from error
    return shapes


def save_file(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors, of any device, to a file that others may read as they may any new file of the user's;
    safetensors 0.8 makes its files readable by the user alone."""
    file.touch()
    mode = file.stat().st_mode
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_for_the_user(on_cpu, file, metadata={"format": "pt"})
    file.chmod(mode)


def share_saved(folder: Path) -> None:
    """Let others read the weights that another library saved with safetensors, as they may the configuration
    beside them."""
    mode = (folder / "config.json").stat().st_mode
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors as they are stored. Raises UserError as `read_shapes` does, and for values that are not
    finite."""
    read_shapes(path)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); the file is damaged or cut short") from error
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise UserError(
                f"{path}: {name} holds values that are not finite; take another checkpoint, the training "
                "that wrote this one had diverged"
            )
    return weights


def fingerprint_of(weights: Mapping[str, Tensor]) -> str:
    """32 hexadecimal digits that tell weights apart, alike for those that are stored in another number format
    without loss."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        value = weights[name].detach().float().cpu().contiguous()
        found.update(f"{name}{tuple(value.shape)}".encode() + value.numpy().tobytes())
    return found.hexdigest()


def write_weights(
    path: Path, shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]], values: Iterable[Tensor]
) -> None:
    """A .safetensors file of weights that are made one after another, in the order of `shapes`, so that no
    more than one is in memory. Raises OSError."""
    names = {getattr(torch, name): code for code, name in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in shapes.items():
        begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, (shape, dtype)), value in zip(shapes.items(), values, strict=True):
            assert (tuple(value.shape), value.dtype) == (shape, dtype), name
            file.write(value.contiguous().view(torch.uint8).numpy().data)


def count_blocks(names: Mapping[str, object]) -> int:
    """The number of transformer blocks that these names of weights belong to."""
    return max((int(match[1]) + 1 for match in map(_BLOCK.match, names) if match), default=0)


def require_same_names(
    found: Collection[str], expected: Collection[str], where: str, what: str, remedy: str = ""
) -> None:
    """Raises UserError for the first missing or unexpected name; `what` is the kind of thing it names, and
    `remedy` ends the message."""
    for word, names in (
        ("lacks", sorted(set(expected) - set(found))),
        ("has the unexpected", sorted(set(found) - set(expected))),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{where} {word} {what} {names[0]}{more}{remedy}")


def require_same_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raises UserError, naming the weight, if one is missing, unexpected or of another shape."""
    require_same_names(found, expected, where, "weight", "; the weights do not fit the model's config")
    for key, shape in found.items():
        if shape != expected[key]:
            raise UserError(f"{where}: {key} has shape {shape}, expected {expected[key]}")


def read_pickle(path: Path) -> object:
    """The content of a file written by torch.save: tensors, plain values and argparse.Namespace.

    Executes nothing: raises UserError for a file that contains code, and for a damaged one.
    """
    try:
        # Memory-mapped, so that the optimizer's state, two thirds of a checkpoint, is never read.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise UserError(
                f"{path} wants to run {refused[1]} when it is read; only tensors, plain values and "
                "argparse.Namespace are: it was refused and nothing was executed"
            ) from error
        raise _damaged(path, "it holds no pickle that can be read") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception | str) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return UserError(f"{path} cannot be read as a checkpoint ({reason}); it is damaged or of another kind")


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits that the names, shapes and bytes of all weights decide, whatever file they come from."""
    import hashlib

    digest = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]
