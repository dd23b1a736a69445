"""Checks of a training state: the right tensors, of the right kind, all finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from causalfusion.errors import UserError
from causalfusion.train.sharding import local_part
from causalfusion.weight_files import require_same_names


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Name of the first tensor that holds a NaN or an infinity; empty where there is none. Of a sharded
    tensor, this process's part counts."""
    found = [(name, torch.isfinite(local_part(tensor.detach())).all()) for name, tensor in tensors]
    return next((name for name, finite in found if not finite), "")  # the GPU is asked once all is queued


def check_tensors(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError, one line that names the file `where` and the tensor, unless both hold the same names,
    shapes and kinds of numbers, and all stored numbers are finite."""
    check_layout(stored, expected, where)
    wrong = first_not_finite(stored.items())
    if wrong:
        raise UserError(f"{where}: {wrong} holds values that are not finite")


def check_layout(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Names, shapes and kinds of numbers alone."""
    require_same_names(stored, expected, where, "tensor")
    for name, tensor in stored.items():
        found, wanted = (f"{str(t.dtype)[6:]} {tuple(t.shape)}" for t in (tensor, expected[name]))
        if found != wanted:
            raise UserError(f"{where}: {name} is {found}, expected {wanted}")
