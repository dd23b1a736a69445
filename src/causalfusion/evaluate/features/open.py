"""Open an extractor by the name of its feature space: `open_extractor("inception")`.

| name | feature space | image size |
|---|---|---|
| `pixels`, `pixels:SIDE` | colours averaged down to 8x8 (SIDE x SIDE), in [-1, 1] | any size |
| `digits` | a classifier of scikit-learn's digits | 8x8, grey |
| `resnet-cifar:PATH` | a CIFAR ResNet; `resnet-cifar-jpeg:PATH` with JPEG before it | 32x32 |
| `inception`, `inception:PATH` | the Inception-v3 of FID, sFID and the Inception Score | any size |
| `model:RUN[:LAYER[:LEVEL]]` | a layer of a model of this package, clean or noised tokens | any size |
| `transformers:ID` | a Hugging Face vision model, by id or folder | any size |
| `module:attribute` | a user's own | its `image_size` |

Only features of one feature space can be compared: samples and their reference need the same extractor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from causalfusion.errors import UserError
from causalfusion.evaluate.features.extractor import Extractor, Features
from causalfusion.machine.runtime import select_device

__all__ = ["BUILT_IN", "NAMES", "Extractor", "Features", "open_extractor"]

NAMES = (
    "pixels, pixels:SIDE, digits, resnet-cifar:PATH, resnet-cifar-jpeg:PATH, inception, inception:PATH, "
    "model:RUN[:LAYER[:LEVEL]], transformers:ID, or module:attribute of your own"
)


def open_extractor(name: str, device: str = "cpu") -> Extractor:
    """The extractor of the feature space `name`, on a device. Raises UserError for an unknown name and for
    weights that are missing or damaged."""
    place = str(select_device(device))
    kind, colon, value = name.partition(":")
    if colon and not value:
        raise UserError(f"features are {name!r}; expected something after the colon: {NAMES}")
    if kind in _OPENERS:
        return _OPENERS[kind](value, place)
    if colon:
        from causalfusion.evaluate.features.user import open_user_extractor

        return open_user_extractor(name, place)
    raise UserError(f"features are {name!r}; expected {NAMES}")


def _open_pixels(side: str, device: str) -> Extractor:
    from causalfusion.evaluate.features.pixels import PixelsExtractor

    if not side:
        return PixelsExtractor()
    if not side.isdecimal() or int(side) < 1:
        raise UserError(f"features are 'pixels:{side}'; expected the side of the small images: pixels:8")
    return PixelsExtractor(int(side))


def _open_digits(value: str, device: str) -> Extractor:
    from causalfusion.evaluate.features.digits import DigitsExtractor

    if value:
        raise UserError(f"features are 'digits:{value}'; expected digits alone: it has nothing to choose")
    return DigitsExtractor()


def _open_resnet_cifar(path: str, device: str, *, jpeg: bool = False) -> Extractor:
    from causalfusion.evaluate.features.resnet_cifar import ResNetCifarExtractor

    if not path:
        name = "resnet-cifar-jpeg" if jpeg else "resnet-cifar"
        raise UserError(f"features are {name!r}; expected the classifier's weights: {name}:FILE.safetensors")
    return ResNetCifarExtractor(Path(path), device, jpeg=jpeg)


def _open_inception(path: str, device: str) -> Extractor:
    from causalfusion.evaluate.features.inception import InceptionExtractor, find_inception_weights

    return InceptionExtractor(Path(path) if path else find_inception_weights(), device)


def _open_transformers(model: str, device: str) -> Extractor:
    from causalfusion.evaluate.features.transformers import TransformersExtractor

    if not model:
        raise UserError("features are 'transformers'; expected a model: transformers:facebook/dinov2-base")
    return TransformersExtractor(model, device)


def _open_model(value: str, device: str) -> Extractor:
    from causalfusion.evaluate.features.model import ModelExtractor

    if not value:
        raise UserError("features are 'model'; expected a model: model:runs/digits, model:runs/digits:2:0.1")
    return ModelExtractor(value, device)


_OPENERS: dict[str, Callable[[str, str], Extractor]] = {
    "pixels": _open_pixels,
    "digits": _open_digits,
    "resnet-cifar": _open_resnet_cifar,
    "resnet-cifar-jpeg": partial(_open_resnet_cifar, jpeg=True),
    "inception": _open_inception,
    "model": _open_model,
    "transformers": _open_transformers,
}
"""Functions that open a built-in feature space, by its name. They take the text after the colon (empty: there
is none) and a device."""
BUILT_IN = tuple(_OPENERS)
"""Names of the built-in feature spaces, without what follows the colon."""
