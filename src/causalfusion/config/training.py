"""The settings of training: how long, how fast, over how many processes, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from causalfusion.errors import check, check_finite


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    seed: int = 0
    """Decides the initial weights, the order of the data and all noise."""
    init: str = ""
    """A model folder, a run, or a packaged model's name: begin with its weights, and its tokenizer, not with
    random ones."""
    images: int = 100_000
    """Images to train on in all, counting repeats (epochs * size of the data set)."""
    epochs: float = 0.0
    """The same in passes over the training images; where it is given, `images` follows from it."""
    minutes: float = 0.0
    """End after this much training time, over all sittings of the run, if `images` are not reached before. A
    finished run goes on with a larger number. 0: no limit."""
    batch_size: int = 128
    """Images per optimizer step, over all processes and accumulated micro-batches."""
    micro_batch: int = 0
    """Images that a process computes at once, at most; the batch and the result stay the same. 0: as many as
    fit into its memory."""
    grad_accumulation: int = 1
    """Micro-batches per optimizer step, at least; each holds batch_size / (grad_accumulation * processes)
    images."""
    lr: float = 1e-4
    """Learning rate (AdamW)."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant (the paper), or a cosine to zero at the end of the run."""
    warmup_images: int = 0
    """Images over which the learning rate grows from 0."""
    beta1: float = 0.9
    """AdamW's decay of the mean of gradients."""
    beta2: float = 0.95
    """AdamW's decay of their squares."""
    eps: float = 1e-15
    """AdamW's constant in the denominator."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradients of a larger norm are scaled down to it."""
    ema_decay: float = 0.9999
    """Decay of the average of the weights, which is what generation uses."""
    ema_schedule: Literal["warmup", "constant"] = "warmup"
    """`warmup`: after n updates the decay is at most (1 + n) / (10 + n), so that the average leaves the
    random initial weights behind at any length. `constant` (the released code): one decay from the start;
    until about 5 / (1 - ema_decay) train steps, much of the average is still random."""
    class_dropout: float = 0.1
    """Probability that an image's class is replaced by the null class, for guidance."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation; weights are kept in float32."""
    attention: Literal["auto", "dense", "segments", "flex"] = "auto"
    """How attention is computed; all give the same. `auto`: FlexAttention on GPUs, blocks of rows on CPUs."""
    compile: Literal["auto", "always", "never"] = "auto"
    """torch.compile of the model's blocks; `auto`: on GPUs, as it brings nothing on CPUs."""
    length_multiple: int = 0
    """Sequences take few different lengths, multiples of this, by clean tokens that nothing noised sees. 0:
    64 on GPUs, where each new length may be compiled anew, and 1 on CPUs."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """Of several processes: `ddp` keeps the whole training state in each, `fsdp` a share of it (FSDP2);
    `auto` takes fsdp on GPUs where the state (20 bytes a parameter) fills more than a quarter of one."""
    replicas: int = 1
    """With fsdp: groups of processes that each hold the whole state, sharded within the group. The number of
    nodes, to keep the gathering of weights inside a node."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Blocks computed again in the backward pass instead of kept: `full` all, for about a third more
    arithmetic; `selective` every second one, for half of that."""
    max_skipped_steps: int = 10
    """Stop after this many steps in a row whose loss or gradient was not finite."""
    log_every: int = 20
    """Train steps between records in log.jsonl."""
    checkpoint_every: int = 1000
    """Train steps between checkpoints; 0: only those by time."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints, where `checkpoint_every` takes longer. 0: only those by steps."""
    keep_checkpoints: int = 2
    """Checkpoints that stay; older ones are removed."""
    async_checkpoint: bool = False
    """Write checkpoints while training goes on, from a copy of the state in the host's memory."""
    evaluate_every: int = 1000
    """Train steps between measurements of the loss on held-out images; 0: never."""
    evaluate_images: int = 512
    """Held-out images on which the loss is measured."""
    sample_every: int = 0
    """Train steps between grids of samples; 0: only those by time."""
    sample_minutes: float = 3.0
    """Minutes between grids of samples; drawing takes at most a tenth of the time. 0: only those by steps."""

    def __post_init__(self) -> None:
        check_finite(self, "train")
        for name in ("images", "batch_size", "grad_accumulation", "max_skipped_steps", "log_every",
                     "keep_checkpoints", "evaluate_images", "replicas"):  # fmt: skip
            check(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        for name in ("warmup_images", "length_multiple", "checkpoint_every", "evaluate_every", "sample_every",
                     "weight_decay", "epochs", "minutes", "micro_batch", "checkpoint_minutes",
                     "sample_minutes"):  # fmt: skip
            check(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")
        check(self.batch_size <= 1_000_000, "train.batch_size", self.batch_size, "at most 1000000")
        check(0 < self.lr <= 1, "train.lr", self.lr, "a positive number, at most 1 (1e-4 is usual)")
        for name in ("eps", "max_grad_norm"):
            check(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "a positive number")
        for name in ("beta1", "beta2", "ema_decay", "class_dropout"):
            check(0 <= getattr(self, name) < 1, f"train.{name}", getattr(self, name), "a number in [0, 1)")
        check(
            self.replicas == 1 or self.parallel != "ddp",
            "train.replicas", self.replicas, "1, for train.parallel ddp, which replicates everything",
        )  # fmt: skip
        check(
            self.batch_size % self.grad_accumulation == 0,
            "train.grad_accumulation", self.grad_accumulation, f"a divisor of batch_size {self.batch_size}",
        )  # fmt: skip
