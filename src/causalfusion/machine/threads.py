"""The number of threads for generation, from what others leave of the machine.

Threads wait for one another after every operation. Where one of them shares its core with another program,
all wait for the scheduler: two threads of a small model beside one busy core make a tenth of the images that
one thread makes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

SECONDS = 0.1
"""Shortest time over which the load is measured; the kernel counts in hundredths."""
FLOPS_OF_A_THREAD = 1e6
"""Arithmetic of a matrix product that is worth one more thread."""
_CHOICES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Cores:
    """The cores that this process may use, and how busy others have kept them since the last question."""

    def __init__(
        self,
        busy_seconds: Callable[[], float | None] | None = None,
        own_seconds: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        count: int | None = None,
    ) -> None:
        self._allowed = _allowed()
        self.count = len(self._allowed) if count is None else count
        self._busy_seconds = busy_seconds or (lambda: read_busy_seconds(self._allowed))
        self._own_seconds, self._clock, self._sleep = own_seconds, clock, sleep
        self._last = self._now()

    def _now(self) -> tuple[float, float | None, float]:
        return self._clock(), self._busy_seconds(), self._own_seconds()

    def taken(self) -> float:
        """Cores that other programs kept busy since the last call, or since the beginning; 0 where the system
        does not say."""
        start, busy_before, own_before = self._last
        self._sleep(max(0.0, SECONDS - (self._clock() - start)))
        self._last = now, busy, own = self._now()
        if busy is None or busy_before is None:
            return 0.0
        others = (busy - busy_before) - (own - own_before)
        return min(float(self.count), max(0.0, others / (now - start)))


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def read_busy_seconds(cores: set[int], file: Path = Path("/proc/stat")) -> float | None:
    """Seconds that these cores have worked since the machine started; None except on Linux."""
    with suppress(OSError, ValueError, AttributeError):
        busy, tick = 0.0, os.sysconf("SC_CLK_TCK")
        for line in file.read_text().splitlines():
            name, *fields = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
                user, nice, system, _, _, *interrupts_and_stolen = map(int, fields[:8])
                busy += (user + nice + system + sum(interrupts_and_stolen)) / tick
        return busy
    return None


def threads_for(most: int, free: float, flops: float = float("inf")) -> int:
    """At most `most` threads: as many as there are free cores, and fewer for small matrix products."""
    return max(1, min(most, int(free + 0.5), int(min(flops / FLOPS_OF_A_THREAD, most))))


def chosen_by_user() -> str:
    """The environment variable that sets the number of threads; "" without one."""
    return next((name for name in _CHOICES if os.environ.get(name)), "")


class Threads:
    """The threads of a generating command; those that the user chose stay."""

    def __init__(self, cores: Cores | None = None) -> None:
        self.most, self._cores = torch.get_num_threads(), cores or Cores()

    def adapt(self, flops: float = float("inf")) -> int:
        """Take the number of threads that suits the load now, for matrix products of this size."""
        if self.most > 1 and not chosen_by_user():
            torch.set_num_threads(threads_for(self.most, self._cores.count - self._cores.taken(), flops))
        return torch.get_num_threads()

    def describe(self) -> str:
        """The number and its reason."""
        if chosen_by_user():
            return f"{self.most}, as {chosen_by_user()} says"
        taken = self._cores.taken()
        chosen = threads_for(self.most, self._cores.count - taken)
        others = f"others keep {taken:.1f} of {self._cores.count} cores busy"
        return f"{self.most} in training; {chosen} in generation, as {others}"
