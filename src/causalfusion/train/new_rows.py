"""Rows of the tables of a model that is fine-tuned: what new classes and a new word begin as, and which rows
learn beside an adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from causalfusion.codec.tokenizer import Tokenizer
from causalfusion.config import NUM_MARKERS, RunConfig
from causalfusion.data.labels import told_apart
from causalfusion.errors import UserError
from causalfusion.model.tables import WORD_TABLES, chosen_classes, class_table_of, with_word
from causalfusion.rng import derive_generator

NOISE = 0.25
"""Spread of what tells new classes apart, as a share of the spread of the numbers of the known ones."""


def for_classes(
    weights: dict[str, Tensor], known: Sequence[str], names: Sequence[str], seed: int
) -> dict[str, Tensor]:
    """The weights of a model of the classes `known` for one of the classes `names`: those of the same name
    keep their rows, new ones begin as the mean of all, told apart by a little noise."""
    table = class_table_of(weights)
    if table is None or list(names) == list(known):
        return weights
    rows, numbers = weights[table], {each: number for number, each in enumerate(told_apart(known))}
    places = [numbers.get(each, -1) for each in told_apart(names)]
    of_classes = rows[:-1]
    spread = NOISE * float(of_classes.std()) if of_classes.numel() > 1 else 0.0
    new = [
        of_classes.mean(0) + spread * torch.randn(rows.shape[1], generator=derive_generator(seed, "class", n))
        for n in range(places.count(-1))
    ]
    return {**weights, table: chosen_classes(rows, places, torch.stack(new) if new else rows[:0])}


def for_finetuning(
    weights: dict[str, Tensor], config: RunConfig, class_names: Sequence[str], tokenizer: Tokenizer | None
) -> dict[str, Tensor]:
    """The weights of a model for one with the run's classes, and with its new word."""
    finetune = config.finetune
    weights = for_classes(weights, finetune.classes, class_names, config.train.seed)
    if finetune.word:
        assert tokenizer is not None, "a word needs a tokenizer, which was opened with it"
        weights = for_word(weights, finetune.like, tokenizer)
    return weights


def for_word(weights: dict[str, Tensor], like: str, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The weights with a row for the tokenizer's last word, which begins as the mean of the words `like`, or
    of all. It is never written: in the table of logits, where that is another one, it begins as the marker of
    a text's beginning, which no text has inside."""
    words = weights["text_embedding.weight"][:-NUM_MARKERS]
    chosen = words[tokenizer.encode(" " + like)] if like else words
    begin = tokenizer.markers.text - 1  # before the word was there
    rows = {name: weights[name][begin] for name in WORD_TABLES[1:] if name in weights}
    return with_word(weights, {"text_embedding.weight": chosen.mean(0), **rows})


def rows_of_adapter(model: nn.Module, config: RunConfig) -> dict[nn.Parameter, slice]:
    """The rows that learn beside an adapter, of a table whose others stay, which the trainer sees to: of new
    classes, or of the new word. Raises UserError for settings that would change the other rows."""
    finetune, rows = config.finetune, {}
    named = dict(model.named_parameters())
    if finetune.adapter == "lora":
        table = class_table_of(named)
        if table is not None and finetune.new_classes:
            rows[table] = slice(len(finetune.classes), config.model.num_classes)
    else:
        word = config.model.vocab_size - NUM_MARKERS - 1
        rows["text_embedding.weight"] = slice(word, word + 1)
    if rows and config.train.weight_decay:
        raise UserError(
            f"train.weight_decay is {config.train.weight_decay:g}; expected 0, as some rows of a table "
            "learn, and its others stay"
        )
    return {named[name]: learned for name, learned in rows.items()}
