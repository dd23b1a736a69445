"""What leaves each layer of a transformer: the residual stream behind each block, before any final norm.

Layer 0 is what enters the first block; layers 1, 2, ... are the blocks' outputs, those of an encoder first.

Shape letters: B rows, n tokens of a segment, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from causalfusion.config import ModelConfig
from causalfusion.model.streams import Rows, Streams
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import PackedSequence


class _Enough(Exception):
    """Ends a pass behind the last layer that is wanted."""


def num_layers(config: ModelConfig) -> int:
    """The number of the last layer."""
    return config.encoder.depth + config.depth


def layer_outputs(
    model: Transformer, sequence: PackedSequence, layers: Collection[int]
) -> dict[int, list[Tensor]]:
    """(B, n, D) of each segment, by layer (from 0). One pass, which ends behind the last of the layers.

    The first segment has to be there to be read, as the last block computes only what is.
    """
    assert sequence.first_output == 0, "the last block leaves out what nothing reads"
    found: dict[int, list[Tensor]] = {}

    def keep(layer: int, x: Tensor | Rows) -> None:
        if layer in layers:
            found[layer] = segments_of(x, sequence)
        if layer == max(layers):
            raise _Enough

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        keep(0, inputs[0])

    def behind(layer: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        return lambda _, __, x: keep(layer, x)

    blocks = list(model.each_block())
    handles = [blocks[0].register_forward_pre_hook(before)]
    handles += [block.register_forward_hook(behind(n)) for n, block in enumerate(blocks, start=1)]
    try:
        model.hidden(sequence)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def readable(sequence: PackedSequence) -> PackedSequence:
    """The same sequence with every token read, whatever heads there are."""
    first, *rest = sequence.segments
    return PackedSequence((replace(first, asks_next=True), *rest))


def segments_of(x: Tensor | Rows, sequence: PackedSequence, first: int = 0) -> list[Tensor]:
    """(B, n, D) of each segment, of a layer's output from the sequence's token `first` on, which begins a
    segment; n = 0 for those before it."""
    if isinstance(x, Rows):
        return Streams.of(sequence).segments(x, first)
    edges = [max(edge - first, 0) for edge in sequence.boundaries]
    return [x[:, start:end] for start, end in pairwise(edges)]
