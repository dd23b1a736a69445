"""What `sample` and `edit` share: loading, reading and writing images, the facts of a run."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causalfusion import __version__
from causalfusion.config import SampleConfig
from causalfusion.config_json import to_dict
from causalfusion.distributed import World
from causalfusion.errors import UserError
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.tokens import StepEvent
from causalfusion.runtime import compute_dtype
from causalfusion.saved import WeightsName, latest_model


def save_png(pixels: np.ndarray, path: Path) -> None:
    """One image (H, W, 1 or 3) uint8."""
    from PIL import Image

    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


def read_image(path: Path, height: int, width: int, channels: int) -> Tensor:
    """(C, H, W) in [-1, 1]: an image file, cropped and scaled as in training."""
    from PIL import Image

    from causalfusion.data.source import UnreadableImage, decode_image
    from causalfusion.data.transforms import center_crop

    try:
        pixels = decode_image(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist") from None
    except (UnreadableImage, OSError) as error:
        raise UserError(f"image {path} cannot be read: {error}") from None
    if channels == 1:
        pixels = np.array(Image.fromarray(pixels).convert("L"))[..., None]
    if pixels.shape[:2] != (height, width):
        if height != width:
            raise UserError(
                f"image {path} has {pixels.shape[1]}x{pixels.shape[0]} pixels; expected {width}x{height}"
            )
        pixels = center_crop(pixels, height)
    return to_float(pixels.reshape(1, height, width, channels))[0]


def load_pipeline(model: Path, weights: WeightsName, precision: str, world: World) -> tuple[Pipeline, Path]:
    folder = latest_model(model)
    dtype = compute_dtype(precision)
    pipeline = Pipeline.load(folder, weights=weights, device=world.device, autocast_dtype=dtype)
    return pipeline, folder


def facts(
    pipeline: Pipeline, folder: Path, weights: str, precision: str, seed: int, settings: SampleConfig
) -> dict[str, Any]:
    return {
        "model": str(folder),
        "images_seen": pipeline.spec.images_seen,
        "weights": weights,
        "seed": seed,
        "settings": to_dict(settings),
        "precision": precision,
        "device": str(pipeline.device),
        "versions": {
            "causalfusion": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "argv": sys.argv[1:],
    }


def describe(event: StepEvent) -> str:
    return (
        f"AR step {event.ar_step}/{event.num_ar_steps}, "
        f"diffusion step {event.diffusion_step}/{event.num_diffusion_steps}"
    )


def to_float(images: np.ndarray) -> Tensor:
    """(n, C, H, W) in [-1, 1] from (n, H, W, C) uint8."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
