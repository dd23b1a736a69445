"""Feature spaces by name: `open_extractor("inception")`.

| name | what it is | takes |
|---|---|---|
| `pixels`, `pixels:SIDE` | colours averaged down to 8x8 (SIDE x SIDE), in [-1, 1] | any size |
| `digits` | a classifier of scikit-learn's digits | 8x8, grey |
| `resnet-cifar:PATH` | a CIFAR ResNet; `resnet-cifar-jpeg:PATH` with JPEG before it | 32x32 |
| `inception`, `inception:PATH` | the Inception-v3 of FID, sFID and the Inception Score | any size |
| `transformers:ID` | a Hugging Face vision model, by id or folder | any size |
| `module:attribute` | a user's own | as it says |

Features compare only within one feature space: the same extractor for samples and for their reference.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from causalfusion.errors import UserError
from causalfusion.evaluate.features.extractor import Extractor, Features
from causalfusion.machine.runtime import select_device

__all__ = ["NAMES", "Extractor", "Features", "open_extractor"]

NAMES = (
    "pixels, pixels:SIDE, digits, resnet-cifar:PATH, resnet-cifar-jpeg:PATH, inception, inception:PATH, "
    "transformers:ID, or module:attribute of your own"
)


def open_extractor(name: str, device: str = "cpu") -> Extractor:
    """The feature space of that name. Raises UserError where there is none, or its weights are missing."""
    place = str(select_device(device))
    kind, colon, value = name.partition(":")
    openers: dict[str, Callable[[], Extractor]] = {
        "pixels": lambda: _pixels(value if colon else "8"),
        "digits": lambda: _digits(name),
        "resnet-cifar": lambda: _resnet_cifar(name, value, place, jpeg=False),
        "resnet-cifar-jpeg": lambda: _resnet_cifar(name, value, place, jpeg=True),
        "inception": lambda: _inception(value, place),
        "transformers": lambda: _transformers(value, place),
    }
    if colon and not value:
        raise UserError(f"features are {name!r}; expected something after the colon: {NAMES}")
    if kind in openers:
        return openers[kind]()
    if colon:
        from causalfusion.evaluate.features.user import open_user_extractor

        return open_user_extractor(name, place)
    raise UserError(f"features are {name!r}; expected {NAMES}")


def _pixels(side: str) -> Extractor:
    from causalfusion.evaluate.features.pixels import PixelExtractor

    if not side.isdecimal() or int(side) < 1:
        raise UserError(f"features are 'pixels:{side}'; expected the side of the small images: pixels:8")
    return PixelExtractor(int(side))


def _digits(name: str) -> Extractor:
    from causalfusion.evaluate.features.digits import DigitsExtractor

    if name != "digits":
        raise UserError(f"features are {name!r}; expected digits alone: it has nothing to choose")
    return DigitsExtractor()


def _resnet_cifar(name: str, path: str, device: str, *, jpeg: bool) -> Extractor:
    from causalfusion.evaluate.features.resnet_cifar import ResNetCifarExtractor

    if not path:
        raise UserError(f"features are {name!r}; expected the classifier's weights: {name}:FILE.safetensors")
    return ResNetCifarExtractor(Path(path), device, jpeg=jpeg)


def _inception(path: str, device: str) -> Extractor:
    from causalfusion.evaluate.features.inception import InceptionExtractor, find_weights

    return InceptionExtractor(Path(path) if path else find_weights(), device)


def _transformers(model: str, device: str) -> Extractor:
    from causalfusion.evaluate.features.transformers import TransformersExtractor

    if not model:
        raise UserError("features are 'transformers'; expected a model: transformers:facebook/dinov2-base")
    return TransformersExtractor(model, device)
