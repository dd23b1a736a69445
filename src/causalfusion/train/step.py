"""From a batch to its errors: the one corridor of training; nothing random here.

    pieces = objective.arrange(batch, objective.draw(...))
    errors = objective.errors(model, pieces)

A run without text is one of documents that are an image each.

Shape letters: B examples, N of their images, L image tokens, m of them that are predicted, R noised copies of
every AR step, P token dimension, n text tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from causalfusion.codec.tokenizer import Markers
from causalfusion.config import RunConfig
from causalfusion.diffusion.process import NoisedTokens, Process
from causalfusion.documents import (
    NO_TARGET,
    Layout,
    images_of,
    lay_out,
    pack_asking_documents,
    pack_documents,
)
from causalfusion.factorization import loss_weights
from causalfusion.losses import text_cross_entropy, weighted_mean
from causalfusion.model.predictions import Predictions
from causalfusion.rows import arrange_rows, pack_asking_rows, pack_rows
from causalfusion.sequence import (
    Denoising,
    PackedSequence,
    pack_asking,
    pack_bidirectional,
    pack_next,
    pack_training,
)
from causalfusion.train.arrange import documents_of, used_images
from causalfusion.train.arranged import Arranged, Errors
from causalfusion.train.batch import TokenBatch
from causalfusion.train.draws import Draws, draw, draws_together


@dataclass(frozen=True)
class Objective:
    """The objective that a run minimises."""

    config: RunConfig
    process: Process
    markers: Markers | None = None
    """None: a run without text."""
    length_multiple: int = 1
    """Packed lengths of images alone are rounded up to multiples of it, where there are tokens to fill up
    with."""

    def draw(self, batch: TokenBatch, *, seed: int, split_index: int) -> Draws:
        """The random draws for the batch, on the CPU."""
        config, indices = self.config, batch.sample_indices.tolist()

        def of(places: list[int], grid: tuple[int, int] | None) -> Draws:
            return draw(
                config.factorization,
                config.model,
                self.process,
                config.train.class_dropout,
                seed=seed,
                split_index=split_index,
                sample_indices=places,
                text=None if self.markers is None else config.text,
                grid=grid,
                documents=batch.documents,
            )

        if batch.grids is not None:
            each = [of([place], grid) for place, grid in zip(indices, batch.grids, strict=True)]
            return draws_together(each, batch.grids)
        draws = of(indices or [0], batch.grid)
        return draws if indices else draws.images(slice(0))  # documents without any image

    def arrange(self, batch: TokenBatch, draws: Draws, *, read: bool | None = None) -> Arranged:
        """The documents of a batch; its tensors stay where they are. `read`: whether its texts are predicted,
        by default as the settings say."""
        dropped, null = draws.drop_class.to(batch.labels.device), self.config.model.null_label
        if self.markers is None:
            labels = torch.where(dropped, null, batch.labels)
            rows, data = None, self.config.data
            if draws.plan.lengths is not None and data.batches == "packed":
                rows = arrange_rows(draws.plan, data.packed_tokens, self.length_multiple)
            return Arranged(batch.tokens, labels, draws.plan, draws.levels, draws.noise, rows=rows)
        if batch.documents is not None:
            elements = batch.documents.without([d.drop_caption for d in draws.text])
            kept, images, labels = batch.tokens, draws, torch.full_like(batch.labels, null)
            text, whole = draws.text, batch.documents.whole
        else:
            assert batch.captions is not None, "documents have texts"
            group, used, whole = self.config.text.examples_per_sequence, used_images(draws.text), True
            elements = documents_of(batch.captions, draws.text, group)
            kept, images = batch.tokens[used.to(batch.tokens.device)], draws.images(used)
            dropped = dropped | torch.tensor([d.drop_class for d in draws.text], device=dropped.device)
            labels, text = torch.where(dropped, null, batch.labels)[::group], draws.text[::group]
        return Arranged(
            kept,
            labels,
            images.plan,
            images.levels,
            images.noise,
            text=tuple(d.arrangement for d in text),
            layout=lay_out(
                elements,
                self.markers,
                self._ar_steps(images, len(kept)),
                ended=whole,
                read=self.config.reads_text if read is None else read,
            ),
        )

    def _ar_steps(self, draws: Draws, count: int) -> list[int]:
        """AR steps of each of the images, including noised copies."""
        if self.config.text.image_context == "noised":
            return [1] * count
        copies = 1 if self.config.model.per_token else draws.noise.shape[1]
        return (draws.plan.ar_step[:, -1] * copies).expand(count).tolist()

    def first_asked(self, piece: Arranged) -> int:
        """The place in the plan's order from which on tokens are predicted: all of them, or in a
        bidirectional context those of the last AR step, where the others are known."""
        return 0 if self.config.model.context == "causal" else piece.plan.num_context_tokens

    def errors(self, model: nn.Module, piece: Arranged, num_text: int = 0) -> Errors:
        """The errors of a model on arranged documents, all on the model's device; rows of text are filled up
        to `num_text` tokens at least."""
        noised = piece.noised_from(self.first_asked(piece), self.process)
        found, text = self.predict(model, piece, noised, num_text)
        return Errors(self.process.errors(found, noised), text)

    def predict(
        self, model: nn.Module, piece: Arranged, noised: NoisedTokens, num_text: int = 0
    ) -> tuple[Tensor, Tensor]:
        """(what the model predicts of the noised tokens, by image as they are; the errors of text as in
        `Errors`)."""
        predictions, layout = self.run(model, piece, noised, num_text)
        return self.read(predictions, piece, noised, layout)

    def run(
        self, model: nn.Module, piece: Arranged, noised: NoisedTokens, num_text: int = 0
    ) -> tuple[Predictions, Layout | None]:
        """(predictions for the packed sequence, its layout)."""
        layout = None if piece.layout is None else piece.layout.filled(num_text)
        sequence = self.pack(replace(piece, layout=layout), noised)
        return model(sequence, backend=self.config.train.attention), layout

    def read(
        self, predictions: Predictions, piece: Arranged, noised: NoisedTokens, layout: Layout | None
    ) -> tuple[Tensor, Tensor]:
        """Predictions as `predict` gives them."""
        found = self.of_images(predictions.image, piece, layout, noised.noised.shape[1])
        if layout is None or not layout.read:
            shape = (0, 0) if layout is None else layout.text_ids.shape
            return found, torch.zeros(shape, device=found.device)
        assert predictions.text is not None, "texts that are read have logits"
        return found, text_cross_entropy(predictions.text, layout.text_targets, NO_TARGET)

    def of_images(self, values: Tensor, piece: Arranged, layout: Layout | None, length: int) -> Tensor:
        """Values (B, n, ...) of a sequence's noised tokens as those of images (N, R*m, ...), `length` R*m."""
        if layout is not None:
            return self._images_of(values, length, layout)[layout.place_of_image]
        return values if piece.rows is None else piece.rows.of_images(values, self._copies)

    def pack(self, piece: Arranged, noised: NoisedTokens) -> PackedSequence:
        """The training sequence: each image alone where there is no text, else documents."""
        model, plan, timesteps = self.config.model, piece.plan, self.process.timesteps(noised.levels)
        labels, num_class_tokens = piece.labels, model.num_condition_tokens
        if model.per_token:
            return self._pack_asking(piece, Denoising(noised.noised, timesteps))
        clean = noised.clean[:, : piece.tokens.shape[1]]
        if piece.rows is not None:
            return pack_rows(labels, num_class_tokens, clean, noised.noised, plan, timesteps, piece.rows)
        if piece.layout is None:
            return pack_training(
                labels, num_class_tokens, clean, noised.noised, plan, timesteps, self.length_multiple
            )
        return pack_documents(
            piece.layout,
            labels,
            num_class_tokens,
            clean,
            noised.noised,
            plan,
            timesteps,
            self.config.text.image_context,
        )

    def _pack_asking(self, piece: Arranged, denoising: Denoising) -> PackedSequence:
        """The training sequence of a per-token head."""
        model, plan, clean = self.config.model, piece.plan, piece.clean()
        labels, num_class_tokens = piece.labels, model.num_condition_tokens
        if piece.layout is not None:
            length = self._copies * plan.order.shape[1]
            tokens, told = (
                self._rows_of(values, piece.layout, length) for values in vars(denoising).values()
            )
            denoising = Denoising(tokens, told)
            return pack_asking_documents(piece.layout, labels, num_class_tokens, clean, plan, denoising)
        if model.head.ask == "previous":
            return pack_next(labels, num_class_tokens, clean, plan, denoising)
        if model.context == "bidirectional":
            first, places = self.first_asked(piece), plan.places
            return pack_bidirectional(
                labels,
                num_class_tokens,
                clean[:, :first],
                places[:, :first],
                places[:, first:],
                denoising,
                plan.grid,
            )
        if piece.rows is not None:
            return pack_asking_rows(labels, num_class_tokens, clean, plan, denoising, piece.rows)
        return pack_asking(labels, num_class_tokens, clean, plan, denoising, self.length_multiple)

    @property
    def _copies(self) -> int:
        return self.config.factorization.timesteps_per_ar_step

    def _rows_of(self, values: Tensor, layout: Layout, length: int) -> Tensor:
        """Values (N, 1 or R*L, ...) of images as rows (B, R*I*L, ...) of documents of I images, copy by copy;
        R*L is the `length`."""
        values = values.expand(-1, length, *values.shape[2:])
        of_documents = images_of(layout, values).unflatten(2, (self._copies, -1))
        return of_documents.transpose(1, 2).flatten(1, 3)

    def _images_of(self, predictions: Tensor, length: int, layout: Layout) -> Tensor:
        """Predictions for documents as those for their images, (B*I, R*L, P)."""
        if not self.config.model.per_token:
            return predictions.unflatten(1, (-1, length)).flatten(0, 1)
        copies, count = self._copies, layout.image_row.shape[1]
        return predictions.unflatten(1, (copies, count, -1)).transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def weight(self, levels: Tensor) -> Tensor:
        """The weight of an image's error at each level."""
        return self.process.weight(levels)

    def image_loss(self, errors: Tensor, piece: Arranged) -> Tensor:
        """The mean of the squared errors (N, R*m, P) under the weights of AR steps and noise levels; 0
        without an image."""
        if not len(errors):
            return errors.sum()
        first = self.first_asked(piece)
        weighted = errors * self.weight(piece.levels_from(first))[:, :, None]
        plan = piece.plan
        of_tokens = loss_weights(plan.ar_step, self.config.factorization, plan.lengths)
        return weighted_mean(weighted, of_tokens[:, first:])
