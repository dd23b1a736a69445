"""Commands in processes forked from a warm one: a case costs its work alone, not the imports."""

from __future__ import annotations

import io
import os
import pkgutil
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

MEMORY = 3 * 2**30
"""Bytes of address space that a case may take beyond what the process has."""
CPU_SECONDS, WALL_SECONDS = 20, 240
"""The first is a fault; the second is for what hangs, on a machine that is busy with other things."""


@dataclass(frozen=True)
class Outcome:
    code: int
    """Exit code; 99: a traceback; 100 and above: by that signal."""
    output: str
    cpu_seconds: float
    growth: int


def in_child(
    work: Callable[[], int], log: Path, *, limited: bool = False, kill_after: float | None = None
) -> Outcome:
    """The exit code of `work` in a forked process, and all that it prints. It may be killed after so many
    seconds."""
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        code = 99
        try:
            _prepare(log, limited)
            code = work()
        except SystemExit as end:
            code = int(end.code or 0) if isinstance(end.code, int | None) else 99
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + ((WALL_SECONDS if limited else 600) if kill_after is None else kill_after)
    while True:
        found, status, usage = os.wait4(process, os.WNOHANG)
        if found:
            break
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.005)
    code = os.waitstatus_to_exitcode(status)
    return Outcome(
        code if code >= 0 else 100 - code,
        log.read_bytes().decode("utf-8", "replace"),
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024 - before,
    )


def _prepare(log: Path, limited: bool) -> None:
    os.setpgid(0, 0)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in ((0, null), (1, target), (2, target)):
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb", closefd=False)) for n in (1, 2))
    if limited:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (2 * CPU_SECONDS, 2 * CPU_SECONDS))


def command(tokens: Sequence[str], folder: Path) -> Callable[[], int]:
    def work() -> int:
        from causalfusion.cli import run

        os.chdir(folder)
        return run(list(tokens))

    return work


def warm() -> None:
    """Import all that the commands import, so that a forked process need not."""
    import causalfusion

    for module in pkgutil.walk_packages(causalfusion.__path__, "causalfusion."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    for name in (
        "PIL.Image",
        "torch.utils.tensorboard",
        "diffusers",
        "tokenizers",
        "rich.table",
        "matplotlib.pyplot",
        "scipy.linalg",
    ):
        import_module(name)
    import diffusers
    import torch

    for name in ("DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "AutoencoderKL"):
        getattr(diffusers, name)
    torch.set_num_threads(1)  # threads do not survive a fork
