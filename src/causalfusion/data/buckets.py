"""The sample stream of images of several sizes: every batch holds images of one grid.

Images of one grid are a bucket. A bucket's images, epoch after epoch and each epoch in an order of its own,
are cut into batches; the batches of all buckets are mixed so that each bucket's come evenly spread, at the
rate of its share of the images. Which images batch n holds depends only on n, the seed and the data set, so
that here too a run's position in its data is one number.
"""

from __future__ import annotations

import heapq
from fractions import Fraction
from functools import lru_cache

import numpy as np

from causalfusion.data.reader import Samples
from causalfusion.data.transforms import flip_decision
from causalfusion.rng import derive_seed

_DRAWS = 2**32


class Buckets:
    """The stream over the images `indices`, whose rows and columns of tokens are `grids` (N, 2) by index into
    the source."""

    def __init__(
        self, grids: np.ndarray, indices: np.ndarray, *, batch_size: int, seed: int, flip: bool
    ) -> None:
        self.batch_size, self.seed, self.flip, self.of_images = batch_size, seed, flip, grids
        found, bucket_of = np.unique(grids[indices], axis=0, return_inverse=True)
        self.grids: list[tuple[int, int]] = [(int(rows), int(columns)) for rows, columns in found]
        self.members = [indices[bucket_of.reshape(-1) == number] for number in range(len(found))]
        self._last: tuple[int, list[tuple[Fraction, int, int]]] | None = None

    def samples(self, places: np.ndarray) -> Samples:
        """The samples at these positions of the stream, all of one batch."""
        number, batch = self.of_batch(int(places[0]) // self.batch_size)
        members, name = self.members[number], self.grids[number]
        within = batch * self.batch_size + places % self.batch_size
        epochs, ranks = np.divmod(within, len(members))
        images = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs).tolist():
            rows = epochs == epoch
            images[rows] = members[_permutation(self.seed, name, epoch, len(members))[ranks[rows]]]
        mirrored = np.zeros(len(places), bool)
        if self.flip:
            pairs = zip(epochs.tolist(), images.tolist(), strict=True)
            mirrored[:] = [flip_decision(self.seed, epoch, index) for epoch, index in pairs]
        return Samples(images, mirrored, epochs)

    def of_batch(self, step: int) -> tuple[int, int]:
        """(bucket of batch `step` of the stream, how many batches of that bucket come before it)."""
        if self._last is None or self._last[0] != step:
            previous = self._last
            if previous is not None and previous[0] == step - 1:
                queue = previous[1]
                _, number, batch = queue[0]
                heapq.heapreplace(queue, (self._time(number, batch + 1), number, batch + 1))
            else:
                queue = self._queue(step)
            self._last = (step, queue)
        _, number, batch = self._last[1][0]
        return number, batch

    def _time(self, number: int, batch: int) -> Fraction:
        """When a bucket's batch is due: at a random moment of its own part of the bucket's time, in units of
        batch_size epochs."""
        drawn = derive_seed(self.seed, "bucket", *self.grids[number], batch) % _DRAWS
        return Fraction(batch * _DRAWS + drawn, _DRAWS * len(self.members[number]))

    def _queue(self, step: int) -> list[tuple[Fraction, int, int]]:
        """The next batch of every bucket, the earliest first, once `step` batches are done."""
        counts = [len(members) for members in self.members]
        # By this time at most `step` batches were due, as a bucket's number is known to one.
        time = Fraction(max(step - len(counts), 0), sum(counts))
        queue, done = [], 0
        for number, count in enumerate(counts):
            batch = int(time * count)
            if self._time(number, batch) < time:
                batch += 1
            done += batch
            queue.append((self._time(number, batch), number, batch))
        heapq.heapify(queue)
        for _ in range(step - done):
            _, number, batch = queue[0]
            heapq.heapreplace(queue, (self._time(number, batch + 1), number, batch + 1))
        return queue


@lru_cache(maxsize=64)
def _permutation(seed: int, grid: tuple[int, int], epoch: int, length: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(derive_seed(seed, "epoch", *grid, epoch))).permutation(length)
