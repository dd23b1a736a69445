"""Settings of training: duration, optimizer, computation, parallelism, checkpoints and logs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from causalfusion.errors import check, check_values

LoggerName = Literal["tensorboard", "wandb", "trackio"]
_AT_LEAST_1 = (
    "images", "batch_size", "grad_accumulation", "max_skipped_steps", "log_every", "keep_checkpoints",
    "evaluate_images", "replicas",
)  # fmt: skip
_AT_LEAST_0 = (
    "warmup_images", "length_multiple", "checkpoint_every", "evaluate_every", "sample_every", "weight_decay",
    "epochs", "minutes", "micro_batch", "checkpoint_minutes", "sample_minutes",
    "ema_snapshot_images",
)  # fmt: skip
WIDEST, NARROWEST = 0.28, 0.005
"""Relative widths of averages; 0.289 is that of the mean over the whole training."""


def check_width(width: float, name: str) -> None:
    """Raises UserError for a relative width out of range."""
    fits = NARROWEST <= width <= WIDEST
    check(fits, name, width, f"a relative width from {NARROWEST} to {WIDEST} (0.05 to 0.15 are usual)")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    seed: int = 0
    """Seed of the initial weights, the order of the data and all noise."""
    init: str = ""
    """A model folder, a run, a packaged model's name, or a name on the hub (user/model): start from its
    weights, and its tokenizer, instead of random weights. Under another codec.patch_size, the layers into and
    out of image tokens begin anew: large patches first, small ones after them, is a way to train with less
    arithmetic."""
    trainable: Literal["all", "embeddings_norms_biases", "images"] = "all"
    """Weights that are trained: all; or, to go on from train.init at larger sizes (FiTv2), only the embedding
    of image tokens, tables of positions, norms, biases and the last layer; images: those that image tokens
    alone use, low-rank additions (model.lora) and the embedding of markers, while a language model's weights
    stay as they are."""
    text_lr_factor: float = 1.0
    """Learning rate of the weights that texts use, as a multiple of `lr`."""
    images: int = 100_000
    """Number of images to train on, counting repeats (epochs * size of the data set)."""
    epochs: float = 0.0
    """Passes over the training images; if it is not 0, it overrides `images`."""
    minutes: float = 0.0
    """Training time, over all sessions of the run, after which it ends even before `images` are reached. A
    finished run continues if this is raised. 0: no limit."""
    batch_size: int = 128
    """Images per optimizer step, over all processes and accumulated micro-batches."""
    micro_batch: int = 0
    """Largest number of images that a process computes at once; the batch and the result stay the same. 0: as
    many as fit into its memory."""
    grad_accumulation: int = 1
    """Least number of micro-batches per optimizer step; each holds batch_size / (grad_accumulation *
    processes) images."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: the matrices of attention and feed-forward layers are updated by Muon (momentum 0.95,
    orthogonalised, scaled as AdamW's updates are, so that `lr` suits both), all other weights by AdamW."""
    lr: float = 1e-4
    """Learning rate, of AdamW and of Muon."""
    lr_schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """After the warm-up: constant (the paper); a cosine to zero at the end of the run; or constant, then
    falling linearly to zero over the last part of the run (warm-up, stable, decay)."""
    lr_decay: float = 0.5
    """wsd: fraction of the run over which the learning rate falls."""
    warmup_images: int = 0
    """Images over which the learning rate grows linearly from 0."""
    beta1: float = 0.9
    """AdamW's decay of the average of gradients."""
    beta2: float = 0.95
    """AdamW's decay of the average of squared gradients."""
    eps: float = 1e-15
    """AdamW's constant in the denominator."""
    weight_decay: float = 0.0
    """Weight decay, of AdamW and of Muon."""
    max_grad_norm: float = 1.0
    """Gradients of a larger norm are scaled down to it."""
    ema_decay: float = 0.9999
    """Decay of the exponential moving average of the weights, which generation uses."""
    ema_schedule: Literal["warmup", "constant"] = "warmup"
    """`warmup`: after n updates the decay is at most (1 + n) / (10 + n), so that the average forgets the
    random initial weights in runs of any length. `constant` (the released code): the same decay from the
    start; for about 5 / (1 - ema_decay) train steps, much of the average is still random."""
    ema_widths: list[float] = field(default_factory=list)
    """Relative widths of further averages, such as 0.05 0.1, each 4 bytes per parameter, of which snapshots
    are kept: `causalfusion ema` makes an average of any width of them after training (2312.02696)."""
    ema_snapshot_images: int = 0
    """Images between these snapshots, such as a hundredth of `images`; there is one more at the end."""
    class_dropout: float = 0.1
    """Probability that an image's class is replaced by the null class, for guidance."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Number format of the computation; weights are kept in float32. `auto`: bfloat16 on GPUs, and on CPUs
    that are faster with it; a resumed run keeps what it began with."""
    attention: Literal["auto", "dense", "segments", "flex"] = "auto"
    """Implementation of attention; all give the same result. `auto`: FlexAttention on GPUs, blocks of rows on
    CPUs."""
    compile: Literal["auto", "always", "never"] = "auto"
    """torch.compile of the model's blocks; `auto`: only on GPUs, as it gains nothing on CPUs."""
    length_multiple: int = 0
    """Pad sequences to multiples of this length with clean tokens that no noised token attends to. 0: 64 on
    GPUs, where each new length may cost a compilation, and 1 on CPUs."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """With several processes: `ddp` keeps the whole training state in each, `fsdp` (FSDP2) a part; `auto`:
    fsdp on GPUs if the state (20 bytes per parameter) fills more than a quarter of one GPU."""
    replicas: int = 1
    """fsdp: number of groups of processes that each hold the whole state, sharded within the group. Set it to
    the number of nodes to gather weights inside nodes only."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Blocks whose activations are recomputed in the backward pass instead of stored: `full`: all, for about
    a third more computation; `selective`: every second one, for half of that."""
    max_skipped_steps: int = 10
    """Stop after this many consecutive steps whose loss or gradient is not finite."""
    log_every: int = 20
    """Train steps between records in log.jsonl."""
    log_to: list[LoggerName] = field(default_factory=lambda: ["tensorboard"])
    """Tools that get the records too, with sample grids and charts of the loss: event files in the run's
    folder (tensorboard), Weights & Biases (wandb) or trackio, by their usual variables, such as
    WANDB_PROJECT and WANDB_MODE. A run that goes on is the same run there."""
    checkpoint_every: int = 1000
    """Train steps between checkpoints; 0: by time only."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints, if `checkpoint_every` takes longer; 0: by steps only."""
    keep_checkpoints: int = 2
    """Number of checkpoints to keep; older ones are removed."""
    async_checkpoint: bool = False
    """Write checkpoints while training continues, from a copy of the state in the host's memory."""
    evaluate_every: int = 1000
    """Train steps between measurements of the loss on held-out images; 0: never."""
    evaluate_images: int = 512
    """Number of held-out images on which the loss is measured."""
    sample_every: int = 0
    """Train steps between grids of samples; 0: by time only."""
    sample_minutes: float = 3.0
    """Minutes between grids of samples, which take at most a tenth of the time; one more ends a run of a
    minute or more. 0: by steps only."""

    def __post_init__(self) -> None:
        check_values(self, "train")
        for name in _AT_LEAST_1:
            check(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        for name in _AT_LEAST_0:
            check(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")
        check(self.batch_size <= 1_000_000, "train.batch_size", self.batch_size, "at most 1000000")
        check(0 < self.lr <= 1, "train.lr", self.lr, "a positive number, at most 1 (1e-4 is usual)")
        check(0 < self.lr_decay <= 1, "train.lr_decay", self.lr_decay, "a share of the run in (0, 1]")
        for name in ("eps", "max_grad_norm", "text_lr_factor"):
            check(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "a positive number")
        for name in ("beta1", "beta2", "ema_decay", "class_dropout"):
            check(0 <= getattr(self, name) < 1, f"train.{name}", getattr(self, name), "a number in [0, 1)")
        self._check_widths()
        fits = self.replicas == 1 or self.parallel != "ddp"
        expected = "1, for train.parallel ddp, which replicates everything"
        check(fits, "train.replicas", self.replicas, expected)
        fits = self.batch_size % self.grad_accumulation == 0
        expected = f"a divisor of batch_size {self.batch_size}"
        check(fits, "train.grad_accumulation", self.grad_accumulation, expected)

    def for_examples(self, count: int) -> TrainConfig:
        """The settings for so many training images, which `epochs` are passes over."""
        if not self.epochs:
            return self
        return replace(self, images=max(round(self.epochs * count), self.batch_size))

    def _check_widths(self) -> None:
        for width in self.ema_widths:
            check_width(width, "train.ema_widths")
        different = len(set(self.ema_widths)) == len(self.ema_widths)
        check(different, "train.ema_widths", self.ema_widths, "different widths")
        fits = self.ema_snapshot_images > 0 or not self.ema_widths
        expected = "images between snapshots, for train.ema_widths: a hundredth of train.images, for example"
        check(fits, "train.ema_snapshot_images", self.ema_snapshot_images, expected)
        fits = len(self.ema_widths) > 0 or not self.ema_snapshot_images
        expected = "0, without train.ema_widths, of which there would be snapshots"
        check(fits, "train.ema_snapshot_images", self.ema_snapshot_images, expected)
