"""The parts of a model: norms, biases, rotary positions, head, encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from causalfusion.errors import check, check_values

NormKind = Literal["layer_norm", "rms_norm"]
NormWeight = Literal["auto", "learned", "none"]
RopeExtrapolation = Literal["none", "linear", "ntk", "ntk_by_parts", "yarn", "ntk_pro1", "ntk_pro2"]


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    kind: NormKind = "layer_norm"
    """LayerNorm or RMSNorm."""
    weight: NormWeight = "auto"
    """Learned weight (and bias, of a LayerNorm); auto: learned, except where AdaLN scales and shifts."""
    eps: float = 1e-5
    """Added to the variance."""

    def __post_init__(self) -> None:
        check_values(self, "norm")
        check(self.eps > 0, "norm.eps", self.eps, "a positive number")

    def learned(self, adaln: bool) -> bool:
        """True if the norm has weights, where AdaLN does or does not follow it."""
        return self.weight == "learned" or (self.weight == "auto" and not adaln)


@dataclass(frozen=True, kw_only=True)
class QKNormConfig:
    kind: Literal["layer_norm", "rms_norm", "none"] = "layer_norm"
    """Norm of queries and keys."""
    over: Literal["head", "width"] = "head"
    """Each head by itself, or the whole width before it is split into heads."""
    weight: Literal["learned", "none"] = "learned"
    """Learned weight (and bias, of a LayerNorm)."""
    eps: float = 1e-5
    """Added to the variance."""

    def __post_init__(self) -> None:
        check_values(self, "qk_norm")
        check(self.eps > 0, "qk_norm.eps", self.eps, "a positive number")


@dataclass(frozen=True, kw_only=True)
class BiasConfig:
    """Which linear layers have a bias."""

    qkv: bool = False
    """Queries, keys and values."""
    attention: bool = True
    """Output of attention."""
    mlp: bool = True
    """Both layers of the MLP."""
    input: bool = True
    """Image tokens on their way in."""
    output: bool = True
    """Image tokens on their way out."""
    condition: bool = True
    """Timestep embedding and AdaLN modulations."""


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary positions of image tokens, for model.position_embedding = rope."""

    base: float = 100.0
    """Base of the frequencies."""
    axes: Literal["grid", "raster"] = "grid"
    """grid: half of each head turns with the row, half with the column; raster: all of it with the index in
    raster order, counted after the class tokens."""
    pairs: Literal["halves", "interleaved"] = "halves"
    """Numbers that turn together: i and i + H/2, or 2i and 2i + 1."""
    spacing: Literal["open", "closed"] = "open"
    """Exponents of the n frequencies: i/n, or i/(n-1), which includes 1."""
    extrapolation: RopeExtrapolation = "none"
    """Frequencies on grids larger than that of training (FiTv2)."""
    per_axis: bool = True
    """Extrapolate rows and columns each by its own scale, or both by that of the longer side."""
    trained_side: int = 0
    """Side of the grid of training, in tokens; 0: that of the model's grid."""

    def __post_init__(self) -> None:
        check_values(self, "rope")
        check(self.base > 1, "model.rope.base", self.base, "a number above 1")
        check(0 <= self.trained_side <= 16_384, "model.rope.trained_side", self.trained_side, "0 to 16384")
        fits = self.extrapolation == "none" or (self.axes == "grid" and self.spacing == "open")
        check(
            fits,
            "model.rope.extrapolation",
            self.extrapolation,
            "none, except with axes grid and spacing open",
        )


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How image tokens are predicted from the transformer's output."""

    kind: Literal["joint", "per_token"] = "joint"
    """joint: noised tokens go through the transformer, and a linear layer reads it; per_token: the
    transformer runs once per AR step and gives each token a condition, under which a small network denoises
    that token alone."""
    ask: Literal["mask", "previous"] = "mask"
    """per_token: a token's condition comes from a mask token that stands in its place (any order), or from
    the token before it (raster order, one token per AR step)."""
    width: int = 0
    """per_token: width of the network; 0: that of the transformer."""
    depth: int = 3
    """per_token: residual blocks of the network."""
    norm: NormConfig = field(default_factory=NormConfig)
    """per_token: norm in each residual block; auto: with weights, also before AdaLN."""
    mlp: Literal["silu", "swiglu"] = "silu"
    """per_token: MLP of each residual block."""
    mlp_hidden: int = 0
    """per_token: width of that MLP's hidden layer; 0: the width of the network."""
    bias: bool = True
    """per_token: biases in the network."""
    positions: bool = False
    """per_token: add a learned position to each condition."""

    def __post_init__(self) -> None:
        check(0 <= self.width <= 65_536, "model.head.width", self.width, "0 to 65536")
        check(1 <= self.depth <= 1_000, "model.head.depth", self.depth, "1 to 1000")
        check(0 <= self.mlp_hidden <= 1_000_000, "model.head.mlp_hidden", self.mlp_hidden, "0 to 1000000")
        fits = self.kind == "per_token" or self.ask == "mask"
        check(fits, "model.head.ask", self.ask, "mask, for the joint head, which asks by noised tokens")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A first part of the transformer that only known tokens go through (MAR)."""

    depth: int = 0
    """Its blocks; 0: none."""
    hidden_size: int = 0
    """Its width; 0: that of the transformer."""
    num_heads: int = 0
    """Its attention heads; 0: as many as the transformer's blocks have."""

    def __post_init__(self) -> None:
        check(0 <= self.depth <= 1_000, "model.encoder.depth", self.depth, "0 to 1000")
        check(0 <= self.hidden_size <= 65_536, "model.encoder.hidden_size", self.hidden_size, "0 to 65536")
        check(0 <= self.num_heads <= 4_096, "model.encoder.num_heads", self.num_heads, "0 to 4096")
