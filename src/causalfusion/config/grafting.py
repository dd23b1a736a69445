"""Images beside the text of one transformer: weights of their own for image tokens, and low-rank additions to
the shared ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from causalfusion.errors import check, check_values


@dataclass(frozen=True, kw_only=True)
class ImageWeightsConfig:
    """The weights of the blocks that image tokens go through, in a model with text."""

    kind: Literal["shared", "own"] = "shared"
    """shared: those of the text; own: norms, projections of attention and MLP of their own in every block
    (BAGEL, LMFusion), joined in attention."""
    hidden_size: int = 0
    """own: width of image tokens; 0: that of the text, whose weights they then begin as copies of."""
    mlp_hidden: int = 0
    """own: width of the MLP's hidden layer; 0: that of the text's, in proportion to the width."""

    def __post_init__(self) -> None:
        for name, most in (("hidden_size", 65_536), ("mlp_hidden", 1_000_000)):
            value, where = getattr(self, name), f"model.image_weights.{name}"
            check(0 <= value <= most, where, value, f"0 to {most}")
            check(not value or self.kind == "own", where, value, "0, unless model.image_weights.kind is own")
        check(
            self.hidden_size % 4 == 0, "model.image_weights.hidden_size", self.hidden_size, "a multiple of 4"
        )


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank additions to the linear layers of the blocks that the text goes through (2106.09685)."""

    rank: int = 0
    """Rank of each addition; 0: none."""
    alpha: float = 0.0
    """Additions are scaled by alpha / rank; 0: by 1."""

    def __post_init__(self) -> None:
        check_values(self, "lora")
        check(0 <= self.rank <= 65_536, "model.lora.rank", self.rank, "0 to 65536")
        check(self.alpha >= 0, "model.lora.alpha", self.alpha, "0 or a positive number")
        check(
            not self.alpha or self.rank > 0,
            "model.lora.alpha",
            self.alpha,
            "0, unless model.lora.rank is set",
        )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.alpha else 1.0
