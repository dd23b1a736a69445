"""`python -m benchmarks.attention`: torch's own attention against blocks of rows on a CPU, by shape.

For each shape, forward and backward passes through six layers, the mask's preparation included; the backends
take turns, and the fastest of several turns counts. The share of all pairs that the row blocks compute stands
beside it: what `model/attention.py` decides by.

Shape letters: B images, T tokens, N heads, H head size, S AR steps.
"""

from __future__ import annotations

import time

import torch

from causalfusion.factorization import Plan, ar_step_of
from causalfusion.model.attention import DenseAttend
from causalfusion.model.cpu_attention import SegmentAttend
from causalfusion.sequence import PackedSequence, pack_training

SHAPES = (
    ([4] * 4, 64, 4, 4, 16),
    ([64], 32, 4, 6, 32),
    ([16] * 4, 32, 4, 6, 32),
    ([8, 20, 36], 32, 16, 6, 32),
    ([256], 8, 64, 6, 64),
    ([64] * 4, 8, 64, 6, 64),
    ([256, 300, 212], 2, 64, 6, 64),
)
"""(sizes of the AR steps, B, class tokens, N, H)."""
LAYERS, TURNS = 6, 5


def sequence_of(sizes: list[int], batch_size: int, class_tokens: int) -> PackedSequence:
    total = sum(sizes)
    plan = Plan(torch.arange(total).expand(batch_size, -1), ar_step_of(sizes)[None], total)
    labels = torch.zeros(batch_size, dtype=torch.int64)
    tokens = torch.zeros(batch_size, total, 4)
    return pack_training(labels, class_tokens, tokens, tokens, plan, labels[:, None])


def seconds(
    attend: type[DenseAttend] | type[SegmentAttend], sequence: PackedSequence, inputs: list[torch.Tensor]
) -> float:
    start = time.process_time()
    prepared = attend(sequence)
    for layer in range(LAYERS):
        prepared(layer, *inputs).sum().backward()
    return time.process_time() - start


def main() -> None:
    print("| | T | S | pairs in blocks | dense / blocks, time |\n|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        for sizes, batch_size, class_tokens, heads, head_dim in SHAPES:
            sequence = sequence_of(sizes, batch_size, class_tokens)
            shape = (batch_size, heads, sequence.num_tokens, head_dim)
            inputs = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(3)]
            turns = [
                (seconds(DenseAttend, sequence, inputs), seconds(SegmentAttend, sequence, inputs))
                for _ in range(TURNS)
            ]
            dense, blocks = (min(times) for times in zip(*turns, strict=True))
            print(
                f"| {str(dtype).removeprefix('torch.')} | {sequence.num_tokens} | {len(sizes)} "
                f"| {SegmentAttend(sequence).share:.0%} | {dense / blocks:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
