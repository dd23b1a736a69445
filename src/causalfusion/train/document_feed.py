"""From documents to batches of tokens: texts as ids, images encoded on the way, cut to what fits.

Shape letters: N images of a batch, L image tokens, P token dimension.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from causalfusion.codec.codec import Codec
from causalfusion.codec.for_source import open_codec_for
from causalfusion.codec.tokenizer import Tokenizer, open_tokenizer, train_tokenizer
from causalfusion.config import RunConfig
from causalfusion.data import open_documents
from causalfusion.data.document_loader import (
    DocumentExamples,
    DocumentLoader,
    DocumentReader,
    load_documents,
)
from causalfusion.data.document_source import DocumentImages, DocumentSource, documents_with_images
from causalfusion.data.loader import split_holdout
from causalfusion.data.source import spread
from causalfusion.documents import Element, Image, Text
from causalfusion.errors import check
from causalfusion.machine.processes import World
from causalfusion.train.batch import TokenBatch
from causalfusion.train.document_batch import DocumentBatch, cut, sample_index, text_tokens
from causalfusion.train.feed import TrainingData
from causalfusion.train.from_data import TOKENIZER_IMAGES, measured, with_facts_of_data

LEAST_TEXT_TOKENS = 5
"""Room in which any document keeps something: a token of text, its markers, or an image's, and the end."""


@dataclass(frozen=True)
class DocumentTokens(TokenBatch):
    """A batch of documents: `tokens` and `sample_indices` are those of their N images, `labels` (documents,)
    mean no class."""

    @property
    def of_documents(self) -> DocumentBatch:
        assert self.documents is not None
        return self.documents

    @property
    def num_text(self) -> int:
        return self.of_documents.num_text

    def image_rows(self, rows: slice) -> slice:
        return self.of_documents.rows_of(rows)

    def slice(self, rows: slice) -> TokenBatch:
        images = self.image_rows(rows)
        return replace(
            self,
            tokens=self.tokens[images],
            labels=self.labels[rows],
            sample_indices=self.sample_indices[images],
            documents=self.of_documents.slice(rows),
        )


@dataclass(frozen=True, kw_only=True)
class DocumentTrainingData(TrainingData):
    """The data of a run on documents, each an example: `train_indices` and `held_out` are theirs."""

    documents: DocumentSource
    """`source` has images of them alone."""

    @property
    def origin(self) -> DocumentSource:
        return self.documents

    @property
    def examples(self) -> str:
        return "documents"

    def batches(self, images_seen: int) -> Iterator[TokenBatch]:
        train = self.config.train
        loader = DocumentLoader(
            self._reader_of(self.train_indices),
            self.config.data,
            self.train_indices,
            seed=train.seed,
            batch_size=train.batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
        )
        for found in loader.documents(images_seen):
            yield self._tokens(found, drawn=True)

    def _reader_of(self, pool: np.ndarray) -> DocumentReader:
        return DocumentReader(self.documents, self.config.data.fit(), pool)

    def evaluation_batches(self, batch_size: int) -> Iterator[TokenBatch]:
        """Held-out documents (training ones, if none are held out); always the same, their latents at the
        posterior's mode."""
        chosen = self._judged(self.config.train.evaluate_images)
        for start in range(0, len(chosen), batch_size):
            found = load_documents(self._reader_of(chosen), chosen[start : start + batch_size])
            found = replace(found, places=found.places + start)
            yield self._tokens(found, drawn=False).to(self.world.device)

    def held_out_captions(self, count: int) -> list[list[int]]:
        return []

    def held_out_documents(self, count: int) -> list[list[str | Tensor]]:
        """The beginnings of held-out documents that have an image, as far as a sequence has room for them."""
        chosen = self._judged(count)
        found = load_documents(self._reader_of(chosen), chosen)
        batch, rows = self._cut(found)
        assert self.tokenizer is not None, "documents have texts"
        prompts = list[list[str | Tensor]]()
        for document in batch.documents:
            last = max((n for n, e in enumerate(document) if isinstance(e, Image)), default=-1)
            prompts += [
                [
                    self.tokenizer.decode(e.ids) if isinstance(e, Text) else found.images[rows[e.row]]
                    for e in document[:last]
                    if isinstance(e, Text | Image)
                ]
            ] * (last >= 0)
        return prompts

    def _tokens(self, found: DocumentExamples, *, drawn: bool) -> DocumentTokens:
        """The documents with their images as tokens; `drawn`: latents are drawn, where they are drawn."""
        batch, rows = self._cut(found)
        images = found.images[rows].to(self.world.device)
        indices = [
            sample_index(place, number)
            for place, document in zip(batch.places, batch.documents, strict=True)
            for number in range(sum(isinstance(e, Image) for e in document))
        ]
        sample_indices = torch.tensor(indices, dtype=torch.int64)
        model = self.config.model
        if len(rows):
            noise = self._latent_noise(sample_indices, self.codec) if drawn else None
            tokens = self.codec.encode_tokens(images, noise)
        else:
            tokens = torch.zeros(0, model.num_tokens, model.token_dim, device=self.world.device)
        labels = torch.full((len(batch),), model.null_label, dtype=torch.int64)
        return DocumentTokens(tokens, labels, sample_indices, documents=batch)

    def _cut(self, found: DocumentExamples) -> tuple[DocumentBatch, list[int]]:
        """(the documents as far as a sequence has room for them, the rows of the images that are left); that
        something is left out is said once."""
        assert self.tokenizer is not None, "documents have texts"
        model, documents, whole, rows = self.config.model, [], [], list[int]()
        long, num_cut, lost = (0, 0), 0, 0
        for elements in found.documents:
            ids = elements_of(elements, self.tokenizer)
            kept, is_whole = cut(ids, model.max_text_tokens, model.max_images)
            numbered = list[Element]()
            for element in kept:
                if isinstance(element, Image):
                    rows.append(element.row)
                    element = Image(len(rows) - 1)
                numbered.append(element)
            documents.append(tuple(numbered))
            whole.append(is_whole)
            images = sum(isinstance(e, Image) for e in ids)
            lost += images - sum(isinstance(e, Image) for e in kept)
            num_cut += not is_whole
            long = max(long[0], text_tokens(ids) + 1), max(long[1], images)
        self._say_cut(len(documents), num_cut, lost, *long)
        places = tuple(found.places.tolist())
        return DocumentBatch(tuple(documents), tuple(whole), places), rows

    def _say_cut(self, seen: int, num_cut: int, lost: int, longest: int, most: int) -> None:
        known = self.cut_captions["cut"]
        self.cut_captions.update(seen=seen, cut=num_cut)
        if not num_cut or known:
            return
        model = self.config.model
        warnings.warn(
            f"documents are longer than a sequence, and their ends, which do not fit, are cut off: {num_cut} "
            f"of the first {self.cut_captions['seen']}, which lose {lost} images; model.max_text_tokens "
            f"{max(longest, model.max_text_tokens)} and model.max_images {max(most, model.max_images)} make "
            "room for these",
            stacklevel=2,
        )


def elements_of(elements: Sequence[str | int], tokenizer: Tokenizer) -> list[Element]:
    """The elements of a document as they are laid out."""
    return [Text(tuple(tokenizer.encode(e))) if isinstance(e, str) else Image(e) for e in elements]


def open_document_data(
    config: RunConfig, world: World, tokenizer: Tokenizer | None = None
) -> DocumentTrainingData:
    """`open_training_data` for documents."""
    _check_settings(config, world)
    source = open_documents(config.data, config.train.seed)
    train_indices, held_out = split_holdout(len(source), config.data.holdout)
    images = DocumentImages(source, documents_with_images(source, train_indices))
    codec: Codec = open_codec_for(images, config.data, config.codec).to(world.device)
    if config.codec.normalization == "measured":
        codec = measured(codec, images, np.arange(len(images)), config, None)
    tokenizer = tokenizer or _tokenizer_of(config, source, train_indices)
    config = with_facts_of_data(config, codec, 1, tokenizer, len(train_indices))
    return DocumentTrainingData(
        config, codec, [], images, train_indices, held_out, world, tokenizer, documents=source
    )


def _check_settings(config: RunConfig, world: World) -> None:
    text, model, train = config.text, config.model, config.train
    why = f"for documents (data.source {config.data.source})"
    check(bool(text.tokenizer), "text.tokenizer", text.tokenizer, f"a tokenizer, or train, {why}")
    check(model.num_class_tokens == 0, "model.num_class_tokens", model.num_class_tokens, f"0, {why}")
    group, least = text.examples_per_sequence, LEAST_TEXT_TOKENS
    check(group == 1, "text.examples_per_sequence", group, f"1, {why}, which hold all their examples")
    room = model.max_text_tokens
    check(room >= least, "model.max_text_tokens", room, f"at least {least}, {why}")
    parts = world.size * train.grad_accumulation
    expected = f"a multiple of {parts} (processes x train.grad_accumulation)"
    check(train.batch_size % parts == 0, "train.batch_size", train.batch_size, expected)


def _tokenizer_of(config: RunConfig, source: DocumentSource, indices: np.ndarray) -> Tokenizer:
    """The one that the settings name, or one trained on the texts."""
    if config.text.tokenizer != "train":
        return open_tokenizer(config.text.tokenizer)
    texts = (text for index in spread(indices, TOKENIZER_IMAGES).tolist() for text in source.texts(index))
    return train_tokenizer(texts, config.text.vocab_size)
