"""The program of one block.

Shape letters: B rows, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from causalfusion.interop.exported.arguments import Argument
from causalfusion.interop.exported.programs import ContextAttend, Program
from causalfusion.model.modulation import Modulation
from causalfusion.model.transformer import Transformer


class OneBlock(Program):
    name = "block"
    summary = "The first block of the transformer by itself."

    def part_of(self, model: Transformer) -> nn.Module:
        return model.blocks[0]

    @property
    def inputs(self) -> list[Argument]:
        c = self.config
        given = [
            Argument("x", ("B", "T", c.hidden_size), "what enters the block"),
            Argument("attends", ("B", "T", "T"), "true where a token (row) sees another", "seen"),
        ]
        if c.position_embedding == "rope" or self.turned_by_text:
            given.append(Argument("rotation", (2, "B", 1, "T", c.head_dim), "cosines and sines"))
        if c.conditioning == "adaln_zero":
            given.append(Argument("condition", ("B", 1, c.condition_size), "embedded timestep and class"))
            if c.adaln_rank:
                shape = ("B", 1, 6 * c.hidden_size)
                given.append(Argument("shared", shape, "the modulation that all blocks share"))
        return given

    @property
    def outputs(self) -> list[Argument]:
        return [Argument("y", ("B", "T", self.config.hidden_size), "what leaves it")]

    def forward(
        self,
        x: Tensor,
        attends: Tensor,
        rotation: Tensor | None = None,
        condition: Tensor | None = None,
        shared: Tensor | None = None,
    ) -> Tensor:
        attend = ContextAttend(None, None, attends[:, None])
        modulation = None
        if condition is not None:
            modulation = Modulation(condition, torch.zeros_like(attends[:1, 0], dtype=torch.int64), shared)
        return self.model(x, attend, 0, 0, rotation, modulation)
