"""FSDP2: every process holds a share of each parameter, of its gradient, moments and average.

All of it is put on a plain `Transformer` from outside. A block's weights are gathered for its forward and
its backward pass and let go after each. With bfloat16 they are gathered in bfloat16; what surrounds the
blocks stays float32, so that the residual stream is what it is in one process. Gradients are summed in
float32 in any case.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from causalfusion.errors import UserError
from causalfusion.machine.processes import World, wait_without_limit
from causalfusion.model.norm import Norm
from causalfusion.model.transformer import Transformer


def shard(model: Transformer, world: World, replicas: int, compute_dtype: torch.dtype) -> None:
    """Split the parameters over the processes, or over each of `replicas` groups of them."""
    # That is of danger to in-place operations on predictions; there are none.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    mesh = _mesh(world, replicas)
    low = None if compute_dtype == torch.float32 else compute_dtype
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.each_block():
        for norm in block.norms() if low is not None else ():
            norm.forward = partial(_norm_in_float32, norm)  # pyright: ignore[reportAttributeAccessIssue]
        fully_shard(block, mesh=mesh, mp_policy=policy)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    if model.class_embedding is not None:  # a large table, used once
        fully_shard(model.class_embedding, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def _norm_in_float32(norm: Norm, x: Tensor) -> Tensor:
    """As without sharding: its parameters come in bfloat16, what it computes does not."""
    if isinstance(norm, nn.RMSNorm):
        return F.rms_norm(x, norm.normalized_shape, norm.weight.float(), norm.eps)
    return F.layer_norm(x, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)


def _mesh(world: World, replicas: int) -> DeviceMesh:
    if world.size % replicas or replicas == world.size:
        raise UserError(
            f"train.replicas is {replicas}, with {world.size} processes; expected a smaller divisor of their "
            "number, such as the number of nodes"
        )
    if replicas == 1:
        return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))
    shape = (replicas, world.size // replicas)
    mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=("replicate", "shard"))
    for group in mesh.get_all_groups():
        wait_without_limit(group)
    return mesh


def materialise(model: Transformer, device: torch.device, generator: torch.Generator) -> None:
    """Give a sharded model on the meta device the weights that `init_weights` gives an unsharded one."""
    model.to_empty(device=device)
    with _WholeThenShare():
        model.init_weights(generator)


class _WholeThenShare(TorchDispatchMode):
    """In-place operations on a sharded tensor are done on the whole one, on the CPU, one tensor at a time;
    each process keeps its share. So all draw the same numbers as an unsharded tensor would."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        in_place = func._schema.name.endswith("_")
        if not (in_place and args and isinstance(args[0], DTensor)):
            return func(*args, **(kwargs or {}))
        target = args[0]
        whole = torch.empty(target.shape, dtype=target.dtype)
        func(whole, *args[1:], **(kwargs or {}))
        local_part(target).copy_(local_part(shard_like(whole, target)))
        return target


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it, if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a tensor that every process has, sharded in the same way as `like`."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that all processes hold shares of; all of them must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def zero_other_rows(tensor: Tensor, rows: slice) -> None:
    """Set all rows of a matrix, which may be sharded, to zero but these."""
    mask = torch.zeros(len(tensor), 1, device=tensor.device)
    mask[rows] = 1
    if isinstance(tensor, DTensor):
        mask = distribute_tensor(mask, tensor.device_mesh, tensor.placements, src_data_rank=None)
    local_part(tensor).mul_(local_part(mask))


def gather(tensors: Mapping[str, Tensor], world: World, *, copy: bool) -> dict[str, Tensor]:
    """All of them whole, in the host's memory of the main process, one after another; nothing elsewhere.
    Without `copy`, they may share the memory of the ones given."""
    gathered = {}
    for name, tensor in tensors.items():
        value = whole(tensor.detach())
        if world.is_main:
            copied = not copy or value.is_cuda or isinstance(tensor, DTensor)
            gathered[name] = (value if copied else value.clone()).cpu().contiguous()
    return gathered


def reshard(model: nn.Module) -> None:
    """Free the gathered weights of all blocks; the next forward pass gathers them again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


class UnusedParameters:
    """Parameters that a train step leaves out, on some processes or on all.

    Processes exchange the gradients of all parameters that surround the blocks in one operation, so each
    needs the same ones: those left out on a process count as zero. Left out on all, a parameter has no
    gradient, as in one process, and the optimizer does not touch it.
    """

    def __init__(self, model: Transformer, world: World) -> None:
        self.model, self.world = model, world
        self.names: list[str] = []
        self.used: set[str] = set()
        model.register_forward_hook(self._fill)

    def _fill(self, *_: Any) -> None:
        """After a forward pass, when these parameters are still gathered: gradients to add to."""
        if not torch.is_grad_enabled():
            return
        gathered = {n: p for n, p in self.model.named_parameters() if not isinstance(p, DTensor)}
        if not self.names:
            self.names = list(gathered)
            for name, parameter in gathered.items():
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: self.used.add(name))
        for parameter in gathered.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def drop(self) -> None:
        """After the last backward pass of a train step."""
        flags = torch.tensor([float(name in self.used) for name in self.names], device=self.world.device)
        for name, flag in zip(self.names, self.world.mean(flags).tolist(), strict=True):
            if not flag:
                self.model.get_parameter(name).grad = None
        self.used.clear()
