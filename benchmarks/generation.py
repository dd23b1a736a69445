"""`python -m benchmarks.generation`: what a user of a small model waits for, in seconds of CPU time of one
thread, so that other programs on the machine hardly count.

`command`: the packaged model's `sample`, from the command to the pictures, and torch's import in it. `steps`:
one image of a model of width 384 and depth 12 in many AR steps, with finished tokens in the next step's first
pass and in a pass of their own. `gelu`: the forms of a linear layer with its GELU; to see those of a CPU with
AVX2 on another, set ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.nn import functional as F

from benchmarks.reference import REFERENCE, build_model, separate_passes
from benchmarks.tables import table
from causalfusion.config import DiffusionConfig, SampleConfig
from causalfusion.diffusion.process import make_process
from causalfusion.generate.context import prefill
from causalfusion.generate.noise import ImageNoise
from causalfusion.generate.settings import step_sizes
from causalfusion.generate.tokens import generate_tokens
from causalfusion.machine.runtime import tune_allocator
from causalfusion.model.cpu_feed_forward import gelu_, gelu_form
from causalfusion.model.transformer import Transformer

PARTS = ("command", "steps", "gelu")
SHAPES = (
    (1, 384),
    (2, 384),
    (8, 384),
    (16, 384),
    (64, 128),
    (512, 128),
    (256, 384),
    (4096, 384),
    (2048, 1024),
)
"""(rows, width) of the linear layers with GELU, from the width to four times as many."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--ar-steps", type=int, nargs="+", default=[1, 64, 256])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tune_allocator()
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, load {os.getloadavg()[0]:.1f}"
    )
    for part in arguments.part or PARTS:
        lines = {"command": _command, "gelu": _gelu, "steps": lambda: _steps(arguments.ar_steps)}[part]()
        print("\n" + "\n".join(lines), flush=True)


def _command() -> list[str]:
    with tempfile.TemporaryDirectory() as out:
        line = [
            "-m",
            "causalfusion",
            "sample",
            "--prompt",
            "a small red circle",
            "--images",
            "8",
            "--out",
            out,
        ]
        sample, alone = _process(line), _process(["-c", "import torch"])
    return table(
        ["command", "s"], [["sample, 8 images", sample], ["import torch, which is part of it", alone]]
    )


def _process(line: list[str]) -> float:
    """The least CPU time of three runs of Python."""
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, *line], check=True, capture_output=True, env=_one_thread())
        after = os.times()
        seconds.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    return min(seconds)


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _steps(ar_steps: list[int]) -> list[str]:
    model = build_model(REFERENCE, naive=False).eval().requires_grad_(False)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    rows = []
    for count in ar_steps:
        for name, passes in (("joined", nullcontext), ("separate", separate_passes)):
            with passes():
                calls.clear()
                start = time.process_time()
                _generate(model, SampleConfig(num_ar_steps=count, diffusion_steps=[2], sampler="ddim"))
            rows.append([count, name, len(calls), time.process_time() - start])
    return table(["AR steps", "finished tokens", "calls", "s"], rows)


@torch.no_grad()
def _generate(model: Transformer, config: SampleConfig) -> None:
    sizes, order = step_sizes(config, 256, 0), torch.arange(256)[None]
    context = prefill(model, torch.zeros(1, dtype=torch.int64), config, sizes=sizes)
    noise = ImageNoise(0, [0], 256, 16)
    generate_tokens(model, make_process(DiffusionConfig()), config, context, order, sizes, noise)


@torch.no_grad()
def _gelu() -> list[str]:
    def fused(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, w, b, "gelu", [], "tanh")

    forms = {
        "fused": fused,
        "in place": lambda x, w, b: gelu_(F.linear(x, w, b)),
        "torch": lambda x, w, b: F.gelu(F.linear(x, w, b), approximate="tanh"),
    }
    rows = []
    for count, width in SHAPES:
        tensors = (
            torch.randn(count, width),
            torch.randn(4 * width, width) / width**0.5,
            torch.randn(4 * width),
        )
        repeats = max(1, int(2e9 / (8 * count * width**2)))
        found = [1e3 * min(_seconds(f, tensors, repeats) for _ in range(4)) for f in forms.values()]
        rows.append([f"{count} x {width}", *found, gelu_form(rows=count)])
    return table(["rows x width", *(f"{name}, ms" for name in forms), "taken"], rows)


def _seconds(run: Callable[..., object], arguments: tuple[torch.Tensor, ...], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        run(*arguments)
    return (time.process_time() - start) / repeats


if __name__ == "__main__":
    main()
