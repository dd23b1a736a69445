"""All that is random in a training step, drawn before the model runs.

Draws are functions of (seed, place in the sample stream), and of `split_index` where the split is shared; so
they are the same whichever process or resumed run makes them.

Shape letters: B examples, L image tokens (of the longest image), R noised copies of every AR step, P token
dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from causalfusion.config import FactorizationConfig, ModelConfig, TextConfig
from causalfusion.diffusion.process import Process
from causalfusion.factorization import Plan, grid_tensor, plan_batch, plan_together
from causalfusion.rng import derive_generator
from causalfusion.train.document_batch import DocumentBatch, drops_texts

Arrangement = Literal["caption_first", "image_first", "image_only", "text_only", "document"]
ARRANGEMENTS: tuple[Arrangement, ...] = ("caption_first", "image_first", "image_only", "text_only")


@dataclass(frozen=True)
class TextDraw:
    """The random part of an example's text."""

    arrangement: Arrangement
    drop_caption: bool
    """Leave the caption before the image empty."""
    drop_class: bool = False
    """Drop the class too, as guidance away from both does; for every second dropped caption."""


@dataclass(frozen=True)
class Draws:
    """All that is random in a training step."""

    plan: Plan
    levels: Tensor
    """Noise levels: (B, 1), one for the image, or (B, R*L), one per noised token in the plan's order."""
    noise: Tensor
    """(B, R, L, P) standard normal, in raster order."""
    drop_class: Tensor
    """(B,) bool: replace the class by the null class."""
    text: tuple[TextDraw, ...] = ()
    """One per example in a run with text, else empty."""

    def slice(self, rows: slice, images: slice | None = None) -> Draws:
        """The draws of some of the examples, for a micro-batch; `images`: the rows of their images, where
        examples are documents."""
        of_images = self.images(rows if images is None else images)
        return replace(of_images, drop_class=self.drop_class[rows], text=self.text[rows])

    def images(self, rows: slice | Tensor) -> Draws:
        """The draws of some of the images, as long as the longest of them."""
        plan, levels, noise = self.plan.images(rows), self.levels[rows], self.noise[rows]
        copies, before, now = *noise.shape[1:3], plan.order.shape[1]
        if now < before:
            noise = noise[:, :, :now]
            if levels.shape[1] > 1:
                levels = levels.unflatten(1, (copies, before))[:, :, :now].flatten(1)
        return replace(self, plan=plan, levels=levels, noise=noise)


def draws_together(each: Sequence[Draws], grids: Sequence[tuple[int, int]]) -> Draws:
    """The draws of images of these grids, one of which each of `each` has, as those of a batch; padding has
    its image's last noise level, and no noise."""
    plan = plan_together([draws.plan for draws in each], grids)
    num_tokens, levels, noise = plan.order.shape[1], [], []
    of_each_token = any(max(draws.levels.shape[1], draws.noise.shape[1]) > 1 for draws in each)
    for draws in each:
        copies, length = draws.noise.shape[1:3]
        noise.append(F.pad(draws.noise, (0, 0, 0, num_tokens - length)))
        level = draws.levels
        if of_each_token:
            of_copies = level.expand(-1, copies * length).unflatten(1, (copies, length))
            last = of_copies[:, :, -1:].expand(-1, -1, num_tokens - length)
            level = torch.cat([of_copies, last], dim=2).flatten(1)
        levels.append(level)
    dropped = torch.cat([draws.drop_class for draws in each])
    return Draws(plan, torch.cat(levels), torch.cat(noise), dropped)


def draw(
    factorization: FactorizationConfig,
    model: ModelConfig,
    process: Process,
    class_dropout: float,
    *,
    seed: int,
    split_index: int,
    sample_indices: Sequence[int],
    text: TextConfig | None = None,
    grid: tuple[int, int] | None = None,
    documents: DocumentBatch | None = None,
) -> Draws:
    """The draws for these places of the sample stream, or these images of documents; `text`: of a run with
    text; `grid`: rows and columns of tokens, by default those of the model."""
    rows, columns = grid or (model.grid_height, model.grid_width)
    plan = plan_batch(
        factorization, rows, columns, seed=seed, split_index=split_index, sample_indices=sample_indices
    )
    plan = replace(plan, grid=grid_tensor(model, grid))
    num_tokens, copies = rows * columns, factorization.timesteps_per_ar_step
    levels, noise, dropped = [], [], []
    for row, index in enumerate(sample_indices):
        generator = derive_generator(seed, "step", index)
        dropped.append(torch.rand((), generator=generator) < class_dropout)
        if factorization.timesteps == "shared":
            level = process.draw_levels((copies, 1), generator)
            level = level.expand(-1, num_tokens) if copies > 1 else level
        elif factorization.timesteps == "per_token":
            level = process.draw_levels((copies, num_tokens), generator)
        else:
            of_step = process.draw_levels((copies, num_tokens), generator)
            ar_step = plan.ar_step[row if len(plan.ar_step) > 1 else 0]
            level = of_step[:, ar_step - 1]
        levels.append(level.reshape(-1))
        noise.append(torch.randn(copies, num_tokens, model.token_dim, generator=generator))
    draws = Draws(plan, torch.stack(levels), torch.stack(noise), torch.stack(dropped))
    if text is None:
        return draws
    if documents is None:
        texts = draw_text(text, seed=seed, sample_indices=sample_indices)
    else:
        texts = draw_dropped(text.caption_dropout, documents, seed=seed)
    draws = replace(draws, text=texts)
    if text.image_context == "noised":  # what text sees has little noise
        seen = seen_by_text(texts, text.examples_per_sequence) if documents is None else documents.followed
        seen = seen[:, None]
        limited = process.limited(draws.levels, text.max_context_timestep)
        draws = replace(draws, levels=torch.where(seen, limited, draws.levels))
    return draws


def draw_text(config: TextConfig, *, seed: int, sample_indices: Sequence[int]) -> tuple[TextDraw, ...]:
    """The text draws for these places of the sample stream."""
    cumulative = torch.tensor([getattr(config, name) for name in ARRANGEMENTS]).double().cumsum(0)
    draws = []
    for index in sample_indices:
        u, dropped = torch.rand(
            2, dtype=torch.float64, generator=derive_generator(seed, "text", index)
        ).tolist()
        which = int(torch.searchsorted(cumulative, u * float(cumulative[-1]), right=True))
        arrangement, rate = ARRANGEMENTS[min(which, 3)], config.caption_dropout
        joint = arrangement == "caption_first" and dropped < rate / 2
        draws.append(TextDraw(arrangement, dropped < rate, joint))
    return tuple(draws)


def draw_dropped(rate: float, documents: DocumentBatch, *, seed: int) -> tuple[TextDraw, ...]:
    """Documents that are trained on without the texts before their images, as images are without captions."""
    return tuple(
        TextDraw("document", drops_texts(rate, seed=seed, place=place)) for place in documents.places
    )


def seen_by_text(draws: Sequence[TextDraw], examples_per_sequence: int) -> Tensor:
    """(B,) bool: images that a text of their document follows."""
    seen = []
    for start in range(0, len(draws), examples_per_sequence):
        group = draws[start : start + examples_per_sequence]
        for place, draw in enumerate(group):
            later = any(d.arrangement != "image_only" for d in group[place + 1 :])
            seen.append(draw.arrangement == "image_first" or later)
    return torch.tensor(seen)
