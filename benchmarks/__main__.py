"""`python -m benchmarks`: what training and sampling cost on this machine, in one command.

Parts: `reference` (a training step and sampling, ours and the naive path, as shares of the machine's matrix
rate), `growth` (named sizes; tokens, AR steps, images at once) and `input` (latents a second, waiting for
data).
Each part replaces its own section of the results, and each axis of growth its own points, so that they can be
measured one by one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.choices import AXES, CLOCKS, PARTS, PRECISIONS, WORKLOADS


def main() -> None:
    arguments = _arguments()
    from benchmarks.parts import run  # torch, which --help does without

    run(arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small models, about a minute: does it all run?")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="of reference (default: both)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        action="append",
        help="of reference (default: both, where the CPU has units for bfloat16; with --quick float32, as "
        "growth has both)",
    )
    parser.add_argument("--axis", choices=AXES, action="append", help="of growth (default: all)")
    parser.add_argument("--rounds", type=int, default=2, help="of reference (default: 2)")
    parser.add_argument("--threads", type=int, default=0, help="default: those that torch takes")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a busy machine")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 0:
        parser.error("--rounds: expected at least 1; --threads: 0 or more")
    if arguments.clock == "cpu" and arguments.threads != 1:
        parser.error("--clock cpu: expected --threads 1, as waiting threads count as busy")
    return arguments


if __name__ == "__main__":
    main()
