"""Networks without memory, which get their weights from a file or are only counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DRAWS = frozenset(
    {
        Tensor.normal_,
        Tensor.uniform_,
        torch.nn.init.normal_,
        torch.nn.init.uniform_,
        torch.nn.init.kaiming_uniform_,
    }
)


class _NoDraws(TorchFunctionMode):
    """Random initialisation leaves tensors as they are."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@contextmanager
def skeleton() -> Iterator[None]:
    """Modules built here have parameters with shapes and no memory.

    The meta device alone would draw for them, in Python, for which torch imports its compiler: a second.
    """
    with torch.device("meta"), _NoDraws():
        yield
