"""The files of an adapter, by name, and what is to be known of it besides its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FOLDER = "adapter"
"""Folder in a checkpoint, a run, or a repository of the hub, with the adapter that belongs to it."""
CONFIG_FILE, WEIGHTS_FILE, FACTS_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "causalfusion.json",
)


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """What is to be known of an adapter besides its numbers."""

    format: Literal["causalfusion-adapter-1"] = "causalfusion-adapter-1"
    kind: Literal["lora", "text-inversion"] = "lora"
    base: str = ""
    """The model that it was trained on, as it was named then."""
    fingerprint: str = ""
    """Hash of that model's weights."""
    word: str = ""
    """The new word of a text inversion."""
    classes: list[str] = field(default_factory=list)
    """New classes, in the order of their rows."""
    images_seen: int = 0
