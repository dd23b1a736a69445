"""When checkpoints are written: at once, or in the background while training goes on.

A save first takes what it needs from the model: the weights, gathered by all processes together, and the
optimizer's state, or each process's share of it. The rest touches files alone. In the background it works on
a copy in the host's memory; one save at a time, so the next one waits for the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from causalfusion.machine.processes import NO_TIMEOUT, World
from causalfusion.train.checkpoint import (
    SHARDED_FOLDER,
    Snapshot,
    commit,
    folder_of,
    not_written,
    partial_folder,
    remove_oldest,
    remove_partial_checkpoints,
    write_snapshot,
)

Wait = Callable[[], object]
"""Returns when all processes have written their shares; raises if one could not."""


class Saver:
    """Writes the checkpoints of a run; made by all processes together."""

    def __init__(self, run: Path, world: World, *, keep: int, background: bool, sharded: bool) -> None:
        self.run, self.world, self.keep, self.sharded = run, world, keep, sharded
        # The background has its own group: its messages must not mix with those of training.
        group = dist.new_group(backend="gloo", timeout=NO_TIMEOUT) if sharded else None
        self.group = cast("dist.ProcessGroup | None", group)
        self.threads = ThreadPoolExecutor(1, "checkpoint") if background else None
        self.pending: Future[None] | None = None

    def save(self, snapshot: Snapshot, shares: dict[str, Tensor], *, prune: bool = True) -> None:
        """All processes together: the snapshot is the main one's, the shares are each one's. Earlier ones
        beyond those to keep are removed once it is whole, unless `prune` is off."""
        self.finish()
        final = folder_of(self.run, snapshot.progress)
        if self.world.is_main:
            self._begin(final)
        self.world.barrier()
        written = self._write_shares(final, shares)
        if self.threads is None:
            self._complete(final, snapshot, written, prune)
            self.world.barrier()
        else:
            self.pending = self.threads.submit(self._complete, final, snapshot, written, prune)

    def finish(self) -> None:
        """Wait until what is being written is whole."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()
            self.world.barrier()

    def close(self) -> None:
        """After training, well or not: let a save in work come to its end, and keep its errors quiet."""
        if self.threads is not None:
            self.threads.shutdown(wait=True)

    def _begin(self, final: Path) -> None:
        remove_partial_checkpoints(self.run)
        state = partial_folder(final) / "state"
        try:
            (state / SHARDED_FOLDER if self.sharded else state).mkdir(parents=True)
        except OSError as error:
            raise not_written(final, error) from error

    def _write_shares(self, final: Path, shares: dict[str, Tensor]) -> Wait:
        """Begin to write this process's share; return what waits for all of them."""
        if not self.sharded:
            return lambda: None
        writer = FileSystemWriter(partial_folder(final) / "state" / SHARDED_FOLDER)
        if self.threads is None:
            return lambda: save(shares, storage_writer=writer, process_group=self.group)
        future = async_save(shares, storage_writer=writer, process_group=self.group)
        assert isinstance(future, Future), "the writer copies the shares before this returns"
        return future.result

    def _complete(self, final: Path, snapshot: Snapshot, written: Wait, prune: bool) -> None:
        try:
            if self.world.is_main:
                write_snapshot(final, snapshot)
            written()
            if self.world.is_main:
                commit(final)
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            raise not_written(final, cause) from error
        except (OSError, SafetensorError) as error:
            raise not_written(final, error) from error
        if self.world.is_main and prune:
            remove_oldest(self.run, self.keep)
