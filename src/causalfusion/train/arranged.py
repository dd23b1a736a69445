"""A batch as a train step has it: documents with their draws, and a model's errors on them.

Shape letters: B examples, N of their images, L image tokens, m of them that are predicted, R noised copies of
every AR step, P token dimension, n text tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from causalfusion.diffusion.process import NoisedTokens, Process
from causalfusion.documents import NO_TARGET, Layout
from causalfusion.factorization import Plan
from causalfusion.rows import Packing


@dataclass(frozen=True)
class Arranged:
    """A (micro-)batch with its draws: what stands in its documents, and where."""

    tokens: Tensor
    """(N, L, P) the images that are used, clean, raster order."""
    labels: Tensor
    """(documents,) int64, the null label where the class was dropped."""
    plan: Plan
    levels: Tensor
    noise: Tensor
    """The draws of the N images, as in `Draws`."""
    text: tuple[str, ...] = ()
    """The arrangement of each document's first example; empty in a run without text."""
    layout: Layout | None = None
    """None in a run without text."""
    rows: Packing | None = None
    """Where the images stand, if several share a row."""
    unconditional: Arranged | None = None
    """The same images without their condition; None but in a distillation, whose teacher is guided."""

    features: Tensor | None = None
    """(N, L, E) features that the images' tokens are aligned with, raster order; None without alignment."""

    classes: Tensor | None = None
    """(N, K) share of each class in each image, in a classification; else None."""

    @property
    def num_images(self) -> int:
        return len(self.tokens)

    @property
    def num_text(self) -> int:
        """Text tokens of the longest document."""
        return 0 if self.layout is None else self.layout.text_ids.shape[1]

    @property
    def num_text_targets(self) -> int:
        """Text tokens that are to be predicted."""
        if self.layout is None or not self.layout.read:
            return 0
        return int((self.layout.text_targets != NO_TARGET).sum())

    def to(self, device: torch.device) -> Arranged:
        tokens, labels, levels, noise = (
            tensor.to(device) for tensor in (self.tokens, self.labels, self.levels, self.noise)
        )
        return replace(
            self,
            tokens=tokens,
            labels=labels,
            levels=levels,
            noise=noise,
            plan=self.plan.to(device),
            layout=None if self.layout is None else self.layout.to(device),
            rows=None if self.rows is None else self.rows.to(device),
            unconditional=None if self.unconditional is None else self.unconditional.to(device),
            features=None if self.features is None else self.features.to(device),
            classes=None if self.classes is None else self.classes.to(device),
        )

    def clean(self) -> Tensor:
        """(N, L, P) the images in the plan's order."""
        return self.tokens.gather(1, self.plan.order[:, :, None].expand_as(self.tokens))

    def noised_from(self, first: int, process: Process) -> NoisedTokens:
        """(N, R*m, P) the tokens from the plan's `first` on, in its order, one noised copy of the image
        behind another."""
        copies = self.noise.shape[1]
        index = self.plan.order[:, None, first:, None].expand(-1, copies, -1, self.tokens.shape[2])
        noise = self.noise.gather(2, index).flatten(1, 2)
        clean = self.clean()[:, first:].repeat(1, copies, 1)
        return process.noise(clean, noise, self.levels_from(first))

    def features_from(self, first: int) -> Tensor:
        """(N, R*m, E) the features at the places of `noised_from`."""
        assert self.features is not None, "a run with alignment"
        index = self.plan.order[:, first:, None].expand(-1, -1, self.features.shape[2])
        return self.features.gather(1, index).repeat(1, self.noise.shape[1], 1)

    def levels_from(self, first: int) -> Tensor:
        """(N, 1 or R*m) the noise levels of the tokens from the plan's `first` on."""
        if not first or self.levels.shape[1] == 1:
            return self.levels
        return self.levels.unflatten(1, (self.noise.shape[1], -1))[:, :, first:].flatten(1)


@dataclass(frozen=True)
class Errors:
    """A model's errors, not yet weighted."""

    image: Tensor
    """(N, R*m, P) squared errors, in the plan's order; m = L but in a bidirectional context, where only asked
    tokens have one."""
    text: Tensor
    """(documents, n) cross-entropies, 0 where there is no target; n = 0 in a run without text."""
    alignment: Tensor | None = None
    """(N,) 1 - cosine similarity with the features of a frozen encoder; None without alignment."""
