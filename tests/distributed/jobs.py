"""Several processes for a test, which join one another as torchrun's would."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from causalfusion.config import RunConfig
from causalfusion.config.recipes import load_config
from causalfusion.machine import watch
from forked import CONTEXT, settle, train

__all__ = ["run", "start", "tiny_config", "train"]


def tiny_config(out: Path | str, **sections: dict[str, Any]) -> RunConfig:
    """A run of a few small steps on digits, in batches that 1, 2, 3 and 4 processes can share."""
    train = {
        "images": 48, "batch_size": 12, "lr": 1e-3, "log_every": 1, "checkpoint_every": 0,
        "evaluate_every": 0, "evaluate_images": 16, "ema_decay": 0.9, **sections.pop("train", {}),
    }  # fmt: skip
    model = {"hidden_size": 32, "depth": 2, "num_heads": 2, "num_class_tokens": 2}
    values = {"train": train, "model": {**model, **sections.pop("model", {})}, "codec": {"patch_size": 2}}
    return load_config("digits", **values, data={"flip": True}, **sections, out=str(out))


@dataclass
class Job:
    """Processes at work."""

    processes: list[ForkServerProcess]
    ends: list[Connection]

    def wait(self, seconds: float = 240) -> list[Any]:
        """The results by rank; None of a process that failed."""
        results = []
        for process, end in zip(self.processes, self.ends, strict=True):
            try:
                results.append(end.recv() if end.poll(seconds) else None)
            except EOFError:
                results.append(None)
            process.join(seconds)
        return results

    @property
    def exit_codes(self) -> list[int | None]:
        return [process.exitcode for process in self.processes]


def start(count: int, function: Callable[..., Any], *arguments: Any) -> Job:
    """Call a function of a module in `count` processes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes, ends = [], []
    for rank in range(count):
        end, other = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_call, args=(rank, count, port, other, function, arguments))
        process.start()
        other.close()
        processes.append(process)
        ends.append(end)
    return Job(processes, ends)


def run(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The results by rank of a function that must succeed."""
    job = start(count, function, *arguments)
    results = job.wait()
    assert job.exit_codes == [0] * count, job.exit_codes
    return results


def _call(
    rank: int,
    count: int,
    port: int,
    end: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in values.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    settle()
    watch.GRACE = 60.0  # on a busy machine, exceptions come late
    end.send(function(*arguments))
