"""All settings: frozen dataclasses that validate themselves; recipes; conversion to JSON and back."""

from causalfusion.config.diffusion import DiffusionConfig, PredictionType
from causalfusion.config.generation import OrderName, SampleConfig, SamplerName
from causalfusion.config.settings import (
    CodecConfig,
    DataConfig,
    FactorizationConfig,
    ModelConfig,
    RunConfig,
    SourceName,
    SplitName,
)
from causalfusion.config.text import TextConfig, WriteConfig
from causalfusion.config.training import TrainConfig

__all__ = [
    "CodecConfig", "DataConfig", "DiffusionConfig", "FactorizationConfig", "ModelConfig", "OrderName",
    "PredictionType", "RunConfig", "SampleConfig", "SamplerName", "SourceName", "SplitName", "TextConfig",
    "TrainConfig", "WriteConfig",
]  # fmt: skip
