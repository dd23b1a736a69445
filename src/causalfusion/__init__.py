"""CausalFusion: causal diffusion transformers, between autoregression and diffusion (arXiv 2412.12095).

The public names are imported on first use, so that `import causalfusion` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from causalfusion.config import RunConfig, SampleConfig, WriteConfig
    from causalfusion.config.recipes import load_config
    from causalfusion.errors import UserError
    from causalfusion.generate.language import LanguagePipeline
    from causalfusion.generate.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = [
    "LanguagePipeline",
    "Pipeline",
    "RunConfig",
    "SampleConfig",
    "UserError",
    "WriteConfig",
    "__version__",
    "load_config",
]

_MODULES = {
    "LanguagePipeline": "generate.language",
    "Pipeline": "generate.pipeline",
    "RunConfig": "config",
    "SampleConfig": "config",
    "UserError": "errors",
    "WriteConfig": "config",
    "load_config": "config.recipes",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
