"""How fast data come: latents from a cache, and the share of a training step that waits for its data."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from causalfusion.codec.cache import LatentCache
from causalfusion.codec.codec import open_codec
from causalfusion.codec.encode import write_cache
from causalfusion.config import (
    CodecConfig,
    DataConfig,
    FactorizationConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from causalfusion.data import open_source
from causalfusion.data.loader import stream
from causalfusion.machine.processes import World
from causalfusion.train.clock import Clock
from causalfusion.train.feed import open_training_data
from causalfusion.train.trainer import Trainer

CPU = World(0, 1, torch.device("cpu"))
SIDE = 32
"""Side of grey images, kept in float16: 2 KB each, as 16 channels of 8x8 latents."""
BATCH = 256


def measure_input(quick: bool, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    count = 4_096 if quick else 65_536
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder), count)
        begin = clock()
        source = open_source(config.data)
        cache = write_cache(
            Path(folder, "cache"), source, open_codec(config.codec, image_shape=(1, SIDE, SIDE)), config,
            dtype="float16", batch_size=BATCH,
        )  # fmt: skip
        written = clock() - begin
        config = replace(config, data=replace(config.data, cache=str(cache.folder)))
        seconds = 0.3 if quick else 3.0
        return {
            "latents": count,
            "bytes_each": cache.manifest["files"]["00000.npy"] // min(count, cache.shard_size),
            "written_per_second": count / written,
            "read_per_second": _reading(cache, seconds, clock),
            "latents_per_second": _batches(config, seconds, clock),
            "waiting": [_waiting(c, name, 2 if quick else 12) for name, c in _runs(config, quick)],
        }


def _config(folder: Path, count: int) -> RunConfig:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)
    labels = generator.integers(0, 10, count)
    np.savez(folder / "images.npz", images=images, labels=labels)
    return RunConfig(
        data=DataConfig(source="npz", path=str(folder / "images.npz"), holdout=0.01),
        codec=CodecConfig(patch_size=4),
        model=ModelConfig(hidden_size=128, depth=4, num_heads=2, num_class_tokens=4),
        train=TrainConfig(batch_size=BATCH),
    )


def _reading(cache: LatentCache, seconds: float, clock: Callable[[], float]) -> float:
    """Latents a second: random ones of the whole cache, in the order of a run, from the page cache."""
    indices, places, done = np.arange(len(cache)), np.arange(BATCH), 0
    stream(places, indices, seed=0, flip=False)  # the epoch's permutation
    begin = clock()
    while clock() - begin < seconds:
        found = stream((places + done) % len(cache), indices, seed=0, flip=False)
        cache.read(found.indices, None, None)
        done += BATCH
    return done / (clock() - begin)


def _batches(config: RunConfig, seconds: float, clock: Callable[[], float]) -> float:
    """Latents a second as training gets them: normalised tokens with labels."""
    data, done = open_training_data(config, CPU), 0
    with closing(data.batches(0)) as feed:  # pyright: ignore[reportArgumentType]
        next(feed)
        begin = clock()
        while clock() - begin < seconds:
            done += len(next(feed).labels)
        return done / (clock() - begin)


def _runs(cached: RunConfig, quick: bool) -> list[tuple[str, RunConfig]]:
    """Small models, which are the hungriest: latents from the cache, images from the file, drawn scenes."""
    train, plan = replace(cached.train, batch_size=32), FactorizationConfig()
    cached = replace(cached, train=train, factorization=plan)
    images = replace(cached, data=replace(cached.data, cache=""))
    shapes = replace(
        cached, data=DataConfig(source="shapes"), codec=CodecConfig(patch_size=4),
        model=replace(cached.model, num_class_tokens=0),
    )  # fmt: skip
    runs = [("cached latents", cached), ("images of an .npz", images)]
    for workers in (0,) if quick else (0, 1, 2):
        name = f"scenes drawn on the way, {workers} workers"
        runs.append((name, replace(shapes, data=replace(shapes.data, num_workers=workers))))
    return runs


def _waiting(config: RunConfig, name: str, steps: int) -> dict[str, Any]:
    """The share of real train steps that waits for data, as the log has it; the first is left out."""
    data = open_training_data(config, CPU)
    trainer, clock = Trainer(data.config, CPU), Clock()
    with closing(clock.timed(data.batches(0))) as feed:
        for step in range(steps + 1):
            trainer.step(next(feed))
            if step == 0:
                clock.read()
            else:
                clock.add(config.train.batch_size, 0.0)
        images, _, waiting = clock.read()
    return {"data": name, "images_per_second": images, "waiting_share": waiting}
