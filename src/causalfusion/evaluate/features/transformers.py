"""Features of any vision model of Hugging Face: `transformers:ID`, or a folder in place of the id.

Pool is, for models of images and texts, the image features; for others the pooled output if the checkpoint
holds all weights of the pooling, else the class token, else the mean over all places. Logits are those of an
image classifier.

Images are resized and normalized by the model's own image processor, in its Pillow variant where that exists:
the torchvision variant gives other numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from causalfusion.encoders.hugging_face import import_transformers, load_whole, one_line
from causalfusion.errors import UserError
from causalfusion.evaluate.features.extractor import (
    Features,
    Images,
    as_rgb,
    check_images,
    exact_inference,
    to_array,
)
from causalfusion.files import hash_of
from causalfusion.weight_files import hash_weights

_CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")
_PROBE_SIDE = 64


class TransformersExtractor:
    """Pool, and logits of a classifier, of images of any size. Raises UserError for models that cannot be
    opened, lack weights, or are no deterministic vision models."""

    image_size = None

    def __init__(self, model: str, device: str = "cpu") -> None:
        transformers = import_transformers()
        self.name = f"transformers:{Path(model).resolve().name if Path(model).is_dir() else model}"
        self._model, missing, self._processor = load_whole(transformers, model)
        self._device = torch.device(device)
        self._model.float().to(self._device).eval().requires_grad_(False)
        self._pooler_is_whole = not missing
        self._has_class_token = any(n.endswith(_CLASS_TOKENS) for n, _ in self._model.named_parameters())
        self.fingerprint = hash_of(
            [
                json.dumps(self._processor.to_dict(), sort_keys=True, default=str),
                type(self._processor).__name__,
                ".".join(transformers.__version__.split(".")[:2]),
                type(self._model).__name__,
                self._pooler_is_whole,
                hash_weights(self._model.state_dict()),
            ]
        )
        self._probe()

    def __call__(self, images: Images, /) -> Features:
        check_images(images, self.name)
        pictures = [Image.fromarray(image) for image in as_rgb(images)]
        pixels: Tensor = self._processor(images=pictures, return_tensors="pt")["pixel_values"]
        with exact_inference():
            pool, logits = self._run(pixels.to(self._device, torch.float32))
        if pool.ndim != 2 or len(pool) != len(images):
            raise UserError(
                f"features {self.name}: {type(self._model).__name__} gives {tuple(pool.shape)} for "
                f"{len(images)} images; expected a model with one vector for each image"
            )
        return Features(to_array(pool), logits=None if logits is None else to_array(logits))

    def _run(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pool and logits from the image processor's pixels. Logits are None without a classifier."""
        image_features: Callable[..., Any] | None = getattr(self._model, "get_image_features", None)
        if image_features is not None:
            output = image_features(pixel_values=pixels)
            return getattr(output, "pooler_output", output), None
        base = self._model.base_model
        assert isinstance(base, nn.Module)
        if base is self._model:
            return self._pooled(base(pixel_values=pixels)), None
        seen: list[Any] = []
        hook = base.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            logits: Tensor = self._model(pixel_values=pixels).logits
        finally:
            hook.remove()
        return self._pooled(seen[0]), logits

    def _pooled(self, output: Any) -> Tensor:
        """Pool (B, D) from the output of the model without its head."""
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        if pooled is not None and self._pooler_is_whole:
            return pooled.flatten(1)
        hidden: Tensor = output.last_hidden_state
        if hidden.ndim == 4:
            return hidden.mean(dim=(2, 3))
        return hidden[:, 0] if self._has_class_token else hidden.mean(dim=1)

    def _probe(self) -> None:
        """Raises UserError for a model that does not run on images, or gives other features each time, as
        masked autoencoders do."""
        image = np.random.default_rng(0).integers(0, 256, (1, _PROBE_SIDE, _PROBE_SIDE, 3), dtype=np.uint8)
        try:
            first, second = self(image).pool, self(image).pool
        except UserError:
            raise
        except Exception as error:  # a model for something else may raise anything
            raise UserError(
                f"features {self.name}: {type(self._model).__name__} does not run on images alone "
                f"({one_line(error)}); expected a vision model"
            ) from error
        if not np.allclose(first, second, rtol=1e-3, atol=1e-3 * float(np.abs(first).max())):
            raise UserError(
                f"features {self.name}: {type(self._model).__name__} gives other features of the same image "
                "each time; expected a model without masking or sampling"
            )
