"""The choices that make a model: its block, its head and what surrounds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from causalfusion.config.grafting import ImageWeightsConfig, LoraConfig
from causalfusion.config.language import NUM_MARKERS, LanguageConfig
from causalfusion.config.parts import (
    BiasConfig,
    EncoderConfig,
    HeadConfig,
    NormConfig,
    QKNormConfig,
    RopeConfig,
)
from causalfusion.errors import check, check_values

_BOUNDS = {
    "hidden_size": (1, 65_536), "depth": (1, 1_000), "num_heads": (1, 4_096), "num_kv_heads": (0, 4_096),
    "head_size": (0, 65_536),
    "mlp_hidden": (0, 1_000_000), "adaln_size": (0, 65_536), "adaln_rank": (0, 65_536),
    "num_class_tokens": (0, 65_536), "class_token_repeats": (1, 65_536), "num_classes": (0, 10_000_000),
    "token_dim": (0, 10_000_000), "vocab_size": (0, 10_000_000), "max_text_tokens": (1, 10_000_000),
    "max_images": (1, 1_000_000), "grid_height": (0, 16_384), "grid_width": (0, 16_384),
}  # fmt: skip
"""Least and largest values of a model's sizes, as a damaged file may ask for more memory than there is."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    hidden_size: int = 384
    """Width of the transformer."""
    depth: int = 12
    """Number of transformer blocks."""
    num_heads: int = 6
    """Attention heads in each block."""
    num_kv_heads: int = 0
    """Heads of keys and values, each shared by as many query heads; 0: num_heads."""
    head_size: int = 0
    """Size of an attention head; 0: hidden_size divided by num_heads."""
    mlp: Literal["gelu_tanh", "gelu", "swiglu"] = "gelu_tanh"
    """MLP of a block: one hidden layer with GELU (tanh form or exact), or SwiGLU."""
    mlp_ratio: float = 4.0
    """Width of the MLP's hidden layer, as a multiple of hidden_size."""
    mlp_hidden: int = 0
    """That width itself; overrides `mlp_ratio`. 0: hidden_size times mlp_ratio."""
    norm: NormConfig = field(default_factory=NormConfig)
    """Norms before attention and before the MLP."""
    out_norm: NormConfig = field(default_factory=NormConfig)
    """Norm after the last block."""
    qk_norm: QKNormConfig = field(default_factory=QKNormConfig)
    bias: BiasConfig = field(default_factory=BiasConfig)
    dropout: float = 0.0
    """Probability, in training, of zeroing a number of the output of attention or of the MLP."""
    attention_dropout: float = 0.0
    """Probability, in training, of zeroing an attention weight; needs train.attention = dense."""
    num_class_tokens: int = 4
    """Tokens of the sequence that encode the class (paper: 4 in the ablations, 64 at system level); 0: the
    model ignores classes."""
    class_token_repeats: int = 1
    """Copies of each learned class token in a row, within `num_class_tokens`; 1: all tokens are learned."""
    position_embedding: Literal["sincos", "learnable", "rope"] = "sincos"
    """Position embedding of tokens: a fixed table of sines, a learned table, or rotary embedding."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    conditioning: Literal["in_context", "adaln_zero"] = "in_context"
    """in_context: condition tokens; adaln_zero: timestep and class modulate every block, as in DiT."""
    adaln_size: int = 0
    """adaln_zero: size of the embedding of timestep and class; 0: hidden_size."""
    adaln_rank: int = 0
    """adaln_zero: each block's modulation is of this rank, added to one that all blocks share (FiTv2); 0:
    each block has a full one."""
    input_norm: bool = False
    """A LayerNorm of the tokens with their positions, before the first block."""
    context: Literal["causal", "bidirectional"] = "causal"
    """The tokens that finished ones see: those of earlier AR steps, and are cached; or all, and are computed
    anew at every AR step (MAR), which needs a per_token head that asks by mask tokens."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    image_weights: ImageWeightsConfig = field(default_factory=ImageWeightsConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    num_classes: int = 0
    """Number of classes; row `num_classes` of the embedding is the null class of guidance. 0 until known from
    the data."""
    token_dim: int = 0
    """Dimension of an image token, P; 0 until known from the data."""
    predicts_variance: bool = False
    """The head also predicts a variance for each number of a token; follows from diffusion.variance."""
    vocab_size: int = 0
    """Size of the text vocabulary, markers included; 0: a model without text."""
    language: LanguageConfig = field(default_factory=LanguageConfig)
    max_text_tokens: int = 128
    """Text tokens that a sequence can hold, the markers of texts and images included."""
    max_images: int = 1
    """Images that a sequence can hold."""
    grid_height: int = 0
    """Image tokens per column; 0 until known from the data."""
    grid_width: int = 0
    """Image tokens per row, so that L = grid_height * grid_width; 0 until known from the data."""

    def __post_init__(self) -> None:
        check_values(self, "model")
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            check(least <= value <= most, f"model.{name}", value, f"{least} to {most}")
        fits = self.hidden_size % self.num_heads == 0 or self.head_size > 0
        check(fits, "model.num_heads", self.num_heads, f"a divisor of hidden_size {self.hidden_size}")
        fits = self.num_heads % (self.num_kv_heads or 1) == 0
        check(fits, "model.num_kv_heads", self.num_kv_heads, f"0 or a divisor of num_heads {self.num_heads}")
        fits = self.hidden_size % 4 == 0 or self.text_only
        check(fits, "model.hidden_size", self.hidden_size, "a multiple of 4, for a model of images")
        check(0 < self.mlp_ratio <= 64, "model.mlp_ratio", self.mlp_ratio, "a positive number, at most 64")
        for name in ("dropout", "attention_dropout"):
            check(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "a number in [0, 1)")
        fits = self.conditioning == "in_context" or not self.vocab_size
        check(fits, "model.conditioning", self.conditioning, "in_context, for a model with text")
        fits = self.num_class_tokens % self.class_token_repeats == 0
        expected = f"a divisor of num_class_tokens {self.num_class_tokens}"
        check(fits, "model.class_token_repeats", self.class_token_repeats, expected)
        self._check_rope()
        self._check_language()
        self._check_head()
        self._check_image_weights()

    def _check_rope(self) -> None:
        axes = 2 if self.rope.axes == "grid" else 1
        fits = self.position_embedding != "rope" or self.head_dim % (2 * axes) == 0
        expected = f"a head size divisible by {2 * axes} for rope, not {self.head_dim}"
        check(fits, "model.position_embedding", self.position_embedding, expected)
        fits = self.position_embedding == "rope" or self.rope == RopeConfig()
        check(fits, "model.position_embedding", self.position_embedding, "rope, where model.rope is set")
        fits = self.rope.axes == "grid" or (self.vocab_size == 0 and self.max_images == 1)
        check(fits, "model.rope.axes", self.rope.axes, "grid, for a model with text or several images")

    def _check_language(self) -> None:
        fits = self.language.markers == "vocabulary" or self.vocab_size > NUM_MARKERS
        check(fits, "model.vocab_size", self.vocab_size, f"more than {NUM_MARKERS}, the markers")
        rope, size = self.language.positions == "rope", self.head_dim
        fits = not rope or size % 2 == 0
        check(fits, "model.language.positions", "rope", f"an even head size for rope, not {size}")
        fits = not rope or self.position_embedding != "rope"
        expected = "sincos or learnable, where model.language.positions is rope"
        check(fits, "model.position_embedding", self.position_embedding, expected)
        count = len(self.language.scaling.short)
        fits = count in (0, size // 2)
        check(fits, "model.language.scaling.short", f"{count} numbers", f"{size // 2}, half of the head size")

    def _check_head(self) -> None:
        adaln, head = self.conditioning == "adaln_zero", self.head
        for name in ("adaln_size", "adaln_rank"):
            value = getattr(self, name)
            check(adaln or not value, f"model.{name}", value, "0, unless model.conditioning is adaln_zero")
        fits = self.context == "causal" or (head.kind == "per_token" and head.ask == "mask")
        check(fits, "model.context", self.context, "causal, unless a per_token head asks by mask tokens")
        fits = self.encoder.depth == 0 or (self.context == "bidirectional" and not adaln)
        check(fits, "model.encoder.depth", self.encoder.depth, "0, unless model.context is bidirectional")
        fits = self.encoder.depth == 0 or self.position_embedding != "rope"
        check(fits, "model.position_embedding", self.position_embedding, "a table, for a model with encoder")
        fits = self.encoder.depth == 0 or self.encoder_size % self.encoder_heads == 0
        expected = f"a divisor of its width {self.encoder_size}"
        check(fits, "model.encoder.num_heads", self.encoder_heads, expected)
        fits = self.context == "causal" or self.vocab_size == 0
        check(fits, "model.context", self.context, "causal, for a model with text")
        fits = head.kind == "joint" or head.ask == "mask" or self.vocab_size == 0
        check(fits, "model.head.ask", head.ask, "mask, for a model with text")
        fits = head.ask == "mask" or (self.num_class_tokens > 0 and not adaln)
        expected = "mask, for a model without class tokens, whose last one asks for the first image token"
        check(fits, "model.head.ask", head.ask, expected)

    def _check_image_weights(self) -> None:
        own = self.image_weights.kind == "own"
        plain = self.conditioning == "in_context" and not self.encoder.depth and not self.input_norm
        fits = not own or (plain and self.position_embedding != "rope")
        expected = "shared, for a model with AdaLN-zero, an encoder, an input norm, or rope of image tokens"
        check(fits, "model.image_weights.kind", self.image_weights.kind, expected)
        fits = not own or self.qk_norm.over == "head" or self.image_size == self.hidden_size
        check(fits, "model.qk_norm.over", self.qk_norm.over, "head, where image tokens have another width")

    @property
    def head_dim(self) -> int:
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def query_size(self) -> int:
        """Width of the queries of all heads."""
        return self.num_heads * self.head_dim

    @property
    def text_only(self) -> bool:
        """True for a language model without images."""
        return self.vocab_size > 0 and self.token_dim == 0

    @property
    def uses_classes(self) -> bool:
        """True if a class is a condition of its images."""
        conditions = self.num_class_tokens > 0 or self.conditioning == "adaln_zero"
        return self.num_classes > 0 and conditions

    @property
    def speaks(self) -> bool:
        """True for a language model, also for one that learned to draw."""
        return self.text_only or self.language.markers == "own"

    @property
    def text_vocab_size(self) -> int:
        """Rows of the text's embedding: without markers that have one of their own."""
        return self.vocab_size - (NUM_MARKERS if self.language.markers == "own" else 0)

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def mlp_size(self) -> int:
        """Width of the MLP's hidden layer."""
        return self.mlp_hidden or int(self.hidden_size * self.mlp_ratio)

    @property
    def image_size(self) -> int:
        """Width in which image tokens go through the blocks."""
        return self.image_weights.hidden_size or self.hidden_size

    @property
    def image_mlp_size(self) -> int:
        """Width of the hidden layer of the MLP that image tokens go through."""
        return self.image_weights.mlp_hidden or self.mlp_size * self.image_size // self.hidden_size

    @property
    def own_image_weights(self) -> bool:
        return self.image_weights.kind == "own"

    @property
    def condition_size(self) -> int:
        """Size of the timestep's embedding, to which AdaLN-zero adds the class."""
        return self.adaln_size or self.image_size

    @property
    def encoder_size(self) -> int:
        """Width of the encoder, or of the transformer, into which image tokens are embedded."""
        return (self.encoder.depth and self.encoder.hidden_size) or self.image_size

    @property
    def encoder_heads(self) -> int:
        return (self.encoder.depth and self.encoder.num_heads) or self.num_heads

    @property
    def head_width(self) -> int:
        """Width of the per-token network."""
        return self.head.width or self.image_size

    @property
    def per_token(self) -> bool:
        return self.head.kind == "per_token"

    @property
    def prediction_dim(self) -> int:
        """Numbers that the head predicts for an image token: P, or 2 P with variances."""
        return self.token_dim * (2 if self.predicts_variance else 1)

    @property
    def num_tokens(self) -> int:
        """L, image tokens per image."""
        return self.grid_height * self.grid_width

    @property
    def num_condition_tokens(self) -> int:
        """C, tokens of the sequence that encode the condition; 0 for AdaLN-zero."""
        return self.num_class_tokens if self.conditioning == "in_context" else 0

    @property
    def null_label(self) -> int:
        """The label of the null class, which follows the labels of the classes."""
        return self.num_classes
