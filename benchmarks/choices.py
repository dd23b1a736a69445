"""The choices of `python -m benchmarks`, which its help shows without torch."""

from __future__ import annotations

from typing import Literal

Workload = Literal["train", "sample"]
Precision = Literal["float32", "bfloat16"]
Axis = Literal["size", "tokens", "ar_steps", "batch"]
PARTS = ("reference", "growth", "input")
WORKLOADS: tuple[Workload, ...] = ("train", "sample")
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
AXES: tuple[Axis, ...] = ("size", "tokens", "ar_steps", "batch")
CLOCKS = ("wall", "cpu")
