"""What a training run costs: arithmetic, time, memory; and what to change where it does not fit.

The time is that of arithmetic at a stated share of the device's matrix rate, plus the reading and writing
of the optimizer's tensors. Waiting for data, evaluation and an autoencoder that encodes on the way are not
in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from causalfusion.config import RunConfig, TrainConfig
from causalfusion.errors import UserError
from causalfusion.estimate.devices import USABLE, Device
from causalfusion.estimate.memory import (
    CHECKPOINT_EVERY,
    STATE_BYTES,
    Memory,
    activation_bytes,
    parameters_of,
    state_bytes,
)
from causalfusion.model.arithmetic import (
    Flops,
    expected_facts,
    expected_train_flops,
    form_of,
    sequence_length,
)

OPTIMIZER_BYTES = 60
"""Read and written for a parameter in a step: clipping (16), AdamW (28), EMA (12), clearing (4)."""

LAUNCH_SECONDS = 5e-4
"""At least, of a block's forward and backward pass on a GPU: about 60 kernels. Not measured."""


@dataclass(frozen=True)
class Cost:
    device: Device
    count: int
    """Devices."""
    parameters: int
    sequence: float
    """Rows of a sequence on average."""
    longest: int
    """Rows of the longest that training can draw."""
    text_tokens: float
    of_image: Flops
    """Forward and backward, expected over the splits that training draws."""
    images: int
    """Still to train on."""
    recomputed: float
    """Arithmetic of checkpointing, of a step's without it."""
    micro_batch: int
    """Images at once on one device."""
    sharded_over: int
    """Devices that share one state: 1 where each holds all of it."""
    step_seconds: float
    seconds: float
    memory: Memory
    changes: tuple[str, ...]
    """Settings with which it fits; empty where it does, or where nothing helps."""

    @property
    def in_all(self) -> Flops:
        return self.of_image * self.images

    @property
    def fits(self) -> bool:
        return self.memory.total <= USABLE * self.device.memory


def estimate(
    config: RunConfig, device: Device, count: int = 1, *, text_tokens: float = 0, images_seen: int = 0
) -> Cost:
    """The cost of the rest of a run whose settings that follow from the data are filled in."""
    train, model = config.train, config.model
    parameters, _ = parameters_of(model)
    shards = _sharded_over(train, device, count, parameters)
    accumulation = micro_batches(config, device, count, shards=shards, text_tokens=text_tokens)
    micro_batch = train.batch_size // (count * accumulation)
    form = form_of(config, text_tokens)
    facts = expected_facts(model.num_tokens, config.factorization, micro_batch)
    of_image = expected_train_flops(config, micro_batch, text_tokens)
    every = CHECKPOINT_EVERY[train.activation_checkpointing]
    recomputed = 0.0 if not every else -(-model.depth // every) / model.depth / 3
    images = max(train.images - images_seen, 0)
    arithmetic = train.batch_size / count * of_image.needed * (1 + recomputed) / (device.rate * device.share)
    if device.is_gpu:
        arithmetic = max(arithmetic, accumulation * model.depth * LAUNCH_SECONDS)
    step_seconds = arithmetic + OPTIMIZER_BYTES * parameters / shards / device.bandwidth
    memory = _memory(config, device, micro_batch, shards, text_tokens)
    cost = Cost(
        device=device, count=count, parameters=parameters,
        sequence=sequence_length(model, facts, form),
        longest=_longest(config, text_tokens), text_tokens=text_tokens, of_image=of_image, images=images,
        recomputed=recomputed, micro_batch=micro_batch, sharded_over=shards, step_seconds=step_seconds,
        seconds=step_seconds * images / train.batch_size, memory=memory, changes=(),
    )  # fmt: skip
    return cost if cost.fits else replace(cost, changes=_changes(config, device, count, text_tokens))


def micro_batches(
    config: RunConfig, device: Device, count: int, *, shards: int, text_tokens: float = 0
) -> int:
    """Micro-batches that `count` devices compute a train step in: as few as `train.micro_batch` and
    `train.grad_accumulation` allow; without `train.micro_batch`, as few as fit into memory, or, where none
    do, as few as the settings allow. Raises UserError for a batch that cannot be divided so."""
    possible = _divisions(config, count)
    if config.train.micro_batch:
        return possible[0]
    for number in possible:
        micro_batch = config.train.batch_size // (count * number)
        if _memory(config, device, micro_batch, shards, text_tokens).total <= USABLE * device.memory:
            return number
    return possible[0]


def _divisions(config: RunConfig, count: int) -> list[int]:
    """The numbers of micro-batches that the settings allow, fewest first."""
    train, group = config.train, config.text.examples_per_sequence
    parts = max(count, 1) * train.grad_accumulation
    if count < 1 or train.batch_size % parts:
        raise UserError(
            f"train.batch_size is {train.batch_size}; expected a multiple of {parts} "
            "(devices x train.grad_accumulation)"
        )
    share, most = train.batch_size // count, train.micro_batch or train.batch_size
    possible = [
        n
        for n in range(train.grad_accumulation, share + 1)
        if share % n == 0 and share // n % group == 0 and share // n <= most
    ]
    if not possible:
        raise UserError(
            f"train.micro_batch is {train.micro_batch}; expected at least {group} images, as many as share a "
            "sequence (text.examples_per_sequence)"
        )
    return possible


def _longest(config: RunConfig, text_tokens: float) -> int:
    model, form = config.model, form_of(config, text_tokens)
    context = 0
    if form.clean_copies:
        one_block = config.factorization.distribution == "fixed" and config.factorization.num_ar_steps == 1
        context = model.num_tokens if text_tokens else (0 if one_block else model.num_tokens - 1)
    return round(model.num_condition_tokens + text_tokens + context + form.copies * model.num_tokens)


def shares_state(train: TrainConfig, *, on_gpu: bool, memory: float, count: int, parameters: int) -> bool:
    """Whether the run's processes shard their state (fsdp): as asked, or, for `auto`, where replicas are
    asked for or the state fills more than a quarter of a GPU's `memory`."""
    if count == 1:
        return False
    if train.parallel != "auto":
        return train.parallel == "fsdp"
    return train.replicas > 1 or (on_gpu and STATE_BYTES * parameters > memory / 4)


def _sharded_over(train: TrainConfig, device: Device, count: int, parameters: int) -> int:
    shared = shares_state(
        train, on_gpu=device.is_gpu, memory=device.memory, count=count, parameters=parameters
    )
    return max(count // train.replicas, 1) if shared else 1


def _memory(config: RunConfig, device: Device, micro_batch: int, shards: int, text_tokens: float) -> Memory:
    return Memory(
        state_bytes(config, shards),
        activation_bytes(config, micro_batch, on_gpu=device.is_gpu, text_tokens=text_tokens),
    )


def _changes(config: RunConfig, device: Device, count: int, text_tokens: float) -> tuple[str, ...]:
    """The cheapest settings that fit: smaller micro-batches first, which cost next to nothing down to a few
    images; then blocks computed again; then shares of the state."""
    parameters, _ = parameters_of(config.model)
    for train, micro_batch in _candidates(config, count):
        candidate = replace(config, train=train)
        shards = _sharded_over(train, device, count, parameters)
        if _memory(candidate, device, micro_batch, shards, text_tokens).total <= USABLE * device.memory:
            names = ("micro_batch", "activation_checkpointing", "parallel")
            changed = [n for n in names if getattr(train, n) != getattr(config.train, n)]
            return tuple(f"--train.{n.replace('_', '-')} {getattr(train, n)}" for n in changed)
    return ()


def _candidates(config: RunConfig, count: int) -> Iterator[tuple[TrainConfig, int]]:
    """Settings to try, with their micro-batch. Where `train.micro_batch` is left open, so it stays."""
    train = config.train
    levels = list(CHECKPOINT_EVERY)
    checkpointing = levels[levels.index(train.activation_checkpointing) :]
    sizes = [train.batch_size // (count * number) for number in _divisions(config, count)]
    ways = [train.parallel] if count == 1 or train.parallel == "fsdp" else [train.parallel, "fsdp"]
    for few in (4, 1):
        for parallel in ways:
            for level in checkpointing:
                for size in sizes:
                    if size >= min(few, sizes[0]):
                        given = size if train.micro_batch and size != sizes[0] else train.micro_batch
                        changed = replace(
                            train, parallel=parallel, activation_checkpointing=level, micro_batch=given
                        )
                        yield changed, size
