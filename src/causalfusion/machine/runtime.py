"""The machine: device, precision, memory, and speed of arithmetic and copies."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional as F

from causalfusion.errors import UserError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""glibc's numbers for `mallopt` (malloc.h)."""

_WITHOUT_FLOAT64 = frozenset({"mps"})

GEMM_SHAPES = ((2048, 2048, 2048), (4096, 1536, 384), (4096, 384, 1536), (4096, 1152, 384))
"""(rows, columns, inner size) of the products timed on a CPU: a square one, and those of a model of width
384."""


def select_device(name: str = "auto") -> torch.device:
    """The device of a name; `auto` is the GPU if there is one, else the CPU. Raises UserError for a device
    that this machine, or this installation of torch, does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"device is {name!r}; expected auto, cpu, cuda, cuda:0, cuda:1, ..., mps or xpu"
        ) from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device is {name!r}; this machine has {torch.cuda.device_count()} of them: use cpu or auto"
        )
    if device.type != "cuda" and not _computes(device):
        raise UserError(f"device is {name!r}, which this machine does not have; use cpu or auto")
    return device


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has none: Apple's (mps) refuses to hold such a tensor."""
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def _computes(device: torch.device) -> bool:
    """True if a number can be moved to the device and back. Missing devices of different kinds raise
    different errors: a failed assertion or import, a missing backend."""
    try:
        return torch.ones(1, device=device).item() == 1
    except Exception:
        return False


def compute_dtype(precision: str) -> torch.dtype:
    """The dtype that `train.precision`, once `auto` is settled, or `--precision` names."""
    if precision == "auto":
        raise ValueError("precision is auto; expected the one that it stands for on this machine")
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def computes_bfloat16() -> bool:
    """True if oneDNN multiplies in bfloat16 on this CPU, instead of by way of float32."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """The context in which a float32 model computes in `dtype`; for float32 it does nothing."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def tune_allocator() -> bool:
    """Keep freed memory in the process instead of returning it to the system; True if that succeeded.

    By default glibc maps memory for every large activation anew, and the kernel clears its pages in each
    train step, which takes a fifth of the time on a CPU. Does nothing except on Linux with glibc.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)


def available_memory() -> float:
    """Bytes of main memory that this process can still allocate: the free memory, at most the control group's
    limit; infinite if the system does not say."""
    limits = [math.inf]
    with suppress(OSError, ValueError, AttributeError):
        limits.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    with suppress(OSError, ValueError):  # not Linux, or "max"
        limits.append(float(Path("/sys/fs/cgroup/memory.max").read_text()))
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return min(limits)


def measure_gemm_rate(
    dtype: torch.dtype,
    device: torch.device,
    repeats: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Peak rate of large matrix products, in FLOP/s: the fastest of several shapes and repeats."""
    best = 0.0
    for rows, columns, inner in GEMM_SHAPES if device.type == "cpu" else ((8192, 8192, 8192),):
        a, b = (torch.randn(n, inner, device=device).to(dtype) for n in (rows, columns))
        for _ in range(repeats + 1):
            _synchronize(device)
            start = clock()
            F.linear(a, b)
            _synchronize(device)
            best = max(best, 2 * rows * columns * inner / (clock() - start))
    return best


@cache
def peak_rate(dtype: torch.dtype, device: torch.device) -> float:
    """`measure_gemm_rate`, which takes a second or two, once in a process."""
    return measure_gemm_rate(dtype, device)


def measure_copy_rate(device: torch.device, repeats: int = 5) -> float:
    """Memory bandwidth in bytes/s: reads and writes of a copy of 256 MiB, the fastest of several repeats."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(repeats + 1):
        _synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        _synchronize(device)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - start))
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
