"""Settings of image generation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from causalfusion.errors import check, check_values

OrderName = Literal["random", "raster", "block_raster", "dilated"]
SamplerName = Literal["ddpm", "ddim", "dpm++", "unipc", "euler", "heun", "sde", "sde_heun"]
SamplerChoice = Literal["auto", SamplerName]
OVERRULED_SAMPLING = {
    "sizes": ("num_ar_steps", "step_sizes"),
    "given_order": ("order",),
    "respacing": ("diffusion_steps",),
}
"""Settings that count for more than others beside them: only as long as none of these comes later."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Generation of tokens. No field depends on how the model was trained."""

    num_ar_steps: int = 1
    """Number of AR steps, S: 1 is plain diffusion, L (or 0) is next-token prediction."""
    step_sizes: Literal["even", "random", "cosine", "falling", "masked_cosine"] = "even"
    """Division of the L tokens among the S AR steps. cosine: growing, after MaskGIT; falling: the same
    backwards, so that the first AR step, which decides on the whole, has many tokens; masked_cosine: a cosine
    as MAR and MaskGIT round it."""
    sizes: list[int] = field(default_factory=list)
    """Number of tokens in each AR step, with sum L; overrides `num_ar_steps` and `step_sizes`."""
    order: OrderName = "random"
    """Order in which the tokens are generated."""
    block_size: int = 4
    """block_raster: side of a block; dilated: distance between consecutive tokens; both in tokens."""
    given_order: list[int] = field(default_factory=list)
    """Raster indices of all L tokens in the desired order; overrides `order`."""
    diffusion_steps: list[int] = field(default_factory=lambda: [100])
    """Diffusion steps per AR step: one number for all, or one for each."""
    sampler: SamplerChoice = "auto"
    """Update rule of the diffusion steps: ddpm and ddim for diffusion.path ddpm; euler, heun, sde and
    sde_heun for flows; dpm++ and unipc for both. auto: ddpm, or euler for flows."""
    respacing: str = ""
    """ddpm and ddim: timesteps that are not evenly spaced. `10,15,20`: that many steps in each of three equal
    parts of the chain, cleanest first; `ddim25`: a constant integer stride. Overrides `diffusion_steps`."""
    solver_order: int = 2
    """dpm++ and unipc: order of the solver, 1 to 3; 1 (dpm++) is ddim."""
    step_spacing: Literal["even", "linspace", "leading"] = "even"
    """dpm++ and unipc for ddpm: timesteps evenly spread with the noisiest among them, or (leading) the
    multiples of a whole number. linspace rounds as diffusers does; even differs by one timestep at 20, 22,
    30, ... steps."""
    least_log_snr: float = -100.0
    """dpm++ and unipc for ddpm: leave out timesteps where the logarithm of signal over noise is below
    this."""
    level_shift: float = 1.0
    """Flows: s in s l / (1 + (s - 1) l) for the levels l of the steps; above 1, more steps are
    noisy."""
    last_step: float = 0.04
    """sde: noise level from which the last step goes to clean data, without adding noise."""
    last_step_rule: Literal["mean", "euler", "tweedie", "none"] = "mean"
    """sde: the last step follows the mean of the others, or the velocity alone, or goes to the predicted
    clean tokens; none: there is no such step, and the others go all the way."""
    sde_noise: Literal["sigma", "linear", "decreasing", "increasing_decreasing", "constant", "sbdm"] = "sigma"
    """sde: growth of the noise that is added along the path (SiT, arXiv 2401.08740, table 4): like the path's
    noise scale, linear in the level, cosines of it, always the same, or as the path itself adds it."""
    sde_norm: float = 1.0
    """sde: factor on that noise, within the cosine for `decreasing`."""
    variance: Literal["fixed_large", "fixed_small"] = "fixed_large"
    """ddpm: variance of each step, β (fixed_large) or the posterior's (fixed_small)."""
    eta: float = 0.0
    """ddim: 0 is deterministic, 1 has DDPM's variance."""
    temperature: float = 1.0
    """Factor on the noise that ddpm, sde, and ddim with eta > 0 add in each step."""
    guidance_scale: float = 1.0
    """Classifier-free guidance, w in ε_u + w (ε_c - ε_u): 1 is no guidance, 0 ignores the class."""
    guidance_schedule: Literal["constant", "linear", "cosine", "masked_linear"] = "constant"
    """Growth of w, from 1 to guidance_scale, with the fraction of tokens that are finished; masked_linear:
    linear, as MAR counts, where at least one token is always unfinished."""
    guidance_power: float = 0.0
    """p in 1 + (w - 1) (1 - cos(π l^p)) / 2, the guidance at noise level l: full at pure noise, none at clean
    data (FiTv2's scale_pow). 0: w everywhere."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Guide only on this part of the path, where 0 is clean and 1 pure noise (numbers above 1: timesteps);
    elsewhere the unconditional pass is skipped."""
    guided_channels: int = 0
    """Guide only this many channels of the latents, the first ones (DiT, Large-DiT, FiTv2: 3); 0: all."""

    def __post_init__(self) -> None:
        check_values(self, "sample")
        check(self.num_ar_steps >= 0, "sample.num_ar_steps", self.num_ar_steps, "0 or more")
        check(all(n >= 1 for n in self.sizes), "sample.sizes", self.sizes, "positive numbers of tokens")
        counts = self.diffusion_steps
        fits = isinstance(counts, list | tuple) and len(counts) > 0 and all(count >= 1 for count in counts)
        check(fits, "sample.diffusion_steps", counts, "a list of one positive number, or one per AR step")
        check(self.block_size >= 1, "sample.block_size", self.block_size, "at least 1")
        check(0 <= self.eta <= 1, "sample.eta", self.eta, "a number in [0, 1]")
        check(
            self.eta == 0 or self.sampler == "ddim", "sample.eta", self.eta, "0, unless the sampler is ddim"
        )
        check(1 <= self.solver_order <= 3, "sample.solver_order", self.solver_order, "1, 2 or 3")
        check(self.temperature >= 0, "sample.temperature", self.temperature, "0 or more")
        check(self.guidance_scale >= 0, "sample.guidance_scale", self.guidance_scale, "0 or more")
        if self.guidance_interval == (0, 1_000_000):  # the earlier default, which means the whole path
            object.__setattr__(self, "guidance_interval", (0.0, 1.0))
        low, high = self.guidance_interval
        check(0 <= low <= high, "sample.guidance_interval", self.guidance_interval, "0 <= low <= high")
        check(self.guided_channels >= 0, "sample.guided_channels", self.guided_channels, "0 or more")
        check(self.guidance_power >= 0, "sample.guidance_power", self.guidance_power, "0 or more")
        check(self.sde_norm > 0, "sample.sde_norm", self.sde_norm, "a positive number")
        check(self.level_shift > 0, "sample.level_shift", self.level_shift, "a positive number")
        check(0 < self.last_step < 1, "sample.last_step", self.last_step, "a number in (0, 1)")
        spaced = re.fullmatch(r"|[0-9]{1,7}(,[0-9]{1,7})*|ddim[0-9]{1,7}", self.respacing)
        check(bool(spaced), "sample.respacing", self.respacing, "counts such as 10,15,20, or ddim25")
        expected = f"1, as the sampler {self.sampler} adds no noise"
        fits = self.temperature == 1 or _adds_noise(self.sampler, self.eta)
        check(fits, "sample.temperature", self.temperature, expected)

    def with_sampler(self, sampler: SamplerChoice) -> SampleConfig:
        """These settings with another sampler, without the eta, temperature and last step that it does not
        have."""
        plain = {name: getattr(SampleConfig, name) for name in foreign_to(sampler, eta=self.eta > 0)}
        return replace(self, sampler=sampler, **plain)

    def changed(self, **values: Any) -> SampleConfig:
        """The same with these settings, without lists of its own that would overrule them, and without what
        another sampler does not have."""
        plain = SampleConfig()
        own = self.with_sampler(values["sampler"]) if "sampler" in values else self
        overruled = {
            name: getattr(plain, name)
            for name, others in OVERRULED_SAMPLING.items()
            if any(other in values for other in others)
        }
        return replace(own, **overruled | values)


def foreign_to(sampler: SamplerChoice, *, eta: bool) -> list[str]:
    """Settings of other samplers, which this one does not have; `eta`: with one above 0."""
    noisy = _adds_noise(sampler, float(eta))
    had = {"eta": sampler == "ddim", "temperature": noisy, "last_step": sampler in ("sde", "sde_heun")}
    return [name for name, has in had.items() if not has]


def _adds_noise(sampler: SamplerChoice, eta: float) -> bool:
    return sampler in ("auto", "ddpm", "sde", "sde_heun") or (sampler == "ddim" and eta > 0)
