"""The decoder-only transformer (PAPER section 2): packed sequence in, predictions for its tokens out.

Shape letters: B rows, T packed tokens, n tokens of a segment, D width, P token dimension, R rows of
modulation. The model draws nothing, adds no noise and computes no loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.config import ModelConfig
from causalfusion.model.attention import Attend, AttentionBackend, select_attend
from causalfusion.model.block import Block, Modulation
from causalfusion.model.embeddings import ClassEmbedding, TimestepEmbedding, rope_table, sincos_positions
from causalfusion.sequence import PackedSequence, Segment


class Predictions(NamedTuple):
    image: Tensor
    """(B, n, P) for the noised tokens, in their order in the sequence."""
    text: Tensor | None = None
    """(B, n, vocabulary) logits of what follows each text token; None where there is no text."""


class Transformer(nn.Module):
    image_position: Tensor
    rope: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        size, adaln = config.hidden_size, config.conditioning == "adaln_zero"
        self.image_in = nn.Linear(config.token_dim, size)
        self.timestep_embedding = TimestepEmbedding(size)
        self.class_embedding = _class_embedding(config)
        has_text = config.vocab_size > 0
        self.text_embedding = nn.Embedding(config.vocab_size, size) if has_text else None
        self.text_position = nn.Embedding(config.max_text_tokens, size) if has_text else None
        self.image_index = nn.Embedding(config.max_images, size) if config.max_images > 1 else None
        if config.position_embedding == "learnable":
            self.image_position = nn.Parameter(torch.empty(config.num_tokens, size))
        elif config.position_embedding == "sincos":
            self.register_buffer("image_position", torch.empty(config.num_tokens, size), persistent=False)
        else:
            self.register_buffer("rope", torch.empty(2, config.num_tokens, config.head_dim), persistent=False)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm_out = nn.LayerNorm(size, elementwise_affine=not adaln)
        self.modulation_out = nn.Linear(size, 2 * size) if adaln else None
        self.image_out = nn.Linear(size, config.prediction_dim)
        self.text_out = nn.Linear(size, config.vocab_size, bias=False) if has_text else None
        self.init_weights()

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Linear layers Xavier-uniform, embeddings N(0, 0.02), output and AdaLN modulations zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
            elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, ClassEmbedding):
                nn.init.normal_(module.position, std=0.02, generator=generator)
        zero = [self.image_out, self.modulation_out, *(b.modulation for b in self.each_block())]
        for module in zero:
            if module is not None:
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
        self.fill_positions()

    @torch.no_grad()
    def fill_positions(self) -> None:
        """The fixed tables, which no state dict holds; a learnable one begins like the fixed one."""
        config, device = self.config, self.image_out.weight.device
        grid = (config.grid_height, config.grid_width)
        if config.position_embedding == "rope":
            self.rope = rope_table(config.head_dim, *grid).to(device)
        elif config.position_embedding == "sincos":
            self.image_position = sincos_positions(config.hidden_size, *grid).to(device)
        else:
            self.image_position.copy_(sincos_positions(config.hidden_size, *grid))

    def each_block(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def forward(
        self, sequence: PackedSequence, attend: Attend | None = None, backend: AttentionBackend = "auto"
    ) -> Predictions:
        """Predictions for the noised tokens. `attend` defaults to the mask of the sequence by itself;
        a `KVCache` gives the one of new tokens in generation."""
        attend = attend or select_attend(sequence, backend, self.config.head_dim)
        x = torch.cat([self._embed(s) for s in sequence.segments if s.num_tokens], dim=1)
        rotation, modulation = self._rotation(sequence), self._modulation(sequence)
        for layer, block in enumerate(self.blocks):
            first = sequence.first_output if layer == self.config.depth - 1 else 0
            x = block(x, attend, layer, first, rotation, modulation)
        x = self.norm_out(x)
        if self.modulation_out is not None and modulation is not None:
            rows = self.modulation_out(F.silu(modulation.rows))
            shift, scale = rows[:, modulation.row_of_token[sequence.first_output :]].chunk(2, dim=-1)
            x = x * (1 + scale) + shift
        return self._heads(x, sequence)

    def _heads(self, x: Tensor, sequence: PackedSequence) -> Predictions:
        """x (B, T - first_output, D): each predicting segment's rows go to the head of its kind."""
        rows: dict[str, list[Tensor]] = {"image": [], "text": []}
        for segment, (start, end) in zip(sequence.segments, pairwise(sequence.boundaries), strict=True):
            if segment.predicts:
                first = sequence.first_output
                rows[segment.kind].append(x[:, start - first : end - first])
        image, text = (torch.cat(r, dim=1) if len(r) > 1 else (r or [x[:, :0]])[0] for r in rows.values())
        return Predictions(
            image=self.image_out(image), text=None if self.text_out is None else self.text_out(text)
        )

    def _embed(self, segment: Segment) -> Tensor:
        if segment.kind == "class":
            assert self.class_embedding is not None, "this model has no class tokens"
            return self.class_embedding(segment.values)
        assert segment.places is not None, "text and image tokens have places"
        if segment.kind == "text":
            assert self.text_embedding is not None and self.text_position is not None, "a model with text"
            return self.text_embedding(segment.values) + self.text_position(segment.places)
        x = self.image_in(segment.values)
        if self.image_index is not None:
            index = segment.image_index
            x = x + (self.image_index.weight[0] if index is None else self.image_index(index))
        if segment.timesteps is not None and self.config.conditioning == "in_context":
            x = x + self.timestep_embedding(segment.timesteps)
        if self.config.position_embedding != "rope":
            x = x + F.embedding(self._raster(segment.places), self.image_position)
        return x

    def _raster(self, places: Tensor) -> Tensor:
        """Places (1 or B, n, 2) as rows of the tables, which hold the grid of training."""
        return places[..., 0] * self.config.grid_width + places[..., 1]

    def _rotation(self, sequence: PackedSequence) -> Tensor | None:
        """(2, 1 or B, 1, T, H); class and text tokens are not turned."""
        if self.config.position_embedding != "rope":
            return None
        parts = []
        for segment in sequence.segments:
            if segment.kind != "image" or segment.places is None:
                unit = self.rope.new_zeros(2, 1, segment.num_tokens, self.config.head_dim)
                unit[0] = 1
                parts.append(unit)
            else:
                parts.append(self.rope[:, self._raster(segment.places)])
        rows = max(part.shape[1] for part in parts)
        return torch.cat([part.expand(-1, rows, -1, -1) for part in parts], dim=2)[:, :, None]

    def _modulation(self, sequence: PackedSequence) -> Modulation | None:
        """AdaLN-zero: class plus, for noised tokens, timestep; a row per segment or per token."""
        if self.config.conditioning != "adaln_zero":
            return None
        assert self.class_embedding is not None, "AdaLN-zero has a row per class"
        labels = next(s.values for s in sequence.segments if s.kind == "class")
        condition = self.class_embedding(labels)[:, None]
        rows, row_of_token, start = [], [], 0
        for segment in sequence.segments:
            if not segment.num_tokens:
                continue
            part = condition
            if segment.timesteps is not None:
                part = condition + self.timestep_embedding(segment.timesteps)
            index = torch.arange(segment.num_tokens, device=labels.device)
            row_of_token.append(start + (index if part.shape[1] > 1 else torch.zeros_like(index)))
            rows.append(part)
            start += part.shape[1]
        return Modulation(torch.cat(rows, dim=1), torch.cat(row_of_token))


def _class_embedding(config: ModelConfig) -> nn.Module | None:
    if config.conditioning == "adaln_zero":
        return nn.Embedding(config.num_classes + 1, config.hidden_size)
    if not config.num_class_tokens:
        return None
    return ClassEmbedding(
        config.num_classes, config.hidden_size, config.num_class_tokens, config.class_token_repeats
    )


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
