"""How fast a run is, and how long it waits for its data."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from causalfusion.train.batch import TokenBatch


class Clock:
    """Rates since the last reading, of work and of waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.start = time.monotonic()
        self.images, self.flops, self.waited = 0, 0.0, 0.0

    def timed(self, feed: Iterator[TokenBatch]) -> Generator[TokenBatch]:
        while True:
            begin = time.monotonic()
            batch = next(feed, None)
            self.waited += time.monotonic() - begin
            if batch is None:
                return
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the block does not count as training time."""
        begin = time.monotonic()
        yield
        self.start += time.monotonic() - begin

    def add(self, images: int, flops: float) -> None:
        self.images += images
        self.flops += flops

    def read(self) -> tuple[float, float, float]:
        """(images/s, FLOP/s, share of the time spent waiting for data), and start again."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        rates = (self.images / seconds, self.flops / seconds, self.waited / seconds)
        self.restart()
        return rates
