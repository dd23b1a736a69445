"""The decoder-only transformer (PAPER section 2): packed sequence in, predictions for its tokens out.

Shape letters: B rows, T packed tokens, n tokens of a segment, L image tokens, C class tokens, D width, P
token dimension, R rows of modulation. The model draws nothing (but for dropout, where it is on), adds no
noise and computes no loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.config import ModelConfig, RopeExtrapolation
from causalfusion.factorization import raster_of
from causalfusion.model.attention import Attend, AttentionBackend, select_attend
from causalfusion.model.block import Block
from causalfusion.model.embeddings import ClassEmbedding, TimestepEmbedding
from causalfusion.model.encoder import Encoder
from causalfusion.model.head import PerTokenHead
from causalfusion.model.modulation import Modulation, make_modulation, modulate, zero_modulation
from causalfusion.model.norm import Norm, norm_of
from causalfusion.model.positions import resize_table, sincos_at, sincos_positions
from causalfusion.model.rotation import sequence_rotation, table_of_training
from causalfusion.sequence import PackedSequence, Segment


class Predictions(NamedTuple):
    image: Tensor
    """(B, n, P) for the noised tokens, in their order in the sequence; with a per-token head, for those of
    the sequence's `denoising`."""
    text: Tensor | None = None
    """(B, n, vocabulary) logits of what follows each text token; None where there is no text."""
    condition: Tensor | None = None
    """(B, n, D) conditions of the tokens that are asked for; None without a per-token head."""


class Transformer(nn.Module):
    image_position: Tensor
    rope: Tensor
    image_in: nn.Linear
    """Only of a model with images, as are all others that concern them."""
    timestep_embedding: TimestepEmbedding
    """Belongs to the joint head, as `image_out` does; the per-token head has its own."""
    image_out: nn.Linear
    text_embedding: nn.Embedding
    """Only of a model with text."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        size, entry, adaln = config.hidden_size, config.encoder_size, config.conditioning == "adaln_zero"
        condition, bias, has_text = config.condition_size, config.bias, config.vocab_size > 0
        self.joint = not config.per_token and not config.text_only
        if not config.text_only:
            self.image_in = nn.Linear(config.token_dim, entry, bias=bias.input)
        if self.joint:
            self.timestep_embedding = TimestepEmbedding(condition, bias.condition)
        self.class_embedding = _class_embedding(config)
        if has_text:
            self.text_embedding = nn.Embedding(config.vocab_size, size)
        learned = has_text and config.language.positions == "learned"
        self.text_position = nn.Embedding(config.max_text_tokens, size) if learned else None
        self.image_index = nn.Embedding(config.max_images, size) if config.max_images > 1 else None
        if config.text_only:
            pass
        elif config.position_embedding == "learnable":
            self.image_position = nn.Parameter(torch.empty(config.num_tokens, entry))
        elif config.position_embedding == "sincos":
            self.register_buffer("image_position", torch.empty(config.num_tokens, entry), persistent=False)
        else:
            self.register_buffer("rope", torch.empty(2, config.num_tokens, config.head_dim), persistent=False)
        self.norm_in = nn.LayerNorm(entry, eps=config.norm.eps) if config.input_norm else None
        self.encoder = Encoder(config) if config.encoder.depth else None
        asks = config.per_token and config.head.ask == "mask"
        self.mask_token = nn.Parameter(torch.empty(size)) if asks else None
        shared = config.adaln_rank > 0
        self.modulation = make_modulation(condition, 6 * size, bias.condition) if shared else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm_out = norm_of(config.out_norm, size, adaln)
        self.modulation_out = make_modulation(condition, 2 * size, bias.condition) if adaln else None
        positions = config.per_token and config.head.positions
        self.condition_position = nn.Parameter(torch.empty(config.num_tokens, size)) if positions else None
        self.head = PerTokenHead(config) if config.per_token else None
        if self.joint:
            self.image_out = nn.Linear(size, config.prediction_dim, bias=bias.output)
        untied = has_text and not config.language.tied
        self.text_out = nn.Linear(size, config.vocab_size, bias=False) if untied else None
        self.init_weights()
        self.eval()  # dropout is on in train steps alone, which say so

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Linear layers Xavier-uniform, embeddings N(0, 0.02), outputs and AdaLN modulations zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
            elif isinstance(module, Norm) and module.elementwise_affine:
                nn.init.ones_(module.weight)
                if isinstance(module, nn.LayerNorm):
                    nn.init.zeros_(module.bias)
            elif isinstance(module, ClassEmbedding) and module.position is not None:
                nn.init.normal_(module.position, std=0.02, generator=generator)
        tables = [self.mask_token, self.condition_position]
        if self.encoder is not None:
            tables += [self.encoder.class_position, self.encoder.image_position]
        for table in tables:
            if table is not None:
                nn.init.normal_(table, std=0.02, generator=generator)
        zero = [self.modulation, self.modulation_out, *(b.modulation for b in self.each_block())]
        if self.joint:
            zero.append(self.image_out)
        if self.head is not None:
            zero += [self.head.image_out, self.head.modulation_out, *self.head.modulations()]
        for module in zero:
            if module is not None:
                zero_modulation(module)
        self.fill_positions()

    @torch.no_grad()
    def fill_positions(self) -> None:
        """The fixed tables, which no state dict holds; a learnable one begins like the fixed one."""
        config = self.config
        if config.text_only or self.image_in.weight.is_meta:
            return
        device, grid = self.image_in.weight.device, (config.grid_height, config.grid_width)
        if config.position_embedding == "rope":
            self.rope = table_of_training(config).to(device)
        elif config.position_embedding == "sincos":
            self.image_position = sincos_positions(config.encoder_size, *grid).to(device)
        else:
            self.image_position.copy_(sincos_positions(config.encoder_size, *grid))

    def extrapolate(self, rule: RopeExtrapolation) -> None:
        """Turn tokens of grids larger than that of training by this rule's frequencies."""
        self.config = replace(self.config, rope=replace(self.config.rope, extrapolation=rule))
        self.fill_positions()

    def each_block(self) -> Iterator[Block]:
        """The blocks in their order, those of the encoder first."""
        for block in (*(() if self.encoder is None else self.encoder.blocks), *self.blocks):
            assert isinstance(block, Block)
            yield block

    def forward(
        self, sequence: PackedSequence, attend: Attend | None = None, backend: AttentionBackend = "auto"
    ) -> Predictions:
        """Predictions for the noised tokens. `attend` defaults to the mask of the sequence by itself;
        a `KVCache` gives the one of new tokens in generation."""
        return self._leave(self.hidden(sequence, attend, backend), sequence)

    def hidden(
        self, sequence: PackedSequence, attend: Attend | None = None, backend: AttentionBackend = "auto"
    ) -> Tensor:
        """(B, T - first_output, D): what the heads read, of the tokens from the first that one reads."""
        attend = attend or self._attend(sequence, backend)
        table = self.rope if self.config.position_embedding == "rope" else None
        rotation = sequence_rotation(sequence, self.config, table)
        x, modulation = self._enter(sequence, backend), self._modulation(sequence)
        for layer, block in enumerate(self.blocks):
            first = sequence.first_output if layer == self.config.depth - 1 else 0
            x = block(x, attend, layer, first, rotation, modulation)
        x = self.norm_out(x)
        if self.modulation_out is not None and modulation is not None:
            rows = self.modulation_out(F.silu(modulation.rows))
            x = modulate(x, *rows[:, modulation.row_of_token[sequence.first_output :]].chunk(2, dim=-1))
        return x

    def text_logits(self, x: Tensor) -> Tensor:
        """(..., vocabulary) float32 logits of what follows text tokens, from what `hidden` gave (..., D)."""
        out = self.text_embedding if self.text_out is None else self.text_out
        return F.linear(x, out.weight).float()

    def _attend(self, sequence: PackedSequence, backend: AttentionBackend) -> Attend:
        dropout = self.config.attention_dropout if self.training else 0.0
        return select_attend(sequence, backend, self.config.head_dim, dropout, self.config.language)

    def _leave(self, x: Tensor, sequence: PackedSequence) -> Predictions:
        """x (B, T - first_output, D): each predicting segment's rows go to the head of its kind."""
        image, text = [], []
        for segment, (start, end) in zip(sequence.segments, pairwise(sequence.boundaries), strict=True):
            if segment.predicts:
                start = end - 1 if segment.kind == "class" else start
                rows = x[:, start - sequence.first_output : end - sequence.first_output]
                (text if segment.kind == "text" else image).append(rows)
        of_image, of_text = (
            torch.cat(r, dim=1) if len(r) > 1 else (r or [x[:, :0]])[0] for r in (image, text)
        )
        logits = self.text_logits(of_text) if self.config.vocab_size else None
        if self.joint:
            return Predictions(self.image_out(of_image), logits)
        if self.head is None:
            return Predictions(of_image, logits)
        if self.condition_position is not None:
            asked = (s for s in sequence.segments if s.role == "asked")
            places = [self._of_table(self.condition_position, segment) for segment in asked]
            of_image = of_image + torch.cat(places, dim=1)
        if sequence.denoising is None:
            return Predictions(of_image[:, :0], logits, of_image)
        denoised = self.head(of_image, sequence.denoising.tokens, sequence.denoising.timesteps)
        return Predictions(denoised, logits, of_image)

    def _enter(self, sequence: PackedSequence, backend: AttentionBackend) -> Tensor:
        """The embedded tokens (B, T, D); with an encoder, known ones go through it, and asked ones behind."""
        segments = [s for s in sequence.segments if s.num_tokens]
        if self.encoder is None:
            x = torch.cat([self._embed(s) for s in segments], dim=1)
            return x if self.norm_in is None else self.norm_in(x)
        known = [s for s in segments if s.role != "asked"]
        x = torch.cat([self._embed(s) for s in known], dim=1)
        x = x if self.norm_in is None else self.norm_in(x)
        x = self.encoder(x, self._attend(PackedSequence(tuple(known)), backend))
        asked = [self._mask_tokens(s) for s in segments if s.role == "asked"]
        assert segments == [*known, *(s for s in segments if s.role == "asked")], "asked tokens stand behind"
        places = [
            self.encoder.class_position.expand(len(x), -1, -1)
            if s.kind == "class"
            else self._of_table(self.encoder.image_position, s).expand(len(x), -1, -1)
            for s in segments
        ]
        return torch.cat([x, *asked], dim=1) + torch.cat(places, dim=1)

    def _mask_tokens(self, segment: Segment) -> Tensor:
        assert self.mask_token is not None, "only a per-token head asks by mask tokens"
        return self.mask_token.expand(len(segment.values), segment.num_tokens, -1)

    def _embed(self, segment: Segment) -> Tensor:
        if segment.kind == "class":
            assert self.class_embedding is not None, "this model has no class tokens"
            return self.class_embedding(segment.values)
        assert segment.places is not None, "text and image tokens have places"
        if segment.kind == "text":
            x = self.text_embedding(segment.values)
            return x if self.text_position is None else x + self.text_position(segment.places)
        x = self._mask_tokens(segment) if segment.role == "asked" else self.image_in(segment.values)
        if self.image_index is not None:
            index = segment.image_index
            x = x + (self.image_index.weight[0] if index is None else self.image_index(index))
        if segment.timesteps is not None and self.config.conditioning == "in_context":
            x = x + self.timestep_embedding(segment.timesteps)
        if self.config.position_embedding == "sincos" and segment.grid is not None:
            return x + sincos_at(segment.places, self.config.encoder_size)
        if self.config.position_embedding != "rope":
            x = x + self._of_table(self.image_position, segment)
        return x

    def _of_table(self, table: Tensor, segment: Segment) -> Tensor:
        """(1 or B, n, D) rows of a table (L, D) of the grid of training, interpolated to another grid."""
        assert segment.places is not None, "image tokens have places"
        if segment.grid is None:
            return F.embedding(raster_of(segment.places, self.config.grid_width), table)
        trained = self.config.grid_height, self.config.grid_width
        each = len(segment.places) // len(segment.grid)  # rows of a grid: all, or one
        rows = []
        for grid, places in zip(segment.grid.tolist(), segment.places.split(each), strict=True):
            resized = resize_table(table, trained, (grid[0], grid[1]))
            rows.append(F.embedding(raster_of(places, grid[1]), resized))
        return torch.cat(rows)

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
        of_rows = torch.cat(rows, dim=1)
        shared = None if self.modulation is None else self.modulation(F.silu(of_rows))
        return Modulation(of_rows, torch.cat(row_of_token), shared)


def _class_embedding(config: ModelConfig) -> nn.Module | None:
    if config.conditioning == "adaln_zero":
        return nn.Embedding(config.num_classes + 1, config.condition_size)
    if not config.num_class_tokens or config.text_only:
        return None
    turned = config.position_embedding == "rope" and config.rope.axes == "raster"
    return ClassEmbedding(
        config.num_classes,
        config.encoder_size,
        config.num_class_tokens,
        config.class_token_repeats,
        positions=not turned,
    )


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
