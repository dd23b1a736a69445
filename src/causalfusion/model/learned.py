"""Which weights of a model a run trains."""

from __future__ import annotations

from collections.abc import Iterable

from causalfusion.config import RunConfig
from causalfusion.model.norm import Norm
from causalfusion.model.parts import is_of_text
from causalfusion.model.projector import is_of_projector
from causalfusion.model.tables import WORD_TABLES, class_table_of
from causalfusion.model.transformer import Transformer

TABLES_OF_PLACES = ("image_position", "condition_position", "encoder.image_position")
"""Learned tables with a row for each place of the model's grid."""
_ADDITIONS = ("lora_a", "lora_b")
_FIRST_AND_LAST = (
    "image_in",
    "image_out",
    "modulation_out",
    "head.token_in",
    "head.image_out",
    "head.modulation_out",
)
"""The embedding of image tokens, and the last layer with its modulation."""


def additions_of(names: Iterable[str]) -> frozenset[str]:
    """The low-rank additions among these weights."""
    return frozenset(name for name in names if name.rpartition(".")[2] in _ADDITIONS)


def learned_of(model: Transformer, config: RunConfig) -> frozenset[str]:
    """Names of the parameters that the settings train, a table of which only some rows learn included."""
    names = frozenset(name for name, _ in model.named_parameters())
    if config.finetune.trained != "none":
        return _of_adapter(names, config)
    if config.train.trainable == "all":
        return names
    if config.train.trainable == "images":
        marks = frozenset(n for n in names if n.startswith(("marker_embedding.", "marker_out.")))
        images = frozenset(name for name in names - marks if not is_of_text(name))
        return images | marks if config.reads_text else images
    trained = set(TABLES_OF_PLACES)
    for name, module in model.named_modules():
        if isinstance(module, Norm) or name in _FIRST_AND_LAST:
            trained |= {f"{name}.{own}" for own, _ in module.named_parameters()}
    return frozenset(n for n in names if n in trained or n.endswith(".bias") or is_of_projector(n))


def _of_adapter(names: frozenset[str], config: RunConfig) -> frozenset[str]:
    if config.finetune.adapter == "text-inversion":
        return frozenset(WORD_TABLES[:1])
    table = class_table_of(names)
    of_classes = {table} if table is not None and config.finetune.new_classes else set[str]()
    return additions_of(names) | of_classes
