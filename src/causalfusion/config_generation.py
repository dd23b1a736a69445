"""The settings of image generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from causalfusion.errors import check, check_finite

OrderName = Literal["random", "raster", "block_raster", "dilated"]
SamplerName = Literal["ddpm", "ddim", "dpm++", "unipc"]


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How tokens are generated (PAPER section 5). Every field is free of how the model was trained."""

    num_ar_steps: int = 1
    """S: 1 is plain diffusion, L is next-token prediction."""
    step_sizes: Literal["even", "random", "cosine"] = "even"
    """How L tokens are shared among the S steps; `sizes` overrides it."""
    sizes: list[int] = field(default_factory=list)
    """Tokens of every AR step, given one by one; their sum is L."""
    order: OrderName = "random"
    """Order in which the tokens are generated."""
    block_size: int = 4
    """Side, in tokens, of the blocks of block_raster and the distance of dilated."""
    given_order: list[int] = field(default_factory=list)
    """Raster indices of all L tokens in the order wanted; overrides `order`."""
    diffusion_steps: list[int] = field(default_factory=lambda: [100])
    """Denoising steps of each AR step: one number for all, or one per AR step."""
    sampler: SamplerName = "ddpm"
    """Update rule of the diffusion steps."""
    variance: Literal["fixed_large", "fixed_small"] = "fixed_large"
    """DDPM's posterior variance."""
    eta: float = 0.0
    """DDIM: 0 is deterministic, 1 has DDPM's variance."""
    temperature: float = 1.0
    """Factor on the noise that DDPM, or DDIM with eta > 0, adds in each step."""
    guidance_scale: float = 1.0
    """w in ε_u + w (ε_c - ε_u): 1 is no guidance, 0 ignores the class."""
    guidance_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How w grows from 1 over the share of tokens that are done."""
    guidance_interval: tuple[int, int] = (0, 1_000_000)
    """Guide only at timesteps low <= t <= high; elsewhere the unconditional pass is not computed."""

    def __post_init__(self) -> None:
        check_finite(self, "sample")
        check(self.num_ar_steps >= 1, "sample.num_ar_steps", self.num_ar_steps, "at least 1")
        check(all(n >= 1 for n in self.sizes), "sample.sizes", self.sizes, "positive numbers of tokens")
        check(
            len(self.diffusion_steps) > 0 and all(n >= 1 for n in self.diffusion_steps),
            "sample.diffusion_steps", self.diffusion_steps, "one positive number, or one per AR step",
        )  # fmt: skip
        check(self.block_size >= 1, "sample.block_size", self.block_size, "at least 1")
        check(0 <= self.eta <= 1, "sample.eta", self.eta, "a number in [0, 1]")
        check(
            self.eta == 0 or self.sampler == "ddim", "sample.eta", self.eta, "0, unless the sampler is ddim"
        )
        check(self.temperature >= 0, "sample.temperature", self.temperature, "0 or more")
        check(self.guidance_scale >= 0, "sample.guidance_scale", self.guidance_scale, "0 or more")
        low, high = self.guidance_interval
        check(low <= high, "sample.guidance_interval", self.guidance_interval, "low <= high")
        adds_noise = self.sampler == "ddpm" or (self.sampler == "ddim" and self.eta > 0)
        check(
            adds_noise or self.temperature == 1,
            "sample.temperature", self.temperature, f"1, as the sampler {self.sampler} adds no noise",
        )  # fmt: skip
