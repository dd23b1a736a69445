"""Processes of their own, started in a fraction of a second: forked from a server that has imported the
package, so that none of them does it again."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from causalfusion import cli
from causalfusion.config import RunConfig
from causalfusion.errors import TrainingStopped
from causalfusion.train import run as run_module
from quick import quicken

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "causalfusion.train.run",
        "torch._dynamo",
        "torch.utils.tensorboard.writer",
        "sklearn.datasets",
        "pytest",
    ]
)


def start(function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Call a function of a module in a process of its own."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def settle() -> None:
    """What a new process does first: one thread, workers of its own that begin as a command's do, and no
    search through all that was imported for garbage, for which the system would have to copy it. Runs are as
    quick as in the tests' own process."""
    gc.freeze()
    multiprocessing.set_start_method(None, force=True)  # not by the server, which leaves them to others
    torch.set_num_threads(1)
    quicken(pytest.MonkeyPatch())


def train(config: RunConfig) -> None:
    """A whole run."""
    run_module.train(config, device="cpu", show_progress=False)


def train_until_stopped(config: RunConfig, own_session: bool = False) -> None:
    """A run that signals may stop; its exit code is then the command's."""
    settle()
    if own_session:
        os.setsid()
    # A shell's background job, and nohup, leave these ignored, as a run then keeps them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        train(config)
    except TrainingStopped as stopped:
        print(stopped)
        sys.exit(3)


def command(tokens: Sequence[str], errors: Path, environment: dict[str, str]) -> None:
    """A command as the shell runs it, in this environment, with its errors in a file."""
    assert "huggingface_hub" not in sys.modules, "it reads the environment when it is imported"
    settle()
    os.environ |= environment
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 2)
    sys.exit(cli.run(tokens))
