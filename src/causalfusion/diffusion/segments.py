"""The path from noise to clean data in K parts, with the jumps in them that a student of few steps learns.

With x_l = α x_0 + σ ε, the jump from level t to a cleaner one s along the probability flow, for a prediction
of x_0 that stays as it is, is DDIM's step (2010.02502) and on the straight path Euler's:

    x_s = (σ_s / σ_t) x_t + (α_s - α_t σ_s / σ_t) x_0

A teacher's steps from t to s followed by a jump to e, the end of the part, is one jump from t to e with

    x_0 = λ x_0(t, s) + (1 - λ) x_0(s),     λ = (u_s - u_t) / (u_e - u_t),     u = α / σ,

x_0(t, s) the one by which a single jump from t leads to the same x_s. That mean is the target of the
student's own x_0 at t (multistep consistency models, 2403.06807): an error of x_0, whatever the model
predicts. Where e is clean data, u_e is infinite: the target is x_0(s), and x_0(t, s) where s itself is e.

Shapes: tokens (B, n, P); levels (B, 1) or (B, n); places likewise, int64: 0 is clean data, i the i-th level.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.diffusion.levels import fit
from causalfusion.diffusion.process import Process
from causalfusion.errors import UserError
from causalfusion.machine.runtime import widest_float


def few_steps(process: Process, num_steps: int) -> SampleConfig:
    """How a student of so many steps is sampled: DDIM's steps, evenly spread over the path."""
    steps = [num_steps]
    if process.config.path == "rectified_flow":  # Euler's are the same, also at pure noise
        return SampleConfig(sampler="euler", diffusion_steps=steps)
    return SampleConfig(sampler="dpm++", solver_order=1, diffusion_steps=steps)


@dataclass(frozen=True)
class Segments:
    """The path in parts of `points` levels each, the last of which is the part's noisiest, where a sampler's
    step begins."""

    levels: Tensor
    """(K * points,) cleanest first."""
    signal: Tensor
    noise_scale: Tensor
    """(K * points + 1,) α and σ by place, float64."""
    points: int
    _moved: dict[tuple[str, torch.device], Tensor] = field(default_factory=dict, repr=False)
    """Tables where they are used: a GPU would be waited for by a copy in every jump."""

    @classmethod
    def of(cls, process: Process, num_segments: int, points: int) -> Segments:
        """Raises UserError for more points than there are levels."""
        sampler = process.sampler(few_steps(process, num_segments), num_segments)
        levels = process.subdivided(sampler, points)
        if len(levels.unique()) < len(levels):
            raise UserError(
                f"distill.teacher_steps is {points}; expected at most {_most(process, num_segments)}, the "
                f"noise levels in each of {num_segments} parts of the path"
            )
        like = torch.ones(len(levels), dtype=torch.float64)
        signal, scale = process.signal(levels, like), process.noise_scale(levels, like)
        return cls(levels, torch.cat([like[:1], signal]), torch.cat([0 * like[:1], scale]), points)

    def upwards(self, levels: Tensor) -> Tensor:
        """The levels moved up to the nearest of these."""
        return self.levels[self.places(levels) - 1]

    def places(self, levels: Tensor) -> Tensor:
        """Places of the nearest of these levels that are at least as noisy."""
        own = self._table("levels", levels.device)
        return torch.searchsorted(own, levels.contiguous()).clamp(max=len(own) - 1) + 1

    def at(self, places: Tensor) -> Tensor:
        """The levels at places; of clean data, where no model is asked, the cleanest."""
        return self._table("levels", places.device)[(places - 1).clamp(min=0)]

    def end_of(self, places: Tensor) -> Tensor:
        """The cleaner end of the part in which each place lies."""
        return (places - 1) // self.points * self.points

    def jump(self, noised: Tensor, clean: Tensor, start: Tensor, stop: Tensor) -> Tensor:
        """x at places `stop` of x at `start`, where x_0 is `clean`; x itself where both are the same."""
        (alpha, sigma), (alpha_stop, sigma_stop) = self._scales(start), self._scales(stop)
        ratio = torch.where(start == stop, 1.0, sigma_stop / sigma)  # clean data have no noise to divide by
        return fit(ratio, noised) * noised + fit(alpha_stop - alpha * ratio, noised) * clean

    def by_one_jump(self, noised: Tensor, landed: Tensor, start: Tensor, stop: Tensor) -> Tensor:
        """The x_0 with which a jump from `start` to the cleaner `stop` lands where it did."""
        (alpha, sigma), (alpha_stop, sigma_stop) = self._scales(start), self._scales(stop)
        ratio = sigma_stop / sigma
        moved = landed - fit(ratio, noised) * noised
        return moved / fit(alpha_stop - alpha * ratio, noised)

    def share(self, start: Tensor, between: Tensor, stop: Tensor) -> Tensor:
        """λ: what the first of two jumps, from `start` over `between` to `stop`, counts in their x_0."""
        first, second, last = (torch.div(*self._scales(places)) for places in (start, between, stop))
        share = (second - first) / (last - first)  # 0 where `stop` is clean data: divided by infinity
        return torch.where(between == stop, 1.0, share)

    def _scales(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ) of the widest type."""
        signal, scale = (self._table(name, places.device) for name in ("signal", "noise_scale"))
        return signal[places], scale[places]

    def _table(self, name: str, device: torch.device) -> Tensor:
        if (name, device) not in self._moved:
            table = getattr(self, name)
            # Cast before it is moved: some devices have no float64.
            table = table if name == "levels" else table.to(widest_float(device))
            self._moved[name, device] = table.to(device)
        return self._moved[name, device]


def _most(process: Process, num_segments: int) -> int:
    """The largest number of points that differ."""
    starts = process.subdivided(process.sampler(few_steps(process, num_segments), num_segments), 1)
    return int(torch.diff(starts, prepend=starts.new_tensor([-1])).min())
