"""Extractors of a user: `module:attribute`, from the working directory or installed.

The attribute is an object, or a class that is created without arguments (or with `device`, if it takes one).
It follows the protocol `Extractor` and returns `causalfusion.evaluate.features.open.Features`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from causalfusion.errors import UserError
from causalfusion.evaluate.features.extractor import Extractor, Features, Images, check_images
from causalfusion.evaluate.features.open import BUILT_IN

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
_CONTRACT = (
    "expected name (letters, digits, _ . : -; none of ours), fingerprint (a text that changes with the "
    "numbers), image_size (a side, or None) and a call with images (B, H, W, C) uint8 that returns Features"
)


class UserExtractor:
    """A user's extractor. Raises UserError for attributes or features that are not as expected."""

    def __init__(self, inner: Any, where: str) -> None:
        self._where = where
        self._call: Callable[[Images], object] = inner
        self.name: str = self._attribute(inner, "name", _is_name)
        self.fingerprint: str = self._attribute(
            inner, "fingerprint", lambda value: isinstance(value, str) and bool(value.strip())
        )
        self.image_size: int | None = self._attribute(inner, "image_size", _is_side)
        if not callable(inner):
            raise UserError(f"features {where} cannot be called; {_CONTRACT}")

    def __call__(self, images: Images, /) -> Features:
        check_images(images, self.name, self.image_size)
        try:
            found = self._call(images)
        except UserError:
            raise
        except Exception as error:  # a user's code may raise anything
            raise UserError(
                f"features {self._where} failed on images {images.shape} ({_in_words(error)}); {_CONTRACT}"
            ) from error
        if not isinstance(found, Features):
            raise UserError(f"features {self._where} returned {type(found).__name__}; {_CONTRACT}")
        pool = self._array(found.pool, "pool", len(images))
        spatial, logits = (
            None if values is None else self._array(values, word, len(images))
            for values, word in ((found.spatial, "spatial"), (found.logits, "logits"))
        )
        return Features(pool, spatial, logits)

    def _attribute(self, inner: Any, attribute: str, is_right: Callable[[object], bool]) -> Any:
        """An attribute of the user's extractor. Raises UserError where it is missing or not right."""
        if not hasattr(inner, attribute):
            raise UserError(f"features {self._where} have no {attribute}; {_CONTRACT}")
        value = getattr(inner, attribute)
        if not is_right(value):
            raise UserError(f"features {self._where}: {attribute} is {value!r}; {_CONTRACT}")
        return value

    def _array(self, values: object, word: str, count: int) -> NDArray[np.float32]:
        """Features as (count, D) float32. Raises UserError unless they are finite numbers of this shape."""
        try:
            array = np.asarray(values, dtype=np.float32)
        except (TypeError, ValueError):
            array = np.empty(0, np.float32)
        if array.ndim != 2 or len(array) != count or not np.isfinite(array).all():
            raise UserError(
                f"features {self._where}: {word} of {count} images has shape {np.shape(array)}, or is not "
                f"finite; expected ({count}, D) numbers"
            )
        return array


def open_user_extractor(name: str, device: str = "cpu") -> Extractor:
    """The extractor `module:attribute`. Raises UserError where it cannot be imported or created."""
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise UserError(
            f"features are {name!r}; expected module:attribute, as in my_features:Edges, or one of "
            f"{', '.join(BUILT_IN)}"
        )
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        inner = getattr(_import(module, name), attribute, None)
        if inner is None:
            raise UserError(f"features are {name!r}; the module {module} has no {attribute}")
        return UserExtractor(_create(inner, name, device) if isinstance(inner, type) else inner, name)
    finally:
        sys.path[:] = before


def _import(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"features {name}: importing {module} failed ({error})") from error
        raise UserError(
            f"features are {name!r}; there is no module {module}, neither in the working directory "
            f"{os.getcwd()} nor installed"
        ) from None
    except Exception as error:  # a user's file may raise anything
        raise UserError(f"features {name}: importing {module} failed ({_in_words(error)})") from error


def _create(cls: type, name: str, device: str) -> object:
    try:
        return cls(device=device) if "device" in inspect.signature(cls).parameters else cls()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"features {name}: making {cls.__name__} failed ({_in_words(error)})") from error


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(_NAME.fullmatch(value)) and value.split(":")[0] not in BUILT_IN


def _is_side(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)
