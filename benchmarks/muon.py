"""`python -m benchmarks.muon`: what Muon's iteration costs on this machine, in float32 and in bfloat16, and
its share of a training step of the reference model (384 wide, 12 layers, 8 images of 256 tokens).

`ONEDNN_MAX_CPU_ISA=AVX2 python -m benchmarks.muon` measures a CPU without units for bfloat16.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.reference import REFERENCE, TrainingStep
from causalfusion.model.parts import is_hidden_matrix
from causalfusion.train.muon import orthogonalised

NARROW = (128, 128)
"""The shape of a narrower model."""


def seconds(work: Callable[[], object], repeats: int = 2) -> float:
    """Processor time, the least of several runs, after one that is not counted: of one thread, whatever else
    the machine does."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)


def main() -> None:
    torch.set_num_threads(1)
    step = TrainingStep(REFERENCE, torch.float32, naive=False)
    shapes = [
        (p.shape[0], p.shape[1])
        for name, p in step.model.named_parameters()
        if is_hidden_matrix(name, p) and name.startswith("blocks.0.")
    ]
    found: dict[tuple[tuple[int, int], torch.dtype], float] = {}
    print("| matrix | float32, ms | bfloat16, ms |\n|---|---|---|")
    for shape in [*dict.fromkeys(shapes), NARROW]:
        for dtype in (torch.float32, torch.bfloat16):
            matrix = torch.randn(shape).to(dtype)
            found[shape, dtype] = seconds(lambda matrix=matrix: orthogonalised(matrix))
        low, full = (1e3 * found[shape, dtype] for dtype in (torch.bfloat16, torch.float32))
        print(f"| {shape[0]}x{shape[1]} | {full:.3g} | {low:.3g} |", flush=True)
    in_all = seconds(lambda: step(0))
    print(f"\nA step with AdamW, float32: {in_all:.3g} s. Muon's iterations:")
    for dtype in (torch.float32, torch.bfloat16):
        more = REFERENCE.model.depth * sum(found[shape, dtype] for shape in shapes)
        print(f"{str(dtype)[6:]}: {more:.3g} s, {more / in_all:.0%} of that step", flush=True)


if __name__ == "__main__":
    main()
