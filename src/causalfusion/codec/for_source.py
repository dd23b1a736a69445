"""The codec of a run's settings for the images of its data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from causalfusion.codec.codec import Codec, open_codec
from causalfusion.config import CodecConfig, DataConfig
from causalfusion.config.sizes import Fit
from causalfusion.data import ImageSource
from causalfusion.data.loader import load_indices
from causalfusion.errors import UserError, printable


def open_codec_for(source: ImageSource, data: DataConfig, config: CodecConfig) -> Codec:
    """The codec for images of the size of the first one, or for images of any size. Raises UserError, for
    images of other channels than the settings have from a model that is gone on from, too."""
    fit = Fit() if data.native else None
    channels, height, width = load_indices(source, np.arange(1), data, fit).images.shape[1:]
    if config.image_channels not in (0, channels):
        kinds = {1: "1 channel (grey, such as an .npz file may hold)", 3: "3 channels (colour)"}
        found, expected = (kinds.get(n, f"{n} channels") for n in (channels, config.image_channels))
        raise UserError(
            f"images of {printable(source.name)} have {found}, the model's {expected}; "
            "give images of as many, or another model"
        )
    config = replace(config, max_area=data.max_area if data.native else 0)
    return open_codec(config, image_shape=(channels, height, width))
