"""The decoder-only transformer: packed sequence in, predictions for its tokens out.

Shape letters: B rows, T packed tokens, n tokens of a segment, L image tokens, C class tokens, D width, P
token dimension, R rows of modulation. The model draws nothing (but for dropout, where it is on), adds no
noise and computes no loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.config import NUM_MARKERS, ModelConfig, RopeExtrapolation
from causalfusion.model.attention import Attend, AttentionBackend, select_attend
from causalfusion.model.block import Block
from causalfusion.model.embeddings import ClassEmbedding, TimestepEmbedding, class_embedding_of, embed_text
from causalfusion.model.encoder import Encoder
from causalfusion.model.head import PerTokenHead
from causalfusion.model.linear import LoraLinear
from causalfusion.model.modulation import (
    Modulation,
    make_modulation,
    modulate,
    sequence_modulation,
    zero_modulation,
)
from causalfusion.model.norm import Norm, norm_of
from causalfusion.model.positions import sincos_at, sincos_positions, table_at
from causalfusion.model.predictions import Predictions
from causalfusion.model.rotation import sequence_rotation, table_of_training
from causalfusion.model.streams import Rows, Streams
from causalfusion.sequence import PackedSequence, Segment


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
        size, image, entry = config.hidden_size, config.image_size, config.encoder_size
        adaln = config.conditioning == "adaln_zero"
        condition, bias, has_text = config.condition_size, config.bias, config.vocab_size > 0
        self.joint = not config.per_token and not config.text_only
        if not config.text_only:
            self.image_in = nn.Linear(config.token_dim, entry, bias=bias.input)
        if self.joint:
            self.timestep_embedding = TimestepEmbedding(condition, bias.condition)
        self.class_embedding = class_embedding_of(config)
        if has_text:
            self.text_embedding = nn.Embedding(config.text_vocab_size, size)
        own_markers = has_text and config.language.markers == "own"
        self.marker_embedding = nn.Embedding(NUM_MARKERS, size) if own_markers else None
        learned = has_text and config.language.positions == "learned"
        longest = config.language.longest or config.max_text_tokens
        self.text_position = nn.Embedding(longest, size) if learned else None
        self.image_index = nn.Embedding(config.max_images, entry) if config.max_images > 1 else None
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
        self.mask_token = nn.Parameter(torch.empty(image)) if asks else None
        shared = config.adaln_rank > 0
        self.modulation = make_modulation(condition, 6 * size, bias.condition) if shared else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm_out = norm_of(config.out_norm, size, adaln)
        own = config.own_image_weights
        self.image_norm_out = norm_of(config.out_norm, image, adaln=False) if own else None
        self.modulation_out = make_modulation(condition, 2 * size, bias.condition) if adaln else None
        positions = config.per_token and config.head.positions
        self.condition_position = nn.Parameter(torch.empty(config.num_tokens, image)) if positions else None
        self.head = PerTokenHead(config) if config.per_token else None
        if self.joint:
            self.image_out = nn.Linear(image, config.prediction_dim, bias=bias.output)
        untied = has_text and not config.language.tied
        self.text_out = nn.Linear(size, config.text_vocab_size, bias=False) if untied else None
        self.marker_out = nn.Linear(size, NUM_MARKERS, bias=False) if untied and own_markers else None
        self.init_weights()
        self.eval()  # dropout is on in train steps alone, which say so

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Linear layers Xavier-uniform, embeddings N(0, 0.02), outputs and AdaLN modulations zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if isinstance(module, LoraLinear):
                    module.init_addition(generator)
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
        self,
        sequence: PackedSequence,
        attend: Attend | None = None,
        backend: AttentionBackend = "auto",
        text_token: Tensor | None = None,
    ) -> Predictions:
        """Predictions for the noised tokens. `attend` defaults to the mask of the sequence by itself; a
        `KVCache` gives the one of new tokens in generation. `text_token` (B,): the index of the one text
        token in each row that is to have logits, (B, 1, vocabulary); None: all of them have."""
        return self._leave(self.hidden(sequence, attend, backend), sequence, text_token)

    def hidden(
        self, sequence: PackedSequence, attend: Attend | None = None, backend: AttentionBackend = "auto"
    ) -> list[Tensor]:
        """The last layer's output (B, n, D) of each segment; (B, 0, D) for those before the first that a head
        reads."""
        attend = attend or self._attend(sequence, backend)
        table = self.rope if self.config.position_embedding == "rope" else None
        rotation = sequence_rotation(sequence, self.config, table)
        streams = Streams.of(sequence) if self.config.own_image_weights else None
        x, modulation = self._enter(sequence, backend), self._modulation(sequence)
        read = sequence.first_output
        for layer, block in enumerate(self.blocks):
            first = read if layer == self.config.depth - 1 else 0
            x = block(x, attend, layer, first, rotation, modulation, streams)
        if isinstance(x, Rows):
            assert streams is not None and self.image_norm_out is not None
            return streams.segments(Rows(self.norm_out(x.text), self.image_norm_out(x.image)), read)
        x = self.norm_out(x)
        if self.modulation_out is not None and modulation is not None:
            rows = self.modulation_out(F.silu(modulation.rows))
            x = modulate(x, *modulation.of_tokens(rows, read).chunk(2, dim=-1))
        edges = [max(edge - read, 0) for edge in sequence.boundaries]
        return [x[:, start:end] for start, end in pairwise(edges)]

    def text_logits(self, x: Tensor) -> Tensor:
        """(..., vocabulary) float32 logits of what follows text tokens, from what `hidden` gave (..., D)."""
        out = self.text_embedding if self.text_out is None else self.text_out
        logits = F.linear(x, out.weight)
        if self.marker_embedding is not None:
            markers = self.marker_embedding if self.marker_out is None else self.marker_out
            logits = torch.cat([logits, F.linear(x, markers.weight)], dim=-1)
        return logits.float()

    def _attend(self, sequence: PackedSequence, backend: AttentionBackend) -> Attend:
        dropout = self.config.attention_dropout if self.training else 0.0
        return select_attend(sequence, backend, self.config.head_dim, dropout, self.config.language)

    def _leave(
        self, rows: Sequence[Tensor], sequence: PackedSequence, text_token: Tensor | None
    ) -> Predictions:
        """Each predicting segment's rows go to the head of its kind."""
        image, text = [], []
        for segment, x in zip(sequence.segments, rows, strict=True):
            if segment.predicts:
                (text if segment.kind == "text" else image).append(
                    x[:, -1:] if segment.kind == "class" else x
                )
        if text_token is not None:
            text = [torch.cat(text, dim=1)[torch.arange(len(text_token)), text_token][:, None]]
        logits = self.text_logits(torch.cat(text, dim=1)) if text else None
        none = rows[0].new_zeros(rows[0].shape[0], 0, self.config.image_size)
        of_image = torch.cat(image, dim=1) if image else none
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

    def _enter_streams(self, segments: Sequence[Segment]) -> Rows:
        """The embedded tokens, in two streams."""
        streams: tuple[list[Tensor], list[Tensor]] = ([], [])
        for segment in segments:
            streams[segment.kind == "image"].append(self._embed(segment))
        some = next(x for of_stream in streams for x in of_stream)
        widths = self.config.hidden_size, self.config.image_size
        return Rows(
            *(
                torch.cat(x, dim=1) if x else some.new_zeros(len(some), 0, width)
                for x, width in zip(streams, widths, strict=True)
            )
        )

    def _modulation(self, sequence: PackedSequence) -> Modulation | None:
        if self.config.conditioning != "adaln_zero":
            return None
        assert self.class_embedding is not None, "AdaLN-zero has a row per class"
        of_timesteps = self.timestep_embedding if self.joint else None
        return sequence_modulation(sequence, self.class_embedding, of_timesteps, self.modulation)

    def _enter(self, sequence: PackedSequence, backend: AttentionBackend) -> Tensor | Rows:
        """The embedded tokens (B, T, D); with an encoder, known ones go through it, and asked ones behind."""
        segments = [s for s in sequence.segments if s.num_tokens]
        if self.config.own_image_weights:
            return self._enter_streams(segments)
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
            self.encoder.class_position.expand(x.shape[0], -1, -1)
            if s.kind == "class"
            else self._of_table(self.encoder.image_position, s).expand(x.shape[0], -1, -1)
            for s in segments
        ]
        return torch.cat([x, *asked], dim=1) + torch.cat(places, dim=1)

    def _mask_tokens(self, segment: Segment) -> Tensor:
        assert self.mask_token is not None, "only a per-token head asks by mask tokens"
        return self.mask_token.expand(segment.values.shape[0], segment.num_tokens, -1)

    def _embed(self, segment: Segment) -> Tensor:
        if segment.kind == "class":
            assert self.class_embedding is not None, "this model has no class tokens"
            labels = segment.values
            x = self.class_embedding(labels.flatten())
            return x if labels.dim() == 1 else x.unflatten(0, labels.shape).flatten(1, 2)
        assert segment.places is not None, "text and image tokens have places"
        if segment.kind == "text":
            x = embed_text(segment.values, self.text_embedding, self.marker_embedding)
            return x if self.text_position is None else x + self.text_position(segment.places)
        x = self._mask_tokens(segment) if segment.role == "asked" else self.image_in(segment.values)
        if self.image_index is not None:
            index = segment.image_index
            x = x + (self.image_index.weight[0] if index is None else self.image_index(index))
        if segment.timesteps is not None and self.config.conditioning == "in_context":
            x = x + segment.of_tokens(self.timestep_embedding(segment.timesteps))
        if self.config.position_embedding == "sincos" and segment.grid is not None:
            return x + sincos_at(segment.places, self.config.encoder_size)
        if self.config.position_embedding != "rope":
            x = x + self._of_table(self.image_position, segment)
        return x

    def _of_table(self, table: Tensor, segment: Segment) -> Tensor:
        """(1 or B, n, D) rows of a table (L, D) of the grid of training, interpolated to another grid."""
        assert segment.places is not None, "image tokens have places"
        return table_at(
            table, segment.places, segment.grid, (self.config.grid_height, self.config.grid_width)
        )


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
