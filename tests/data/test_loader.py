"""The sample stream: the same batches for any workers, processes and resume; every epoch a permutation."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causalfusion.config import DataConfig
from causalfusion.config.sizes import Fit
from causalfusion.data.loader import Batch, Loader, load_indices, split_holdout, stream
from causalfusion.data.reader import Reader
from causalfusion.data.source import Example, UnreadableImage
from causalfusion.errors import UserError


class Ramp:
    """Image i is a 2x3 ramp that begins at i, of class i % 3; some cannot be read."""

    name, has_captions = "ramp", True

    def __init__(self, length: int, bad: tuple[int, ...] = ()) -> None:
        self.length, self.bad = length, bad
        self.class_names = ["a", "b", "c"]

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> Example:
        if index in self.bad:
            raise UnreadableImage(f"ramp-{index}", "torn")
        pixels = (index + np.arange(6, dtype=np.uint8)).astype(np.uint8).reshape(2, 3, 1)
        return Example(pixels, index % 3, (f"from {index}", f"second of {index}", f"third of {index}"))

    def fingerprint(self) -> str:
        return str(self.length)


def batches(count: int, source: Ramp, *, at: int = 0, workers: int = 0, **arguments) -> list[Batch]:
    settings = {"seed": 5, "batch_size": 12, "flip": True, **arguments}
    loader = Loader(source, DataConfig(num_workers=workers), **settings)
    stream = loader.iterate(at)
    taken = list(itertools.islice(stream, count))
    stream.close()
    return taken


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for name in ("images", "labels", "sample_indices", "image_indices"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert (a.captions, a.all_captions) == (b.captions, b.all_captions)


def test_workers_change_nothing_even_where_images_are_damaged():
    source = Ramp(230, bad=(3, 100))
    with pytest.warns(UserWarning, match="cannot be read"):
        alone = batches(40, source)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert_same(alone, batches(40, source, workers=2))


@pytest.mark.parametrize("world_size", [2, 3])
def test_shares_of_the_processes_laid_together_are_the_batch_of_one(world_size):
    source = Ramp(50)
    whole = batches(9, source)
    shares = [batches(9, source, rank=rank, world_size=world_size) for rank in range(world_size)]
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        for name in ("images", "labels", "sample_indices", "image_indices"):
            assert torch.equal(getattr(batch, name), torch.cat([getattr(part, name) for part in parts])), name
        assert batch.captions == [caption for part in parts for caption in part.captions]


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_in_mid_epoch_the_next_batches_are_the_same(workers):
    whole = batches(12, Ramp(50))
    assert_same(whole[5:], batches(7, Ramp(50), at=5 * 12, workers=workers))
    # Not even the size of the batch changes which image is sample n.
    seen = torch.cat([batch.image_indices for batch in whole])
    other = torch.cat([batch.image_indices for batch in batches(4, Ramp(50), at=7, batch_size=16)])
    assert torch.equal(other, seen[7 : 7 + 64])


def test_each_epoch_is_another_permutation_of_the_training_subset():
    train, held_out = split_holdout(80, 0.1)
    taken = batches(18, Ramp(80), indices=train)
    seen = torch.cat([batch.image_indices for batch in taken]).numpy()
    epochs = seen.reshape(3, 72)
    assert len(held_out) == 8 and not np.intersect1d(train, held_out).size
    assert all(np.array_equal(np.sort(epoch), train) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[0], train)
    other = torch.cat([batch.image_indices for batch in batches(6, Ramp(80), indices=train, seed=6)]).numpy()
    assert not np.array_equal(other, epochs[0])


def test_batch_holds_what_was_read():
    for batch in batches(5, Ramp(50), flip=False):
        first = batch.image_indices.tolist()
        assert batch.images.shape == (12, 1, 2, 3) and batch.images.is_contiguous()
        pixels = torch.tensor(first)[:, None] + torch.arange(6)
        assert torch.equal(batch.images.flatten(1), pixels / 127.5 - 1)
        assert batch.labels.tolist() == [index % 3 for index in first]
        every = [(f"from {index}", f"second of {index}", f"third of {index}") for index in first]
        assert batch.all_captions == every
        assert all(drawn in three for drawn, three in zip(batch.captions, every, strict=True))


def test_flipped_images_are_mirrored_and_about_half():
    plain, flipped = batches(50, Ramp(100), flip=False), batches(50, Ramp(100))
    mirrored = []
    for one, other in zip(plain, flipped, strict=True):
        for a, b in zip(one.images, other.images, strict=True):
            assert torch.equal(b, a) or torch.equal(b, a.flip(-1))
            mirrored.append(not torch.equal(a, b))
    assert 0.43 < np.mean(mirrored) < 0.57  # 600 coins
    assert mirrored != mirrored[100:] + mirrored[:100]


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(0, 200), st.integers(1, 90), st.booleans())
def test_stream_is_the_same_wherever_it_is_cut(length, start, count, flip):
    indices = np.arange(length) * 3
    whole = stream(np.arange(start + count), indices, seed=1, flip=flip)
    part = stream(np.arange(start, start + count), indices, seed=1, flip=flip)
    for all_of_it, cut in zip(whole, part, strict=True):
        assert np.array_equal(all_of_it[start:], cut)
    assert flip or not whole.mirrored.any()
    assert np.array_equal(whole.epochs, np.arange(start + count) // length)


def test_holdout_is_the_same_for_every_run_and_never_all_or_nothing():
    assert all(
        np.array_equal(a, b) for a, b in zip(split_holdout(99, 0.2), split_holdout(99, 0.2), strict=True)
    )
    for count, share, expected in [(2, 0.01, 1), (2, 0.99, 1), (100, 0.05, 5), (1000, 0.0, 0)]:
        train, held_out = split_holdout(count, share)
        assert len(held_out) == expected
        assert np.array_equal(np.sort(np.concatenate([train, held_out])), np.arange(count))
    with pytest.raises(UserError, match=r"data\.holdout is 0\.1 with 1 image"):
        split_holdout(1, 0.1)


def test_workers_end_when_nobody_reads_any_more():
    loader = Loader(Ramp(50), DataConfig(num_workers=2), seed=0, batch_size=10)
    batches = loader.iterate(0)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    limit = time.monotonic() + 5
    while multiprocessing.active_children() and time.monotonic() < limit:
        time.sleep(0.02)
    assert not multiprocessing.active_children()


def test_workers_outlive_an_interrupt_of_the_terminal():
    """Ctrl-C reaches every process; the main one decides, and still gets the batches of its last step."""
    stream = Loader(Ramp(50), DataConfig(num_workers=2), seed=5, batch_size=12, flip=True).iterate(0)
    taken = [next(stream), next(stream)]  # one of each: both have started
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
    taken += itertools.islice(stream, 18)  # more than the workers had read ahead
    stream.close()
    assert_same(taken, batches(20, Ramp(50)))


def test_reading_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(2, Ramp(50))
    batches(2, Ramp(50), workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_load_indices_reads_exactly_these_and_replaces_the_damaged():
    source = Ramp(50, bad=(7,))
    with pytest.warns(UserWarning, match="skipped an image that cannot be read: ramp-7: torn"):
        batch = load_indices(source, np.array([4, 7, 4]), DataConfig())
    read = batch.image_indices.tolist()
    assert read[0] == read[2] == 4 and read[1] != 7
    assert batch.labels[1] == read[1] % 3 and batch.captions[1] == f"from {read[1]}"
    assert batch.sample_indices.tolist() == [4, 7, 4]


def test_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(UserError, match="a batch of 12 cannot be shared by 5 processes"):
        Loader(Ramp(50), DataConfig(), seed=0, batch_size=12, world_size=5)


class CountedRamp(Ramp):
    reads = 0

    def read(self, index: int) -> Example:
        CountedRamp.reads += 1
        return super().read(index)


def test_small_sets_are_decoded_once():
    reader = Reader(CountedRamp(10), Fit(4, 4), np.arange(10))
    samples = stream(np.arange(10), np.arange(10), seed=0, flip=False)
    first, second = reader.read(samples), reader.read(samples)
    assert CountedRamp.reads == 10
    assert np.array_equal(first.pixels, second.pixels) and first.pixels.shape[1:3] == (4, 4)
    there = pickle.loads(pickle.dumps(reader))
    assert np.array_equal(there.read(samples).pixels, first.pixels)
    assert CountedRamp.reads == 20, "another process reads for itself"
