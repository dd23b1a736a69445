"""Several processes: what torchrun started, or one process alone. `World` is all that one knows of it."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from causalfusion.errors import UserError
from causalfusion.machine.runtime import select_device
from causalfusion.machine.watch import (
    Member,
    Watch,
    end_with_launcher,
    host_watch,
    join_watch,
    open_watch,
    time_to_tell,
)  # fmt: skip

_NEWS = 3.0
"""Seconds to learn whether an operation failed because another process stopped."""
JOIN_TIMEOUT = timedelta(minutes=10)
"""For all processes to start."""
NO_TIMEOUT = timedelta(days=30)
"""Others wait as long as the main process samples, evaluates or writes. PyTorch's ten minutes for NCCL would
end the run; a process that is gone is told of by the watch, at once."""


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
        return bool(self.max(int(flag)))

    def max(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def mean(self, value: Tensor) -> Tensor:
        if self.size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.size

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def wait_without_limit(group: dist.ProcessGroup | None) -> None:
    """Take the time limit off the operations of a group of processes."""
    with warnings.catch_warnings(action="ignore"):  # of backends that have no limit
        distributed_c10d._set_pg_timeout(NO_TIMEOUT, group)


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """The processes of this run: torchrun's (gloo on CPUs, NCCL on GPUs), or this one.

    When one of several stops before its time, the others end with an error that names it.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_launcher()  # from the start: joining the others takes a while too
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
    # gloo on GPUs too: checkpoints are written from the host's memory.
    backend, device_id = ("cpu:gloo,cuda:nccl", local) if cuda else ("gloo", None)
    dist.init_process_group(backend, device_id=device_id, timeout=JOIN_TIMEOUT)
    try:
        wait_without_limit(dist.group.WORLD)
        watch = _watch(dist.get_rank(), size)
        with time_to_tell(watch):
            try:
                yield World(dist.get_rank(), size, local)
            except BaseException as error:
                _fail(watch, error)
                raise
        watch.end()
    finally:
        gc.collect()  # a model still alive at this point makes the exit abort now and then
        dist.destroy_process_group()


def _watch(rank: int, size: int) -> Watch:
    """Have all processes know one another's names, and learn at once when one stops."""
    members: list[Member] = [Member.own(rank)] * size
    dist.all_gather_object(members, Member.own(rank))
    if rank == 0:
        server, port, token = open_watch()
        dist.broadcast_object_list([port, token], src=0)
        return host_watch(server, token, members)
    endpoint = [0, ""]
    dist.broadcast_object_list(endpoint, src=0)
    return join_watch(rank, (os.environ["MASTER_ADDR"], int(endpoint[0])), str(endpoint[1]), members)


def _fail(watch: Watch, error: BaseException) -> None:
    """Tell the others that this process fails; or, if it fails because another one did, say which."""
    own = isinstance(error, UserError) or not isinstance(error, Exception)
    if own or not watch.news.wait(_NEWS):
        said = str(error) if own else f"{type(error).__name__}: {error}"
        said = " ".join(said.split()) or "interrupted"
        watch.end(said)
        if isinstance(error, UserError) and watch.is_told_by_main(said, _NEWS):
            raise SystemExit(1) from error
        return
    watch.end()
    if watch.speaks:
        raise UserError(watch.message()) from error
    raise SystemExit(1) from error
