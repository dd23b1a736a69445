"""The cost of a training run in arithmetic, time and memory, and changes that make it fit.

The time is that of the arithmetic, at an assumed fraction of the device's peak matrix rate, plus that of
reading and writing the optimizer's tensors. It does not include waiting for data, evaluation, and encoding
with an autoencoder during training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from causalfusion.config import RunConfig, TrainConfig
from causalfusion.errors import UserError
from causalfusion.estimate.devices import USABLE, Device
from causalfusion.estimate.memory import (
    CHECKPOINT_EVERY,
    Memory,
    activation_bytes,
    largest_split,
    of_largest_images,
    parameters_of,
    state_bytes,
)
from causalfusion.estimate.optimizer import (
    bytes_per_parameter,
    frozen_of,
    muon_flops,
    traffic_per_parameter,
)
from causalfusion.model.arithmetic import Flops, expected_train_flops, form_of, sequence_length
from causalfusion.model.split_facts import expected_facts

LAUNCH_SECONDS = 5e-4
"""Least time of a block's forward and backward pass on a GPU: about 60 kernel launches. Not measured."""


@dataclass(frozen=True)
class Cost:
    """The cost of a run."""

    device: Device
    count: int
    """Number of devices."""
    parameters: int
    sequence: float
    """Mean number of tokens in a packed sequence."""
    longest: int
    """Tokens of the longest sequence that training can draw."""
    text_tokens: float
    """Text tokens per sequence, markers included."""
    of_image: Flops
    """Forward and backward pass of an image, expected over the splits that training draws."""
    images: int
    """Number of images still to train on."""
    recomputed: float
    """Additional arithmetic of activation checkpointing, as a fraction of a step's."""
    micro_batch: int
    """Images computed at once on one device."""
    sharded_over: int
    """Number of devices over which the training state is sharded; 1: each holds all of it."""
    step_seconds: float
    seconds: float
    """Time of all steps."""
    memory: Memory
    changes: tuple[str, ...]
    """Options with which the run fits; empty if it fits already, or if nothing helps."""

    @property
    def in_all(self) -> Flops:
        """Arithmetic of the whole run."""
        return self.of_image * self.images

    @property
    def fits(self) -> bool:
        return self.memory.total <= USABLE * self.device.memory


def estimate(
    config: RunConfig, device: Device, count: int = 1, *, text_tokens: float = 0, images_seen: int = 0
) -> Cost:
    """The cost of the rest of a run. The settings that follow from the data must be filled in. A document
    counts as an image of as many tokens as the images of the longest one have."""
    config = documents_as_images(config)
    train, model = config.train, config.model
    parameters, _ = parameters_of(model)
    shards = _sharded_over(train, device, count, parameters)
    accumulation = micro_batches(config, device, count, shards=shards, text_tokens=text_tokens)
    micro_batch = train.batch_size // (count * accumulation)
    form = form_of(config, text_tokens)
    facts = expected_facts(model.num_tokens, config.factorization, micro_batch)
    of_image = expected_train_flops(config, micro_batch, text_tokens)
    in_steps = 1 + distillation_share(config)
    of_image = of_image * in_steps
    every = CHECKPOINT_EVERY[train.activation_checkpointing]
    recomputed = 0.0 if not every else -(-model.depth // every) / model.depth / 3 / in_steps
    images = max(train.images - images_seen, 0)
    arithmetic = train.batch_size / count * of_image.needed * (1 + recomputed) / (device.rate * device.share)
    if device.is_gpu:
        arithmetic = max(arithmetic, accumulation * model.depth * LAUNCH_SECONDS)
    arithmetic += muon_flops(config) / (device.rate * device.share)
    learned = parameters - frozen_of(config)
    step_seconds = arithmetic + traffic_per_parameter(train) * learned / shards / device.bandwidth
    memory = _memory(config, device, micro_batch, shards, text_tokens)
    cost = Cost(
        device=device,
        count=count,
        parameters=parameters,
        sequence=sequence_length(model, facts, form),
        longest=_longest(config, text_tokens),
        text_tokens=text_tokens,
        of_image=of_image,
        images=images,
        recomputed=recomputed,
        micro_batch=micro_batch,
        sharded_over=shards,
        step_seconds=step_seconds,
        seconds=step_seconds * images / train.batch_size,
        memory=memory,
        changes=(),
    )
    return cost if cost.fits else replace(cost, changes=_changes(config, device, count, text_tokens))


def distillation_share(config: RunConfig) -> float:
    """What a distillation computes beside an ordinary train step, as a fraction of it: forward passes, each a
    third of a step, of the teacher, twice under guidance, and of the student's own jump; 0 without one."""
    distill = config.distill
    if not distill.steps:  # a published model does not tell its teacher
        return 0.0
    return (distill.ahead * (1 if distill.guidance_scale == 1 else 2) + 1) / 3


def documents_as_images(config: RunConfig) -> RunConfig:
    """The settings of a run whose images are as large as the documents of this one, if it has documents."""
    if not config.data.has_documents:
        return config
    model = config.model
    return replace(config, model=replace(model, grid_height=model.grid_height * model.max_images))


def micro_batches(
    config: RunConfig, device: Device, count: int, *, shards: int, text_tokens: float = 0
) -> int:
    """Number of micro-batches of a train step on each of `count` devices: the fewest that `train.micro_batch`
    and `train.grad_accumulation` allow. Without `train.micro_batch`, the fewest that also fit into memory, if
    any do. Raises UserError for a batch that cannot be divided so."""
    possible = _divisions(config, count)
    if config.train.micro_batch:
        return possible[0]
    for number in possible:
        micro_batch = config.train.batch_size // (count * number)
        if _memory(config, device, micro_batch, shards, text_tokens).total <= USABLE * device.memory:
            return number
    return possible[0]


def _divisions(config: RunConfig, count: int) -> list[int]:
    """The numbers of micro-batches that the settings allow, fewest first. Raises UserError for none."""
    train, group = config.train, config.text.examples_per_sequence
    parts = max(count, 1) * train.grad_accumulation
    if count < 1 or train.batch_size % parts:
        raise UserError(
            f"train.batch_size is {train.batch_size}; expected a multiple of {parts} "
            "(devices x train.grad_accumulation)"
        )
    images, most = train.batch_size // count, train.micro_batch or train.batch_size
    possible = [
        number
        for number in range(train.grad_accumulation, images + 1)
        if images % number == 0 and images // number % group == 0 and images // number <= most
    ]
    if not possible:
        raise UserError(
            f"train.micro_batch is {train.micro_batch}; expected at least {group} images, as many as share a "
            "sequence (text.examples_per_sequence)"
        )
    return possible


def _longest(config: RunConfig, text_tokens: float) -> int:
    """Tokens of the longest sequence that training can draw."""
    model, form = config.model, form_of(config, text_tokens)
    if model.context == "bidirectional" or model.head.ask == "previous":
        return round(sequence_length(model, largest_split(config), form))
    context = 0
    if form.clean_copies:
        one_block = config.factorization.distribution == "fixed" and config.factorization.num_ar_steps == 1
        context = model.num_tokens if text_tokens else (0 if one_block else model.num_tokens - 1)
    return round(model.num_condition_tokens + text_tokens + context + form.rows_per_token * model.num_tokens)


def shares_state(train: TrainConfig, *, on_gpu: bool, memory: float, count: int, parameters: int) -> bool:
    """True if the run's processes shard their state (fsdp): as set, or, for `auto`, if replicas are set or
    the state fills more than a quarter of a GPU's `memory` in bytes."""
    if count == 1:
        return False
    if train.parallel != "auto":
        return train.parallel == "fsdp"
    return train.replicas > 1 or (on_gpu and bytes_per_parameter(train) * parameters > memory / 4)


def _sharded_over(train: TrainConfig, device: Device, count: int, parameters: int) -> int:
    shared = shares_state(
        train, on_gpu=device.is_gpu, memory=device.memory, count=count, parameters=parameters
    )
    return max(count // train.replicas, 1) if shared else 1


def _memory(config: RunConfig, device: Device, micro_batch: int, shards: int, text_tokens: float) -> Memory:
    return Memory(
        state_bytes(config, shards),
        activation_bytes(
            of_largest_images(config), micro_batch, on_gpu=device.is_gpu, text_tokens=text_tokens
        ),
    )


def _changes(config: RunConfig, device: Device, count: int, text_tokens: float) -> tuple[str, ...]:
    """Options of the cheapest settings that fit: smaller micro-batches, which cost almost nothing down to a
    few images; then recomputed blocks; then sharded state. () if nothing fits."""
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
    """Settings to try, with their micro-batch, the cheapest first. If `train.micro_batch` is not given, it
    stays so."""
    train = config.train
    levels = list(CHECKPOINT_EVERY)
    checkpointing = levels[levels.index(train.activation_checkpointing) :]
    sizes = [train.batch_size // (count * number) for number in _divisions(config, count)]
    options = [train.parallel] if count == 1 or train.parallel == "fsdp" else [train.parallel, "fsdp"]
    for smallest in (4, 1):
        for parallel in options:
            for level in checkpointing:
                for size in sizes:
                    if size >= min(smallest, sizes[0]):
                        given = size if train.micro_batch and size != sizes[0] else train.micro_batch
                        changed = replace(
                            train, parallel=parallel, activation_checkpointing=level, micro_batch=given
                        )
                        yield changed, size
