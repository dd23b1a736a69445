"""A model as a pipeline of diffusers: importing this takes diffusers along, which nothing else here does."""

from __future__ import annotations

from causalfusion.interop.diffusers.components import CausalFusionModel, TextTokenizer
from causalfusion.interop.diffusers.modular import CausalFusionARLoop, CausalFusionBlocks
from causalfusion.interop.diffusers.pipeline import CausalFusionPipeline, seed_of

__all__ = [
    "CausalFusionARLoop",
    "CausalFusionBlocks",
    "CausalFusionModel",
    "CausalFusionPipeline",
    "TextTokenizer",
    "seed_of",
]
