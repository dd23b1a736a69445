"""Features of a model of this package: `model:RUN[:LAYER[:LEVEL]]`, the mean of a layer's image tokens.

LAYER counts from 0, what enters the first block; negative ones count from the last; by default it is the
middle one. LEVEL is `clean` (the default) or a noise level, a share of the path from 0 to 1. The noise is a
function of the image's pixels, so that equal images have equal features.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from causalfusion.config.serialize import to_dict
from causalfusion.config.sizes import Fit
from causalfusion.evaluate.features.extractor import (
    Features,
    Images,
    as_rgb,
    check_images,
    exact_inference,
    to_array,
)
from causalfusion.files import hash_of
from causalfusion.generate.features import layer_number, read_layers, share_of
from causalfusion.generate.levels import CLEAN, level_text, parse_level, parse_place
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.read import fitted
from causalfusion.model.layers import num_layers
from causalfusion.saved.folder import latest_model
from causalfusion.weight_files import hash_weights


class ModelExtractor:
    """Pool of images of any size, which are cropped and scaled to the model's. Raises UserError for a layer
    or a level that the model does not have."""

    image_size = None

    def __init__(self, place: str, device: str = "cpu") -> None:
        run, layer, level = parse_place(place)
        self._pipeline = Pipeline.load(latest_model(Path(run)), device=device)
        config, spec = self._pipeline.model.config, self._pipeline.spec
        self._layer = layer_number(config, num_layers(config) // 2 if layer is None else layer)
        given = parse_level(level, f"the level of features model:{place}")
        self._share = None if given is None else share_of(self._pipeline, given)
        word = CLEAN if self._share is None else f"t{round(1000 * self._share)}"
        self.name = f"model:{_name_of(run)}-layer{self._layer}-{word}"
        self.fingerprint = hash_of(
            [
                "mean of tokens, 1",
                self._layer,
                level_text(self._share),
                hash_weights(self._pipeline.model.state_dict()),
                *(to_dict(part) for part in (spec.model, spec.diffusion, spec.factorization, spec.text)),
                {**to_dict(self._pipeline.codec.config), "autoencoder": ""},
                self._pipeline.codec.autoencoder_fingerprint,
            ]
        )

    def __call__(self, images: Images, /) -> Features:
        check_images(images, self.name)
        codec = self._pipeline.codec
        fit, channels = Fit(*self._pipeline.image_size), codec.config.image_channels
        pixels = torch.stack([fitted(image, fit, channels, "of the batch") for image in as_rgb(images)])
        with exact_inference():
            tokens = codec.encode_tokens(pixels.to(self._pipeline.device), None)
            found = read_layers(
                self._pipeline,
                tokens,
                [self._layer],
                timestep=self._share,
                image_indices=[_number_of(image.tobytes()) for image in images],
            )
        return Features(to_array(found[self._layer].mean(1)))


def _name_of(run: str) -> str:
    """The model's name in those of figures, where a dot would end it."""
    path = Path(run)
    return (path.resolve().name if path.exists() else run.replace("/", "-")).replace(".", "-")


def _number_of(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=6).digest(), "little")
