"""Several processes: what torchrun started, or one process alone. `World` is all that one knows of it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from causalfusion.runtime import select_device


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        if self.size == 1:
            return flag
        value = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value)

    def mean(self, value: Tensor) -> Tensor:
        if self.size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.size

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """The processes of this run: torchrun's (gloo on CPUs, NCCL on GPUs), or this one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = select_device(device)
    if size == 1:
        if chosen.index is not None:
            torch.cuda.set_device(chosen)
        yield World(0, 1, chosen)
        return
    cuda = chosen.type == "cuda"
    local = select_device(f"cuda:{os.environ['LOCAL_RANK']}") if cuda else chosen
    if cuda:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo", device_id=local if cuda else None)
    try:
        yield World(dist.get_rank(), size, local)
    finally:
        gc.collect()  # a model still alive at this point makes the exit abort now and then
        dist.destroy_process_group()
