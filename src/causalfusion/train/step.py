"""From a batch to its errors: the one corridor of training (PAPER sections 3, 4 and 7); nothing random here.

    pieces = objective.arrange(batch, objective.draw(...))
    errors = objective.errors(model, pieces)

A run without text is one of documents that are an image each.

Shape letters: B examples, N of their images, L image tokens, R noised copies of every AR step, P token
dimension, n text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from causalfusion.codec.tokenizer import Markers
from causalfusion.config import RunConfig
from causalfusion.diffusion.process import NoisedTokens, Process
from causalfusion.documents import NO_TARGET, Layout, lay_out, pack_documents
from causalfusion.factorization import Plan, loss_weights
from causalfusion.losses import text_cross_entropy, weighted_mean
from causalfusion.sequence import PackedSequence, pack_training
from causalfusion.train.arrange import documents_of, used_images
from causalfusion.train.draws import Draws, draw


@dataclass(frozen=True)
class TokenBatch:
    """What the feed gives: this process's share of a train step's images."""

    tokens: Tensor
    """(B, L, P) clean, raster order."""
    labels: Tensor
    """(B,) int64."""
    sample_indices: Tensor
    """(B,) int64 places in the sample stream."""
    captions: tuple[list[int], ...] | None = None
    """Token ids of the captions; None: a run without text."""

    def slice(self, rows: slice) -> TokenBatch:
        """Some of the examples, for a micro-batch."""
        captions = None if self.captions is None else self.captions[rows]
        return TokenBatch(self.tokens[rows], self.labels[rows], self.sample_indices[rows], captions)

    def to(self, device: torch.device) -> TokenBatch:
        return replace(self, tokens=self.tokens.to(device), labels=self.labels.to(device))


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
        return 0 if self.layout is None else int((self.layout.text_targets != NO_TARGET).sum())

    def to(self, device: torch.device) -> Arranged:
        tokens, labels, levels, noise = (
            tensor.to(device) for tensor in (self.tokens, self.labels, self.levels, self.noise)
        )
        layout = None if self.layout is None else self.layout.to(device)
        return replace(
            self, tokens=tokens, labels=labels, levels=levels, noise=noise, plan=self.plan.to(device),
            layout=layout,
        )  # fmt: skip

    def noised(self, process: Process) -> NoisedTokens:
        """(N, R*L, P) tokens in the plan's order, one noised copy of the image behind another."""
        copies = self.noise.shape[1]
        index = self.plan.order[:, :, None].expand_as(self.tokens)
        noise = self.noise.gather(2, index[:, None].expand(-1, copies, -1, -1)).flatten(1, 2)
        clean = self.tokens.gather(1, index).repeat(1, copies, 1)
        return process.noise(clean, noise, self.levels)


@dataclass(frozen=True)
class Errors:
    """What a model got wrong, not yet weighted."""

    image: Tensor
    """(N, R*L, P) squared errors, in the plan's order."""
    text: Tensor
    """(documents, n) cross-entropies, 0 where there is no target; n = 0 in a run without text."""


@dataclass(frozen=True)
class Objective:
    """What a run minimises."""

    config: RunConfig
    process: Process
    markers: Markers | None = None
    """None: a run without text."""
    length_multiple: int = 1
    """Packed lengths of images alone are rounded up to multiples of it, where there are tokens to fill up
    with."""

    def draw(self, batch: TokenBatch, *, seed: int, split_index: int) -> Draws:
        """What is random for the batch, on the CPU."""
        config = self.config
        return draw(
            config.factorization, config.model, self.process, config.train.class_dropout,
            seed=seed, split_index=split_index, sample_indices=batch.sample_indices.tolist(),
            text=None if self.markers is None else config.text,
        )  # fmt: skip

    def arrange(self, batch: TokenBatch, draws: Draws) -> Arranged:
        """The documents of a batch; its tensors stay where they are."""
        dropped, null = draws.drop_class.to(batch.labels.device), self.config.model.null_label
        if self.markers is None:
            labels = torch.where(dropped, null, batch.labels)
            return Arranged(batch.tokens, labels, draws.plan, draws.levels, draws.noise)
        assert batch.captions is not None, "documents have texts"
        group, used = self.config.text.examples_per_sequence, used_images(draws.text)
        images = draws.images(used)
        ar_steps = [1] * len(used)
        if self.config.text.image_context == "clean":
            last = images.plan.ar_step[:, -1] * draws.noise.shape[1]
            ar_steps = last.expand(len(used)).tolist()
        documents = documents_of(batch.captions, draws.text, group)
        dropped = dropped | torch.tensor([d.drop_class for d in draws.text], device=dropped.device)
        return Arranged(
            batch.tokens[used.to(batch.tokens.device)],
            torch.where(dropped, null, batch.labels)[::group],
            images.plan, images.levels, images.noise,
            text=tuple(d.arrangement for d in draws.text[::group]),
            layout=lay_out(documents, self.markers, ar_steps, ended=True),
        )  # fmt: skip

    def errors(self, model: nn.Module, piece: Arranged, num_text: int = 0) -> Errors:
        """The errors of a model on arranged documents, all on the model's device; rows of text are filled up
        to `num_text` tokens at least."""
        noised = piece.noised(self.process)
        layout = None if piece.layout is None else piece.layout.filled(num_text)
        sequence = self.pack(replace(piece, layout=layout), noised)
        predictions = model(sequence, backend=self.config.train.attention)
        if layout is None:
            image = self.process.errors(predictions.image, noised)
            return Errors(image, image.new_zeros(0, 0))
        of_image = predictions.image.unflatten(1, (-1, noised.noised.shape[1])).flatten(0, 1)
        image = self.process.errors(of_image[layout.place_of_image], noised)
        return Errors(image, text_cross_entropy(predictions.text, layout.text_targets, NO_TARGET))

    def pack(self, piece: Arranged, noised: NoisedTokens) -> PackedSequence:
        """The training sequence: each image alone where there is no text, else documents."""
        num_class_tokens, plan = self.config.model.num_condition_tokens, piece.plan
        clean = noised.clean[:, : piece.tokens.shape[1]]
        timesteps = self.process.timesteps(noised.levels)
        if piece.layout is None:
            return pack_training(
                piece.labels, num_class_tokens, clean, noised.noised, plan, timesteps, self.length_multiple
            )
        return pack_documents(
            piece.layout, piece.labels, num_class_tokens, clean, noised.noised, plan, timesteps,
            self.config.text.image_context,
        )  # fmt: skip

    def image_loss(self, errors: Tensor, piece: Arranged) -> Tensor:
        """The mean of the squared errors (N, R*L, P) under the weights of AR steps and noise levels; 0
        without an image."""
        if not len(errors):
            return errors.sum()
        weighted = errors * self.process.weight(piece.levels)[:, :, None]
        return weighted_mean(weighted, loss_weights(piece.plan.ar_step, self.config.factorization))
