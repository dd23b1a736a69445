"""The processes of a run: those that torchrun started, or a single one. `World` is the interface to them."""

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
from causalfusion.machine.runtime import select_device, tune_allocator
from causalfusion.machine.watch import (
    ProcessName,
    Watch,
    end_with_launcher,
    host_watch,
    join_watch,
    open_watch,
    time_to_report,
)

_NEWS_TIMEOUT = 3.0
"""Seconds to wait for news that an operation failed because another process stopped."""
JOIN_TIMEOUT = timedelta(minutes=10)
"""Time for all processes to start."""
NO_TIMEOUT = timedelta(days=30)
"""Timeout of collective operations, in effect none: processes wait while the main one samples, evaluates or
writes, which PyTorch's ten minutes for NCCL would abort. The watch reports a dead process at once."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them; operations on values are collective."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """True if the flag is set on any process."""
        return bool(self.max(int(flag)))

    def max(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of the processes' values; `value` is left unchanged."""
        if self.size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.size

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def wait_without_limit(group: dist.ProcessGroup | None) -> None:
    """Remove the time limit of a process group's operations."""
    with warnings.catch_warnings(action="ignore"):  # backends without a limit warn
        distributed_c10d._set_pg_timeout(NO_TIMEOUT, group)


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """The processes of this run: torchrun's (gloo on CPUs, NCCL on GPUs), or this one alone.

    When one of several stops prematurely, the others end with an error that names it. Freed memory stays in
    the process; the number of threads is afterwards what it was.
    """
    tune_allocator()
    threads = torch.get_num_threads()
    try:
        with _joined(device) as world:
            yield world
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def require_one_process(command: str) -> None:
    """Raises UserError if a launcher started several processes for a command that joins no others."""
    if _world_size() > 1:
        raise UserError(f"{command} runs in one process; start it without torchrun")


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def _joined(device: str) -> Iterator[World]:
    size = _world_size()
    if size > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_launcher()  # at once, as joining the others may take minutes
    chosen = select_device(device)
    if size == 1:
        if chosen.type == "cuda" and chosen.index is not None:
            torch.cuda.set_device(chosen)
        yield World(0, 1, chosen)
        return
    cuda = chosen.type == "cuda"
    local = select_device(f"cuda:{os.environ['LOCAL_RANK']}") if cuda else chosen
    if cuda:
        torch.cuda.set_device(local)
    # gloo is needed on GPUs too, as checkpoints are written from the host's memory.
    backend, device_id = ("cpu:gloo,cuda:nccl", local) if cuda else ("gloo", None)
    dist.init_process_group(backend, device_id=device_id, timeout=JOIN_TIMEOUT)
    try:
        wait_without_limit(dist.group.WORLD)
        watch = _watch(dist.get_rank(), size)
        with time_to_report(watch):
            try:
                yield World(dist.get_rank(), size, local)
            except BaseException as error:
                _fail(watch, error)
                raise
        watch.end()
    finally:
        gc.collect()  # a model that is still alive here sometimes makes the exit abort
        dist.destroy_process_group()


def _watch(rank: int, size: int) -> Watch:
    """This process's connection to the watch. All processes exchange their names first."""
    members: list[ProcessName] = [ProcessName.own(rank)] * size
    dist.all_gather_object(members, ProcessName.own(rank))
    if rank == 0:
        server, port, token = open_watch()
        dist.broadcast_object_list([port, token], src=0)
        return host_watch(server, token, members)
    endpoint = [0, ""]
    dist.broadcast_object_list(endpoint, src=0)
    return join_watch(rank, (os.environ["MASTER_ADDR"], int(endpoint[0])), str(endpoint[1]), members)


def _fail(watch: Watch, error: BaseException) -> None:
    """Tell the others that this process failed. If it failed because another one stopped, raise an error that
    names that one instead."""
    own = isinstance(error, UserError) or not isinstance(error, Exception)
    if own or not watch.news.wait(_NEWS_TIMEOUT):
        said = str(error) if own else f"{type(error).__name__}: {error}"
        said = " ".join(said.split()) or "interrupted"
        watch.end(said)
        if isinstance(error, UserError) and watch.main_reports(said, _NEWS_TIMEOUT):
            raise SystemExit(1) from error
        return
    watch.end()
    if watch.reports:
        raise UserError(watch.message()) from error
    raise SystemExit(1) from error
