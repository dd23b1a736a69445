"""All settings: frozen dataclasses that validate themselves; recipes; conversion to JSON and back."""

from causalfusion.config.alignment import AlignConfig
from causalfusion.config.classifying import ClassifyConfig
from causalfusion.config.diffusion import DiffusionConfig, PredictionType
from causalfusion.config.distillation import DistillConfig
from causalfusion.config.factorization import FactorizationConfig
from causalfusion.config.finetuning import FinetuneConfig
from causalfusion.config.generation import OrderName, SampleConfig, SamplerChoice, SamplerName
from causalfusion.config.grafting import ImageWeightsConfig, LoraConfig
from causalfusion.config.language import NUM_MARKERS, LanguageConfig, ScalingConfig
from causalfusion.config.model import ModelConfig
from causalfusion.config.parts import (
    BiasConfig,
    EncoderConfig,
    HeadConfig,
    NormConfig,
    QKNormConfig,
    RopeConfig,
    RopeExtrapolation,
)
from causalfusion.config.settings import (
    CodecConfig,
    DataConfig,
    RunConfig,
    SourceName,
    SplitName,
)
from causalfusion.config.text import TextConfig, WriteConfig
from causalfusion.config.training import TrainConfig

__all__ = [
    "NUM_MARKERS",
    "AlignConfig", "BiasConfig", "ClassifyConfig", "CodecConfig", "DataConfig", "DiffusionConfig",
    "DistillConfig", "EncoderConfig", "FactorizationConfig", "FinetuneConfig", "HeadConfig",
    "ImageWeightsConfig", "LanguageConfig", "LoraConfig", "ModelConfig", "NormConfig", "OrderName",
    "PredictionType", "QKNormConfig", "RopeConfig", "RopeExtrapolation", "RunConfig", "SampleConfig",
    "SamplerChoice", "SamplerName", "ScalingConfig", "SourceName", "SplitName", "TextConfig", "TrainConfig",
    "WriteConfig",
]  # fmt: skip
