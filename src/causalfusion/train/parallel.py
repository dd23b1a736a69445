"""Parallelism and activation checkpointing, applied to the model from outside for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from causalfusion.config import RunConfig, TrainConfig
from causalfusion.errors import UserError
from causalfusion.estimate.cost import estimate, shares_state
from causalfusion.estimate.devices import unmeasured_device
from causalfusion.estimate.show import remedy
from causalfusion.machine.processes import World
from causalfusion.machine.runtime import compute_dtype
from causalfusion.machine.skeleton import skeleton
from causalfusion.model.compiled import compile_blocks
from causalfusion.model.projector import add_classifier, add_projector
from causalfusion.model.transformer import Transformer, count_parameters
from causalfusion.train.sharding import materialise, shard

Kind = Literal["alone", "ddp", "fsdp"]


def build_model(config: RunConfig, world: World) -> Transformer:
    """The model of a run, initialised from its seed on its device; sharded where the run says so, and then
    never whole on any process."""
    train = config.train
    generator = torch.Generator().manual_seed(train.seed)
    with skeleton():  # nothing is drawn only to be overwritten
        model = Transformer(config.model)
        if config.align.encoder:
            _add_projector(model, config)
        if config.finetune.task == "classify":
            add_classifier(model, config.model.num_classes)
    checkpoint_activations(model, train.activation_checkpointing)
    if train.compile == "always" or (train.compile == "auto" and world.device.type == "cuda"):
        compile_blocks(model)
    if parallel_kind(train, world, count_parameters(model)) == "fsdp":
        shard(model, world, train.replicas, compute_dtype(train.precision))
        materialise(model, world.device, generator)
    else:
        model.to_empty(device="cpu")
        model.init_weights(generator)
        model.to(world.device)
    return model


def _add_projector(model: Transformer, config: RunConfig) -> None:
    align = config.align
    width = align.width or 2 * config.model.image_size
    add_projector(model, align.layer_of(config.model.depth), width, align.feature_dim)


def fit_to_memory(config: RunConfig, world: World, *, at_least: int = 1) -> RunConfig:
    """The settings with `train.grad_accumulation` raised until a train step fits into each process's memory,
    to `at_least` micro-batches. The settings that follow from the data are filled in. Raises UserError, with
    the settings that would do, for a run that cannot fit."""
    device = unmeasured_device(world.device)
    text_tokens = config.model.max_text_tokens if config.model.vocab_size else 0
    cost = estimate(config, device, world.size, text_tokens=text_tokens)
    if world.any(not cost.fits):
        needed, free = cost.memory.total / 1e9, device.memory / 1e9
        raise UserError(
            f"a train step needs {needed:.3g} GB on each process, and {free:.3g} GB are free; {remedy(cost)}"
        )
    share, group = config.train.batch_size // world.size, config.text.examples_per_sequence
    number = world.max(share // cost.micro_batch)
    if config.train.micro_batch == 0 and share % (at_least * group) == 0:
        number = max(number, at_least)
    return replace(config, train=replace(config.train, grad_accumulation=number))


def parallel_kind(config: TrainConfig, world: World, num_parameters: int) -> Kind:
    """How the processes share the work."""
    if world.size == 1:
        return "alone"
    on_gpu = world.device.type == "cuda"
    memory = torch.cuda.get_device_properties(world.device).total_memory if on_gpu else 0
    shared = shares_state(config, on_gpu=on_gpu, memory=memory, count=world.size, parameters=num_parameters)
    return "fsdp" if shared else "ddp"


def data_parallel(model: nn.Module, world: World, *, some_unused: bool = False) -> nn.Module:
    """The model with gradients averaged over processes: itself, if it is alone or sharded. `some_unused`: a
    step may leave parameters without a gradient."""
    if world.size == 1 or isinstance(model, FSDPModule):
        return model
    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(
        model, device_ids=ids, gradient_as_bucket_view=True, find_unused_parameters=some_unused
    )


@contextmanager
def gradient_sync(model: nn.Module, last: bool) -> Iterator[None]:
    """Around the passes of a micro-batch: copies exchange gradients with the last one only. Shares exchange
    them with each, so that no process holds whole gradients, but replicas of shares with the last."""
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(last)
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


def checkpoint_activations(model: Transformer, which: Literal["none", "selective", "full"]) -> None:
    """Recompute blocks in the backward pass instead of keeping what is inside them: all, or every second."""
    every = {"none": 0, "selective": 2, "full": 1}[which]
    for index, block in enumerate(model.each_block()):
        if every and index % every == 0:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
