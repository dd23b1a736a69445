"""Which weights of a model are of its text."""

from __future__ import annotations


def is_of_text(name: str) -> bool:
    """True for a weight that text tokens use: of a language model, one that it had before it drew."""
    if name.startswith(("text_", "norm_out.")):
        return True
    parts = name.split(".")
    return parts[0] == "blocks" and parts[2] != "image" and not parts[-1].startswith("lora_")
