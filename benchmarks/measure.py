"""Interleaved measurement: each variant lives in a process of its own, and they take turns.

Processes share the environment, so that a comparison is between programs only; turns make a busy moment of
the machine hit all variants alike. The machine's rates are measured between the turns.
"""

from __future__ import annotations

import multiprocessing as mp
import resource
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch

from benchmarks.choices import Workload
from benchmarks.reference import Reference, Sampling, TrainingStep
from causalfusion.machine.runtime import measure_gemm_rate, tune_allocator
from causalfusion.model.arithmetic import Flops

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VARIANTS = ("naive", "ours")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""`cpu` counts the seconds in which the processor works for us: for one thread on a busy machine."""


@dataclass
class Timing:
    """One variant's seconds of every part (split) in every round."""

    seconds: list[list[float]] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    """Results of the parts in the first round: losses, or images."""
    peak_memory: int = 0
    """Bytes, resident."""

    def median(self) -> float:
        """Mean over the parts of the median over the rounds."""
        return sum(sorted(part)[len(part) // 2] for part in self.seconds) / len(self.seconds)

    def best(self) -> float:
        return sum(min(part) for part in self.seconds) / len(self.seconds)


@dataclass
class Comparison:
    workload: Workload
    precision: str
    flops: Flops
    """FLOP of one step, or one batch of images."""
    gemm_rate: float
    timings: dict[str, Timing]


def compare(
    workload: Workload, precision: str, reference: Reference, rounds: int, threads: int, clock: str
) -> Comparison:
    """All variants of a workload, in turns; one round before the first is not counted."""
    parts = len(reference.splits) if workload == "train" else 1
    context = mp.get_context("spawn")
    workers: dict[str, tuple[Connection, BaseProcess]] = {}
    for variant in VARIANTS:
        ours, theirs = context.Pipe()
        arguments = (theirs, variant, workload, precision, reference, threads, clock)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        theirs.close()
        workers[variant] = (ours, process)
    timings = {variant: Timing([[] for _ in range(parts)]) for variant in VARIANTS}
    rate = 0.0
    for round_index in range(rounds + 1):
        for part in range(parts):
            rate = max(rate, measure_gemm_rate(DTYPES[precision], torch.device("cpu"), clock=CLOCKS[clock]))
            for variant, (connection, _) in workers.items():
                connection.send(part)
                seconds, value = connection.recv()
                if round_index == 0:
                    timings[variant].values.append(value)
                else:
                    timings[variant].seconds[part].append(seconds)
    for variant, (connection, process) in workers.items():
        connection.send(None)
        timings[variant].peak_memory = connection.recv()
        process.join()
    return Comparison(workload, precision, _flops(workload, reference), rate, timings)


def _flops(workload: Workload, reference: Reference) -> Flops:
    if workload == "sample":
        return reference.sample_flops()
    steps = len(reference.splits)
    return sum((reference.train_flops(i) for i in range(steps)), Flops(0, 0)) * (1 / steps)


def _work(
    connection: Connection,
    variant: str,
    workload: Workload,
    precision: str,
    reference: Reference,
    threads: int,
    clock: str,
) -> None:
    """A worker: build once, then run a part for every message, and report its seconds and result."""
    torch.set_num_threads(threads)
    tune_allocator()
    make = TrainingStep if workload == "train" else Sampling
    run = make(reference, DTYPES[precision], variant == "naive")
    while (part := connection.recv()) is not None:
        start = CLOCKS[clock]()
        value = run(part)
        connection.send((CLOCKS[clock]() - start, value))
    connection.send(_peak_memory())


def _peak_memory() -> int:
    """The largest resident memory of this process in bytes. On Linux, `getrusage` would count that of the
    process which started it, too."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)
