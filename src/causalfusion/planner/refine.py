"""Beyond the grid: changes of one setting at a time, from the best setting on, while they help."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from causalfusion.config import DiffusionConfig, ModelConfig, SampleConfig
from causalfusion.planner.sweep import Measure, Tried, choose, divided, samplers_of

_INTERVALS = ((0.0, 1.0), (0.1, 1.0), (0.25, 1.0), (0.0, 0.9), (0.1, 0.9))
"""Parts of the path on which guidance is tried."""
_SCALES = (-1.0, -0.5, 0.5, 1.0)
"""Changes of the guidance scale."""
_FACTORS = (2 / 3, 3 / 2)
"""Changes of the number of diffusion steps, and of the shift of levels."""


def neighbours(
    settings: SampleConfig, model: ModelConfig, diffusion: DiffusionConfig
) -> Iterator[SampleConfig]:
    """Settings that differ from these in one respect: solver and its order, number of diffusion steps and
    their division among AR steps, guidance scale and interval, sizes of AR steps, shift of levels."""
    for sampler in samplers_of(diffusion.path):
        for order in (2, 3) if sampler in ("dpm++", "unipc") else (2,):
            yield replace(settings.with_sampler(sampler), solver_order=order)
    num_ar_steps = settings.num_ar_steps or model.num_tokens
    each = 1 if model.per_token else num_ar_steps
    counts = settings.diffusion_steps * (each if len(settings.diffusion_steps) == 1 else 1)
    for total in (round(sum(counts) * factor) for factor in _FACTORS):
        if total >= each:
            yield replace(settings, diffusion_steps=_scaled(counts, total))
    if each > 1:
        rank = range(1, each + 1)
        for weights in ([1] * each, list(reversed(rank)), list(rank)):
            yield replace(settings, diffusion_steps=_scaled(weights, sum(counts)))
    for scale in (settings.guidance_scale + change for change in _SCALES):
        if scale >= 1:
            yield replace(settings, guidance_scale=scale)
    if settings.guidance_scale != 1:
        for interval in _INTERVALS:
            yield replace(settings, guidance_interval=interval)
    if num_ar_steps > 1 and not settings.sizes and model.head.ask == "mask":
        for sizes in ("even", "cosine", "falling"):
            yield replace(settings, step_sizes=sizes)
    if diffusion.path == "rectified_flow":
        for factor in _FACTORS:
            yield replace(settings, level_shift=settings.level_shift * factor)


def _scaled(weights: Sequence[int], total: int) -> list[int]:
    """Diffusion steps of each AR step, at least one, in proportion to weights; as short a list as can be."""
    if len(set(weights)) == 1:
        return divided(total, len(weights))
    counts = [max(1, round(total * weight / sum(weights))) for weight in weights]
    return counts if len(set(counts)) > 1 else counts[:1]


def refine(
    tried: Sequence[Tried],
    budget: float,
    rounds: int,
    around: Callable[[SampleConfig], Sequence[SampleConfig]],
    measure: Callable[[Sequence[SampleConfig]], list[Tried]],
    by: Measure,
) -> list[Tried]:
    """All that was tried, and what was tried around the best setting within the budget; from the best of
    these again, for so many rounds, until no change helps."""
    found = list(tried)
    for _ in range(rounds):
        best = choose(found, budget, by)
        known = [trial.settings for trial in found]
        new = [settings for settings in around(best.settings) if settings not in known]
        found += measure(list({repr(settings): settings for settings in new}.values()))
        if choose(found, budget, by) == best:
            break
    return found
