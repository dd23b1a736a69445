"""The codec of a run's settings for the images of its data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from causalfusion.codec.codec import Codec, open_codec
from causalfusion.config import CodecConfig, DataConfig
from causalfusion.config.sizes import Fit
from causalfusion.data import ImageSource
from causalfusion.data.loader import load_indices


def open_codec_for(source: ImageSource, data: DataConfig, config: CodecConfig) -> Codec:
    """The codec for images of the size of the first one, or for images of any size. Raises UserError."""
    fit = Fit() if data.native else None
    channels, height, width = load_indices(source, np.arange(1), data, fit).images.shape[1:]
    config = replace(config, max_area=data.max_area if data.native else 0)
    return open_codec(config, image_shape=(channels, height, width))
