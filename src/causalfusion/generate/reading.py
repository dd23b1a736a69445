"""How a model reads images: their tokens as clean input, or noised, behind the null class and an empty text.

Shape letters: B images, L image tokens, P token dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from causalfusion.codec.tokenizer import Markers
from causalfusion.diffusion.process import Process
from causalfusion.documents import Document, ImageToCome, Text
from causalfusion.factorization import Plan, ar_step_of, places_of
from causalfusion.generate.context import ImageInProgress, condition_of
from causalfusion.generate.prompts import Prompts
from causalfusion.saved.folder import ModelSpec
from causalfusion.sequence import PackedSequence, class_segment, image_segment


def learned_clean(spec: ModelSpec) -> bool:
    """True for a model that saw clean image tokens in training: as context of later AR steps, or of texts."""
    plan, one = spec.factorization, spec.factorization.distribution == "fixed"
    if spec.model.vocab_size:
        return spec.text.image_context == "clean"
    return spec.model.per_token or not (one and plan.num_ar_steps == 1)


@dataclass(frozen=True)
class Reading:
    """All that the sequence depends on."""

    spec: ModelSpec
    process: Process
    grid: tuple[int, int]
    markers: Markers | None = None
    """None: a model without text."""

    def plan(self, count: int, device: torch.device) -> Plan:
        """All tokens of `count` images in one AR step, or one after another for a head that asks so."""
        num_tokens, asks_next = self.grid[0] * self.grid[1], self.spec.model.head.ask == "previous"
        steps = ar_step_of([1] * num_tokens if asks_next else [num_tokens])
        raster = torch.arange(num_tokens)
        return Plan(raster.expand(count, -1), steps[None], self.grid[1]).to(device)

    def sequence(
        self, tokens: Tensor, plan: Plan, noised: Tensor | None = None, told: float | None = None
    ) -> PackedSequence:
        """The sequence of clean tokens (B, L, P), given in raster order, in the plan's order; or of `noised`
        ones of the timestep `told`, with clean ones of earlier AR steps before them."""
        null = self.spec.model.null_label
        labels = torch.full((len(tokens),), null, dtype=torch.int64, device=tokens.device)
        if self.spec.model.context == "bidirectional":
            return self._bidirectional(tokens, labels)
        return self._causal(tokens, labels, plan, noised, told)

    def _bidirectional(self, tokens: Tensor, labels: Tensor) -> PackedSequence:
        """All tokens known, in raster order; none has the clean role (`pack_bidirectional`)."""
        config, device = self.spec.model, tokens.device
        image = ImageInProgress.of_size(config, self.grid, device)
        condition = class_segment(labels, config.num_condition_tokens)
        condition = replace(condition, role="noised", ar_step=condition.ar_step + 1)
        places = places_of(torch.arange(tokens.shape[1], device=device)[None], image.width)
        steps = torch.ones(1, tokens.shape[1], dtype=torch.int64, device=device)
        return PackedSequence((condition, image_segment("noised", tokens, steps, places, grid=image.grid)))

    def _causal(
        self, tokens: Tensor, labels: Tensor, plan: Plan, noised: Tensor | None, told: float | None
    ) -> PackedSequence:
        """[class][text][tokens], or [class][text][clean tokens of earlier AR steps][noised tokens]."""
        prompts, text = None, self.spec.text
        if self.markers is not None:
            prompts = Prompts(self._without_text(len(tokens)), self.markers, None, text.image_context)
        image = ImageInProgress.of_size(self.spec.model, self.grid, tokens.device)
        before = condition_of(self.spec.model, labels, prompts, image)
        image = before.image
        if not learned_clean(self.spec):
            lowest = self.process.levels_at(torch.zeros(1, 1))
            image = replace(image, clean_timestep=self.process.timesteps(lowest).item())
        order, ar_step = plan.order, plan.ar_step + before.next_ar_step - 1
        ordered = tokens.take_along_dim(order[:, :, None], 1)
        if noised is None:
            return PackedSequence((*before.segments, image.segment("clean", ordered, ar_step, order, None)))
        segments, context = list(before.segments), slice(0, plan.num_context_tokens)
        if plan.num_context_tokens:
            steps, places = ar_step[:, context], order[:, context]
            segments.append(image.segment("clean", ordered[:, context], steps, places, None))
        ordered = noised.take_along_dim(order[:, :, None], 1)
        return PackedSequence((*segments, image.segment("noised", ordered, ar_step, order, told)))

    def _without_text(self, count: int) -> list[Document]:
        """Documents with an image to come and no caption, as training had them: alone or before its caption,
        or behind an empty one."""
        text = self.spec.text
        alone = text.image_first > 0 or text.image_only > 0
        return [[ImageToCome()] if alone else [Text(), ImageToCome()] for _ in range(count)]
