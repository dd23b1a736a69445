"""How a run is stopped in good order, and kept from being started twice."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from causalfusion.files import in_use, remove_leftovers
from causalfusion.machine.processes import World
from causalfusion.train.checkpoint import remove_partial_checkpoints

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)


class StopRequest:
    """Set by a signal: the run is to save and end after the train step in progress."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP (the terminal is gone) set the request; a second Ctrl-C stops at once.

        Not just any second signal: under torchrun, one Ctrl-C reaches a process as SIGINT and as SIGTERM. A
        signal that is ignored, as SIGHUP is under nohup, stays ignored.
        """
        if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
            yield
            return
        interrupts = 0

        def ask(number: int, _: Any) -> None:
            nonlocal interrupts
            interrupts += number == signal.SIGINT
            if interrupts > 1:
                raise KeyboardInterrupt
            self.requested = True

        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, ask) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def run_in_use(folder: Path, world: World) -> Iterator[None]:
    """The main process holds the run's folder, for all processes of the run, and clears it of what killed
    ones have left there.

    Raises UserError where another run does.
    """
    if not world.is_main:
        yield
        return
    with in_use(folder, "the run"):
        remove_leftovers(folder)
        remove_partial_checkpoints(folder)
        yield
