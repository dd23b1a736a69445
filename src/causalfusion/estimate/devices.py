"""The speed and memory of devices: of GPUs by their data sheets, of this machine by measurement."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from causalfusion.errors import UserError
from causalfusion.machine.runtime import (
    available_memory,
    compute_dtype,
    computes_bfloat16,
    measure_copy_rate,
    measure_gemm_rate,
)

GPU_SHARE = 0.4
"""Fraction of a GPU's peak FLOP/s that training is assumed to reach. Not measured: good transformer trainers
reach 0.35 to 0.5."""
CPU_SHARE = {"float32": 0.65, "bfloat16": 0.45}
"""Fraction of the measured matrix rate that training is assumed to reach on a CPU, counting needed arithmetic
only, at widths of 256 and more (docs/performance.md)."""
USABLE = 0.92
"""Fraction of a device's memory that can be used; the rest is for the driver and fragmentation."""


@dataclass(frozen=True)
class Device:
    name: str
    rate: float
    """FLOP/s of matrix products in the run's precision."""
    memory: float
    """Bytes; of this machine's main memory, the free ones."""
    bandwidth: float
    """Bytes/s of memory reads and writes."""
    share: float
    """Fraction of `rate` that training is assumed to reach."""
    is_gpu: bool
    measured: bool
    """True if `rate` was measured, False if it is from a data sheet."""


@dataclass(frozen=True)
class _Sheet:
    bfloat16: float
    """TFLOP/s on tensor cores, dense, accumulated in float32."""
    float32: float
    """TFLOP/s without tensor cores, as torch computes float32 by default."""
    memory: float
    """Memory in GB."""
    bandwidth: float
    """Memory bandwidth in GB/s."""


SHEETS = {
    "a100": _Sheet(312, 19.5, 80, 2039),
    "h100": _Sheet(989, 67, 80, 3350),
    "h200": _Sheet(989, 67, 141, 4800),
    "b200": _Sheet(2250, 75, 180, 7700),
    "l40s": _Sheet(362, 91.6, 48, 864),
    "rtx4090": _Sheet(165, 82.6, 24, 1008),
}
"""NVIDIA's public data sheets, without sparsity; A100, H100, H200 and B200 as SXM modules."""


def named_device(name: str, precision: str, share: float | None = None) -> Device:
    """A GPU of the table SHEETS. Raises UserError for any other name."""
    sheet = SHEETS.get(name.lower())
    if sheet is None:
        raise UserError(f"gpu is {name!r}; expected one of {', '.join(SHEETS)}, or none for this machine")
    rate = 1e12 * (sheet.float32 if precision == "float32" else sheet.bfloat16)
    memory, bandwidth = sheet.memory * 1e9, sheet.bandwidth * 1e9
    return Device(name.lower(), rate, memory, bandwidth, share or GPU_SHARE, is_gpu=True, measured=False)


def this_device(
    device: torch.device, precision: str, share: float | None = None, rate: float | None = None
) -> Device:
    """This machine, measured in less than a second; `rate` is its matrix rate, if that is known already."""
    on_gpu = device.type == "cuda"
    threads = torch.get_num_threads()
    name = f"this CPU ({threads} thread{'s' * (threads > 1)})"
    if on_gpu:
        name = torch.cuda.get_device_properties(device).name
    return Device(
        name,
        measure_gemm_rate(compute_dtype(precision), device, repeats=1) if rate is None else rate,
        _memory_of(device),
        measure_copy_rate(device, repeats=1),
        share or (GPU_SHARE if on_gpu else CPU_SHARE[precision]),
        is_gpu=on_gpu,
        measured=True,
    )


def unmeasured_device(device: torch.device) -> Device:
    """This machine with only its memory known, divided among the processes that torchrun started on it;
    enough to tell what fits."""
    on_gpu = device.type == "cuda"
    memory = _memory_of(device)
    if not on_gpu:
        memory /= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Device(str(device), 1.0, memory, 1.0, 1.0, is_gpu=on_gpu, measured=True)


def _memory_of(device: torch.device) -> float:
    """Bytes of a GPU's memory, or of free main memory."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return available_memory()


def faster_in_bfloat16(device: torch.device) -> bool:
    """True if matrix products are clearly faster in bfloat16 than in float32: on a GPU that does not only
    emulate it; measured, in under a second, on a CPU that has units for it, as CPUs differ."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not computes_bfloat16():
        return False
    low, full = (measure_gemm_rate(dtype, device, repeats=1) for dtype in (torch.bfloat16, torch.float32))
    return low > 1.3 * full
