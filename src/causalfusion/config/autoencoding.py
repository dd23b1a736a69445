"""Settings of `causalfusion codec train`: an autoencoder's network and its training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import gcd
from typing import Literal

from causalfusion.config.settings import DataConfig
from causalfusion.config.training import TrainConfig
from causalfusion.errors import UserError, check, check_values

NORM_GROUPS = 32
"""Largest number of groups of a convolutional network's group norms."""
GROUP_CHANNELS = 4
"""Smallest number of channels of a group."""
_UNLIMITED = 10**9
_DEFAULTS = {"kl": (32, 1, 1e-4), "fixed_variance": (192, 4, 1e-2)}
"""(width, depth, kl_weight) by the kind of network."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    kind: Literal["kl", "fixed_variance"] = "kl"
    """kl: convolutions, latents with a learned deviation (diffusers' AutoencoderKL); fixed_variance: vision
    transformers for images of one size, latents whose deviation is drawn for each image (a sigma-VAE)."""
    downsample: int = 4
    """Image pixels per latent pixel, along a side; kl: a power of two."""
    latent_channels: int = 4
    """Numbers in a latent pixel."""
    width: int = 0
    """kl: channels at the image's resolution, doubled with each halving of it, up to 4 times as many;
    fixed_variance: width of the transformers. 0: 32 or 192."""
    depth: int = 0
    """kl: residual blocks at each resolution (the decoder has one more); fixed_variance: blocks of each
    transformer. 0: 1 or 4."""
    heads: int = 0
    """fixed_variance: attention heads. 0: one for every 32 numbers of the width."""
    deviation: float = 0.9375
    """fixed_variance: root mean square of the deviations of the latents."""

    def __post_init__(self) -> None:
        check_values(self, "autoencoder")
        check(1 <= self.downsample <= 256, "--downsample", self.downsample, "1 to 256")
        power = self.kind == "fixed_variance" or self.downsample.bit_count() == 1
        check(power, "--downsample", self.downsample, "a power of two, for --kind kl")
        check(1 <= self.latent_channels <= 4096, "--latent-channels", self.latent_channels, "1 to 4096")
        for name in ("width", "depth", "heads"):
            check(0 <= getattr(self, name) <= 65_536, f"--{name}", getattr(self, name), "0 to 65536")
        check(self.deviation >= 0, "--deviation", self.deviation, "0 or more")
        if self.kind == "fixed_variance" and self.width and self.heads:
            fits = self.width % self.heads == 0
            check(fits, "--heads", self.heads, f"a divisor of the width {self.width}")

    def complete(self) -> AutoencoderConfig:
        """With the defaults of its kind in place of zeros."""
        width, depth, _ = _DEFAULTS[self.kind]
        width = self.width or width
        heads = self.heads or gcd(width, max(width // 32, 1))
        return replace(self, width=width, depth=self.depth or depth, heads=heads)

    @property
    def levels(self) -> int:
        """Resolutions of a convolutional network."""
        return self.downsample.bit_length()


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """The training of an autoencoder."""

    reconstruction: Literal["l1", "l2"] = "l1"
    """Error of a pixel: absolute or squared."""
    kl_weight: float | None = None
    """Weight of the KL divergence from a standard normal distribution, per latent number (fixed_variance: of
    the mean's square). Default: 0.0001, fixed_variance 0.01."""
    perceptual: str = ""
    """A frozen network whose features are compared too: resnet-cifar:PATH, or transformers:ID (a folder or an
    id). Empty: none."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual loss."""
    minutes: float = 10.0
    """Training time, over all sessions of the run; a finished run continues if it is raised. 0: no limit."""
    images: int = 0
    """Images to train on, counting repeats. 0: no limit."""
    batch_size: int = 32
    """Images per train step."""
    lr: float = 1e-3
    """Learning rate (AdamW), which falls to zero along a cosine."""
    warmup_images: int = 2000
    """Images over which the learning rate grows from 0."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradients of a larger norm are scaled down to it."""
    ema_decay: float = 0.999
    """Decay of the average of the weights, which is the autoencoder that is saved."""
    init: str = ""
    """An autoencoder of the same network, as for codec.autoencoder: start from its weights instead of random
    ones."""
    seed: int = 0
    """Seed of the initial weights, the order of the data and all noise."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints; 0: only at the end."""
    picture_minutes: float = 1.0
    """Minutes between pictures of reconstructions; 0: only at the end."""
    log_every: int = 20
    """Train steps between records in log.jsonl."""

    def __post_init__(self) -> None:
        check_values(self, "codec train")
        check(bool(self.minutes or self.images), "--minutes", self.minutes, "more than 0, or --images")
        for name in ("minutes", "images", "perceptual_weight", "checkpoint_minutes", "picture_minutes"):
            check(getattr(self, name) >= 0, f"--{name.replace('_', '-')}", getattr(self, name), "0 or more")
        fits = self.kl_weight is None or self.kl_weight >= 0
        check(fits, "--kl-weight", self.kl_weight, "0 or more")

    def weight_of_kl(self, network: AutoencoderConfig) -> float:
        return _DEFAULTS[network.kind][2] if self.kl_weight is None else self.kl_weight

    def optimization(self) -> TrainConfig:
        """These settings as those of the optimizer, the learning rate and the average of the weights. Raises
        UserError, with the name of the option, for a value that they do not take."""
        try:
            return TrainConfig(
                seed=self.seed,
                images=self.images or _UNLIMITED,
                minutes=self.minutes,
                batch_size=self.batch_size,
                lr=self.lr,
                lr_schedule="cosine",
                warmup_images=self.warmup_images,
                weight_decay=self.weight_decay,
                max_grad_norm=self.max_grad_norm,
                ema_decay=self.ema_decay,
                log_every=self.log_every,
                eps=1e-8,
            )
        except UserError as error:
            setting, _, said = str(error).removeprefix("train.").partition(" ")
            raise UserError(f"--{setting.replace('_', '-')} {said}") from None


@dataclass(frozen=True, kw_only=True)
class AutoencoderRun:
    """All settings of a run."""

    out: str
    data: DataConfig = field(default_factory=DataConfig)
    network: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    training: ReconstructionConfig = field(default_factory=ReconstructionConfig)
