"""Compilation, put on a model from outside: its blocks, one program for all of them and for all lengths."""

from __future__ import annotations

from collections.abc import Callable

from causalfusion.model.kv_cache import leave_uncompiled
from causalfusion.model.transformer import Transformer

FORMS = 32
"""Forms of a block's inputs that are compiled at most."""


def compile_blocks(model: Transformer, backend: str | Callable[..., object] = "inductor") -> None:
    """Have torch.compile make one function of every block's forward, when it first runs.

    Blocks share their code and compile once for all; lengths are variables of what is compiled, so that
    neither a new split nor a longer cache compiles anew. Lengths of zero and one are no variables, and the
    last block reads fewer rows: each such form is compiled when it first comes.
    """
    from torch._dynamo import config

    leave_uncompiled()
    config.recompile_limit = max(config.recompile_limit, FORMS)  # beyond it, blocks run as they are
    for block in model.each_block():
        block.compile(backend=backend, dynamic=True)
