"""The share of the optimizer and of the averages in a run's memory, arithmetic and disk space.

Shape letters: O outputs, I inputs of a matrix.
"""

from __future__ import annotations

import math
from functools import lru_cache

from causalfusion.config import ModelConfig, RunConfig, TrainConfig
from causalfusion.machine.skeleton import skeleton
from causalfusion.model.learned import learned_of
from causalfusion.model.parts import is_hidden_matrix
from causalfusion.model.transformer import Transformer

STATE_BYTES = 20
"""Bytes per parameter: float32 weight, gradient, two moments of AdamW and average."""
MOMENT_BYTES = 4
"""Bytes per parameter that Muon, which has one moment, does without."""
TRAFFIC_BYTES = 60
"""Bytes read and written per parameter and step: clipping (16), AdamW (28), EMA (12), zeroing (4)."""
_AVERAGE_BYTES, _AVERAGE_TRAFFIC, _STORED_BYTES = 4, 12, 2
"""The same of another average, and its bytes in a snapshot, float16."""
MUON_ITERATIONS = 5
"""Newton-Schulz iterations of an update by Muon."""


@lru_cache(maxsize=8)
def skeleton_of(config: ModelConfig) -> Transformer:
    with skeleton():
        return Transformer(config)


def bytes_per_parameter(train: TrainConfig) -> int:
    """Memory of the state of a parameter that AdamW trains."""
    return STATE_BYTES + _AVERAGE_BYTES * len(train.ema_widths)


def traffic_per_parameter(train: TrainConfig) -> int:
    """Bytes that a step reads and writes of the state."""
    return TRAFFIC_BYTES + _AVERAGE_TRAFFIC * len(train.ema_widths)


def frozen_of(config: RunConfig) -> int:
    """Number of parameters that the settings do not train."""
    model = skeleton_of(config.model)
    learned = learned_of(model, config)
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name not in learned)


def muon_shapes(config: RunConfig) -> list[tuple[int, int]]:
    """(O, I) of the matrices that Muon trains."""
    if config.train.optimizer != "muon":
        return []
    model = skeleton_of(config.model)
    learned = learned_of(model, config)
    return [
        (parameter.shape[0], parameter.shape[1])
        for name, parameter in model.named_parameters()
        if name in learned and is_hidden_matrix(name, parameter)
    ]


def muon_flops(config: RunConfig) -> float:
    """Arithmetic of a step's Newton-Schulz iterations, each of three matrix products; every process does
    all of it."""
    sides = [(min(shape), max(shape)) for shape in muon_shapes(config)]
    return float(sum(MUON_ITERATIONS * (4 * short**2 * long + 2 * short**3) for short, long in sides))


def snapshots_of(config: RunConfig) -> tuple[int, float]:
    """(number of EMA snapshots of a whole run, bytes of each); the settings that follow from the data must be
    filled in."""
    train = config.train
    if not train.ema_widths:
        return 0, 0.0
    trained = sum(p.numel() for p in skeleton_of(config.model).parameters()) - frozen_of(config)
    number = math.ceil(train.images / train.ema_snapshot_images)
    return number, float(_STORED_BYTES * len(train.ema_widths) * trained)
