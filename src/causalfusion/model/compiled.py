"""Compilation, put on a model from outside: its blocks, one program for all of them and for all lengths."""

from __future__ import annotations

from collections.abc import Callable

from causalfusion.model.transformer import Transformer


def compile_blocks(model: Transformer, backend: str | Callable[..., object] = "inductor") -> None:
    """Have torch.compile make one function of every block's forward, when it first runs.

    Blocks share their code and compile once for all; lengths are variables of what is compiled, so that
    neither a new split nor a longer cache compiles anew.
    """
    for block in model.each_block():
        block.compile(backend=backend, dynamic=True)
