"""Settings of a training run: frozen dataclasses that validate themselves.

A recipe (TOML) and the command line describe a `RunConfig`. Fields that follow from the data (number of
classes, token grid, image size) are 0 until `train.feed.open_training_data` fills them in; a saved model
contains the completed `ModelConfig`, `CodecConfig` and `DiffusionConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from causalfusion.config.diffusion import DiffusionConfig
from causalfusion.config.generation import OrderName, SampleConfig
from causalfusion.config.text import TextConfig
from causalfusion.config.training import TrainConfig
from causalfusion.errors import check, check_finite

SourceName = Literal["digits", "shapes", "folder", "webdataset", "jsonl", "npz"]
SplitName = Literal["train", "validation", "test", "compositional"]

MAX_WORKERS = 512


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: SourceName = "digits"
    """Source of the images."""
    path: str = ""
    """Folder, shard pattern (`shards/*.tar`), .jsonl or .npz file; not used by `digits` and `shapes`."""
    image_suffix: str = ""
    """Suffix, such as `png` or `seg.png`, of the images to use in shards whose keys have several images."""
    split: SplitName = "train"
    """Split of `shapes`; `compositional` holds only shape-colour pairs that never occur in `train`."""
    image_size: int = 0
    """Side, in pixels, of the square to which images are cropped; 0 keeps their own size."""
    flip: bool = False
    """Mirror half of the training images, chosen by (seed, epoch, index). Captions are not changed: leave it
    off if they mention left and right."""
    holdout: float = 0.05
    """Fraction of the images held out of training, to measure the loss on."""
    num_workers: int = 0
    """Worker processes that read and decode images; the order of the data does not depend on it."""
    cache: str = ""
    """Folder written by `causalfusion encode`: train on its latents instead of encoding again."""

    def __post_init__(self) -> None:
        check_finite(self, "data")
        check(self.image_size >= 0, "data.image_size", self.image_size, "0 or a positive number of pixels")
        check(0 <= self.holdout < 1, "data.holdout", self.holdout, "a share in [0, 1)")
        in_range = 0 <= self.num_workers <= MAX_WORKERS
        expected = f"0 to {MAX_WORKERS}: at most one for each CPU core helps"
        check(in_range, "data.num_workers", self.num_workers, expected)
        needs_path = self.source in ("folder", "webdataset", "jsonl", "npz") and not self.cache
        check(not needs_path or bool(self.path), "data.path", self.path, f"a path, for source {self.source}")


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    autoencoder: str = ""
    """Autoencoder of whose latents tokens are patches: a diffusers folder, a hub id, or an original
    checkpoint. Empty: tokens are patches of pixels."""
    patch_size: int = 1
    """Side of the square of pixels or latents that one token holds."""
    latents: Literal["sample", "mode"] = "sample"
    """Latents in training: drawn from the autoencoder's posterior, or its mode."""
    normalization: Literal["given", "measured"] = "given"
    """Use `scale` and `shift` as given, or measure them on the training data (a model stores the result)."""
    scale: float = 1.0
    """latents = (raw - shift) * scale: 0.2325 for the 16-channel KL autoencoder, 0.18215 for SD's."""
    shift: float = 0.0
    """Subtracted from raw latents; see `scale`."""
    image_height: int = 0
    """Height of the images in pixels; 0 until known from the data."""
    image_width: int = 0
    """Width of the images in pixels; 0 until known from the data."""
    image_channels: int = 0
    """Channels of the images; 0 until known from the data."""
    latent_channels: int = 0
    """Channels of the latents (without an autoencoder: those of the image); 0 until known."""
    downsample: int = 0
    """Image pixels per latent pixel, along a side (without an autoencoder: 1); 0 until known."""

    def __post_init__(self) -> None:
        check_finite(self, "codec")
        check(1 <= self.patch_size <= 4096, "codec.patch_size", self.patch_size, "1 to 4096")
        for name in ("image_height", "image_width", "image_channels", "latent_channels", "downsample"):
            check(0 <= getattr(self, name) <= 65536, f"codec.{name}", getattr(self, name), "0 to 65536")
        check(0 < self.scale < inf, "codec.scale", self.scale, "a positive number")

    @property
    def kind(self) -> Literal["pixels", "autoencoder"]:
        """The kind of data of which tokens are patches."""
        return "autoencoder" if self.autoencoder else "pixels"


_BOUNDS = {
    "hidden_size": (1, 65_536), "depth": (1, 1_000), "num_heads": (1, 4_096),
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
    mlp_ratio: float = 4.0
    """Width of a block's MLP, as a multiple of hidden_size."""
    num_class_tokens: int = 4
    """Tokens of the sequence that encode the class (paper: 4 in the ablations, 64 at system level); 0: the
    model ignores classes."""
    class_token_repeats: int = 1
    """Copies of each learned class token in a row, within `num_class_tokens`; 1: all tokens are learned."""
    position_embedding: Literal["sincos", "learnable", "rope"] = "sincos"
    """Position embedding of tokens: a fixed table of sines, a learned table, or rotary embedding."""
    conditioning: Literal["in_context", "adaln_zero"] = "in_context"
    """in_context: condition tokens; adaln_zero: timestep and class modulate every block, as in DiT."""
    qk_norm: bool = True
    """LayerNorm on queries and keys, per head."""
    num_classes: int = 0
    """Number of classes; row `num_classes` of the embedding is the null class of guidance. 0 until known from
    the data."""
    token_dim: int = 0
    """Dimension of an image token, P; 0 until known from the data."""
    predicts_variance: bool = False
    """The head also predicts a variance for each number of a token; follows from diffusion.variance."""
    vocab_size: int = 0
    """Size of the text vocabulary, markers included; 0: a model without text."""
    max_text_tokens: int = 128
    """Text tokens that a sequence can hold, the markers of texts and images included."""
    max_images: int = 1
    """Images that a sequence can hold."""
    grid_height: int = 0
    """Image tokens per column; 0 until known from the data."""
    grid_width: int = 0
    """Image tokens per row, so that L = grid_height * grid_width; 0 until known from the data."""

    def __post_init__(self) -> None:
        check_finite(self, "model")
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            check(least <= value <= most, f"model.{name}", value, f"{least} to {most}")
        fits = self.hidden_size % self.num_heads == 0
        check(fits, "model.num_heads", self.num_heads, f"a divisor of hidden_size {self.hidden_size}")
        check(self.hidden_size % 4 == 0, "model.hidden_size", self.hidden_size, "a multiple of 4")
        check(0 < self.mlp_ratio <= 64, "model.mlp_ratio", self.mlp_ratio, "a positive number, at most 64")
        fits = self.conditioning == "in_context" or not self.vocab_size
        check(fits, "model.conditioning", self.conditioning, "in_context, for a model with text")
        fits = self.num_class_tokens % self.class_token_repeats == 0
        expected = f"a divisor of num_class_tokens {self.num_class_tokens}"
        check(fits, "model.class_token_repeats", self.class_token_repeats, expected)
        fits = self.position_embedding != "rope" or self.head_dim % 4 == 0
        expected = f"a head size divisible by 4 for rope, not {self.head_dim}"
        check(fits, "model.position_embedding", self.position_embedding, expected)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

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


@dataclass(frozen=True, kw_only=True)
class FactorizationConfig:
    """Splitting of training images into AR steps (PAPER section 4)."""

    distribution: Literal["decay", "uniform", "fixed"] = "decay"
    """Distribution of the number of AR steps S: proportional to decay**(S-1), uniform on 1..L, or always
    num_ar_steps."""
    decay: float = 0.9
    """distribution = decay: ratio of the probabilities of S + 1 and S AR steps."""
    num_ar_steps: int = 1
    """distribution = fixed: the number of AR steps, S."""
    split: Literal["per_batch", "per_image"] = "per_batch"
    """Split a whole batch alike into AR steps (the paper's code), or each image by itself."""
    order: OrderName = "random"
    """Order in which the tokens of an image are divided among AR steps."""
    block_size: int = 4
    """block_raster: side of a block; dilated: distance between consecutive tokens; both in tokens."""
    given_order: list[int] = field(default_factory=list)
    """Raster indices of all L tokens in the desired order; overrides `order`."""
    loss_weight: Literal["linear", "cosine", "none"] = "linear"
    """Shape of the fall of the loss weight along the sequence."""
    loss_weight_first: float = 2.0
    """Weight of the loss at the start of the sequence (λ)."""
    loss_weight_last: float = 1.0
    """Weight of the loss at the end of the sequence."""
    timesteps: Literal["shared", "per_ar_step"] = "shared"
    """One noise level for all AR steps of an image, or one for each."""
    timesteps_per_ar_step: int = 1
    """Noised copies of every AR step, each at its own noise level (4x and 8x t in the paper)."""

    def __post_init__(self) -> None:
        check_finite(self, "factorization")
        check(0 < self.decay <= 1, "factorization.decay", self.decay, "a number in (0, 1]")
        check(self.num_ar_steps >= 1, "factorization.num_ar_steps", self.num_ar_steps, "at least 1")
        check(self.block_size >= 1, "factorization.block_size", self.block_size, "at least 1")
        copies = self.timesteps_per_ar_step
        check(copies >= 1, "factorization.timesteps_per_ar_step", copies, "at least 1")
        for name in ("loss_weight_first", "loss_weight_last"):
            check(getattr(self, name) > 0, f"factorization.{name}", getattr(self, name), "a positive number")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a training run."""

    out: str = "runs/train"
    """Folder of the run: checkpoints, logs, sample grids."""
    data: DataConfig = field(default_factory=DataConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    factorization: FactorizationConfig = field(default_factory=FactorizationConfig)
    text: TextConfig = field(default_factory=TextConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Settings of the sample grids during training."""

    def __post_init__(self) -> None:
        text, plan = self.text, self.factorization
        one_block = (plan.distribution, plan.num_ar_steps, plan.timesteps_per_ar_step) == ("fixed", 1, 1)
        fits = text.image_context == "clean" or one_block
        expected = "distribution fixed, num_ar_steps 1 and one timestep, for text.image_context noised"
        check(fits, "factorization", f"{plan.distribution}, {plan.num_ar_steps}", expected)
        timestep_from = self.diffusion.timestep_from
        fits = text.image_context == "clean" or timestep_from == "clean"
        expected = "clean, for text.image_context noised: finished images have timestep 0"
        check(fits, "diffusion.timestep_from", timestep_from, expected)
        count, class_tokens = text.examples_per_sequence, self.model.num_class_tokens
        fits = count == 1 or class_tokens == 0
        check(fits, "model.num_class_tokens", class_tokens, "0, where sequences hold several images")
        images = self.train.batch_size // self.train.grad_accumulation
        expected = f"a divisor of the {images} images of a micro-batch"
        check(images % count == 0, "text.examples_per_sequence", count, expected)
