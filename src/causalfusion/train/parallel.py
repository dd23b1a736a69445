"""What is put on the model from outside for training: gradients over processes, less memory."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from causalfusion.distributed import World


def data_parallel(model: nn.Module, world: World, *, some_unused: bool = False) -> nn.Module:
    """The model with gradients averaged over processes, or the model itself. `some_unused`: a step may leave
    parameters without a gradient."""
    if world.size == 1:
        return model
    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(
        model, device_ids=ids, gradient_as_bucket_view=True, find_unused_parameters=some_unused
    )


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute every block in the backward pass instead of keeping what is inside it."""
    for block in model.get_submodule("blocks").children():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
