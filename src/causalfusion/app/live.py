"""Work that reports as it goes, turned into an iterator of its reports."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Abandoned(BaseException):
    """Ends the work where nobody listens any more. No `Exception`, so that no handler on the way keeps it."""


@dataclass(frozen=True)
class _Result(Generic[R]):
    value: R


@dataclass(frozen=True)
class _Failure:
    error: BaseException


def reports_of(work: Callable[[Callable[[T], None]], R]) -> Generator[T, None, R]:
    """What `work(tell)` tells, while it works in a thread of its own; its result is the iterator's.

    An error of the work is raised here. If the iterator is closed before its end, the work ends at the next
    report, and is waited for.
    """
    told: SimpleQueue[T | _Result[R] | _Failure] = SimpleQueue()
    abandoned = threading.Event()

    def tell(report: T) -> None:
        if abandoned.is_set():
            raise _Abandoned
        told.put(report)

    def run() -> None:
        try:
            told.put(_Result(work(tell)))
        except BaseException as error:
            told.put(_Failure(error))

    thread = threading.Thread(target=run, daemon=True, name="causalfusion-work")
    thread.start()
    try:
        while True:
            report = told.get()
            if isinstance(report, _Result):
                return report.value
            if isinstance(report, _Failure):
                raise report.error
            yield report
    finally:
        abandoned.set()
        thread.join()
