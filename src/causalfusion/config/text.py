"""Settings of text: its place in training sequences, and its generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from causalfusion.errors import check, check_values


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Text in the sequences of a run."""

    tokenizer: str = ""
    """A tokenizer.json, a folder with one, a hub id; `train`: a byte-level BPE trained on the captions;
    `init`: that of the model that train.init names. Empty: a model without text."""
    vocab_size: int = 512
    """Vocabulary size of the tokenizer that is trained, markers included."""
    caption_first: float = 0.8
    """Fraction of the training sequences that are text, then image; the four fractions sum to 1."""
    image_first: float = 0.2
    """Fraction of the training sequences that are image, then text (captioning)."""
    image_only: float = 0.0
    """Fraction of the training sequences that are an image alone."""
    text_only: float = 0.0
    """Fraction of the training sequences that are a text alone."""
    caption_dropout: float = 0.1
    """Probability that a caption before its image is left empty, for guidance."""
    loss_coefficient: float = 0.3
    """Coefficient of the text cross-entropy; that of the diffusion loss is 1. With a larger one, images get
    worse and text no better (docs/results.md)."""
    examples_per_sequence: int = 1
    """Images, each with its caption, in one sequence."""
    image_context: Literal["clean", "noised"] = "clean"
    """Image tokens that later text attends to: clean copies, or the noised tokens themselves (Transfusion),
    which then form a single block: factorization.distribution = fixed."""
    max_context_timestep: int = 500
    """image_context = noised: timesteps of images before text are below this."""

    def __post_init__(self) -> None:
        check_values(self, "text")
        names = ("caption_first", "image_first", "image_only", "text_only")
        for name in names:
            check(0 <= getattr(self, name) <= 1, f"text.{name}", getattr(self, name), "a share in [0, 1]")
        total = sum(getattr(self, name) for name in names)
        check(abs(total - 1) < 1e-6, " + ".join(f"text.{n}" for n in names), round(total, 6), "1")
        check(0 <= self.caption_dropout < 1, "text.caption_dropout", self.caption_dropout, "in [0, 1)")
        check(self.loss_coefficient >= 0, "text.loss_coefficient", self.loss_coefficient, "0 or more")
        for name in ("vocab_size", "examples_per_sequence", "max_context_timestep"):
            check(getattr(self, name) >= 1, f"text.{name}", getattr(self, name), "at least 1")


@dataclass(frozen=True, kw_only=True)
class WriteConfig:
    """Generation of text."""

    max_tokens: int = 64
    """Largest number of tokens of a text; the model may end it earlier."""
    text_temperature: float = 0.0
    """0: always the most likely token; 1: sample from the model's probabilities."""
    top_k: int = 0
    """Sample from the k most likely tokens only; 0: from all."""
    top_p: float = 1.0
    """Sample only from the most likely tokens that together have this probability."""

    def __post_init__(self) -> None:
        check_values(self, "write")
        check(self.max_tokens >= 1, "write.max_tokens", self.max_tokens, "at least 1")
        check(self.text_temperature >= 0, "write.text_temperature", self.text_temperature, "0 or more")
        check(self.top_k >= 0, "write.top_k", self.top_k, "0 or more")
        check(0 < self.top_p <= 1, "write.top_p", self.top_p, "a number in (0, 1]")
