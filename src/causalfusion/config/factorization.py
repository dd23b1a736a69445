"""Settings of the split of images into AR steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from causalfusion.config.generation import OrderName
from causalfusion.errors import check, check_values


@dataclass(frozen=True, kw_only=True)
class FactorizationConfig:
    """Splitting of training images into AR steps."""

    distribution: Literal["decay", "uniform", "fixed", "mask_ratio"] = "decay"
    """Distribution of the number of AR steps S: proportional to decay**(S-1), uniform on 1..L, or always
    num_ar_steps. mask_ratio (MAR): two AR steps, the second with a random share of the tokens."""
    decay: float = 0.9
    """distribution = decay: ratio of the probabilities of S + 1 and S AR steps."""
    num_ar_steps: int = 1
    """distribution = fixed: the number of AR steps, S; 0: one for each token."""
    mask_ratio_mean: float = 1.0
    """distribution = mask_ratio: mean of the normal distribution of that share, before truncation."""
    mask_ratio_std: float = 0.25
    """distribution = mask_ratio: its standard deviation."""
    mask_ratio_min: float = 0.7
    """distribution = mask_ratio: its lower end; the upper one is 1."""
    split: Literal["per_batch", "per_image"] = "per_batch"
    """Split a whole batch alike into AR steps (the paper's code), or each image by itself."""
    order: OrderName = "random"
    """Order in which the tokens of an image are divided among AR steps."""
    block_size: int = 4
    """block_raster: side of a block; dilated: distance between consecutive tokens; both in tokens."""
    given_order: list[int] = field(default_factory=list)
    """Raster indices of all L tokens in the desired order; overrides `order`."""
    loss_weight: Literal["linear", "cosine", "none"] = "linear"
    """Shape of the fall of the loss weight along the sequence."""
    loss_weight_first: float = 2.0
    """Weight of the loss at the start of the sequence (λ)."""
    loss_weight_last: float = 1.0
    """Weight of the loss at the end of the sequence."""
    timesteps: Literal["shared", "per_ar_step", "per_token"] = "shared"
    """One noise level for all AR steps of an image, one for each, or one for each token."""
    timesteps_per_ar_step: int = 1
    """Noised copies of every AR step, each at its own noise level (4x and 8x t in the paper)."""

    def __post_init__(self) -> None:
        check_values(self, "factorization")
        check(0 < self.decay <= 1, "factorization.decay", self.decay, "a number in (0, 1]")
        check(self.num_ar_steps >= 0, "factorization.num_ar_steps", self.num_ar_steps, "0 or more")
        check(self.block_size >= 1, "factorization.block_size", self.block_size, "at least 1")
        check(
            self.mask_ratio_std > 0, "factorization.mask_ratio_std", self.mask_ratio_std, "a positive number"
        )
        least = self.mask_ratio_min
        check(0 < least < 1, "factorization.mask_ratio_min", least, "a number between 0 and 1")
        copies = self.timesteps_per_ar_step
        check(copies >= 1, "factorization.timesteps_per_ar_step", copies, "at least 1")
        for name in ("loss_weight_first", "loss_weight_last"):
            check(getattr(self, name) > 0, f"factorization.{name}", getattr(self, name), "a positive number")
