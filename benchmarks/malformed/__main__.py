"""Damaged files of every kind that is read, thousands of them, given to the commands that read them.

    python -m benchmarks.malformed --count 2000 --seed 0

Good files are made first, by the commands themselves. Each case damages one of them and runs a
command on it in a forked process with bounds on memory and time. A case is sound where the command does its
work or refuses in one line (exit code 2). Faults are tracebacks, more than a line, memory or time out of
proportion, control characters on the terminal, and anything that was executed or written elsewhere.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.forked import CPU_SECONDS, Outcome, command, in_child, warm
from benchmarks.malformed.base import KINDS, Kind, good_commands, make_data
from benchmarks.malformed.formats import hostile_pickles
from benchmarks.malformed.values import Mutation

GROWTH = 2**30
"""Resident bytes; more is a fault."""
GOOD = -1
"""The case whose file is not damaged."""


def fault_of(outcome: Outcome, marker: Path) -> str:
    """In a few words; empty where the case is sound."""
    last = [line for line in outcome.output.splitlines() if line.strip()]
    if marker.exists():
        return "something was executed, or written elsewhere"
    if outcome.code == 99 or "Traceback (most recent call last)" in outcome.output:
        frames = re.findall(r'File ".*?(causalfusion/[^"]+)", line (\d+)', outcome.output)
        where = ":".join(frames[-1]) if frames else "?"
        return f"traceback: {last[-1][:110] if last else '?'} at {where}"
    if outcome.code >= 100:
        return f"ended by signal {outcome.code - 100}"
    if outcome.code not in (0, 1, 2, 3):
        return f"exit code {outcome.code}"
    refusals = [line for line in last if line.startswith("causalfusion: ")]
    if outcome.code == 2 and len(refusals) != 1:
        return f"exit code 2 with {len(refusals)} lines that say why"
    control = re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x9b]", outcome.output)
    if control:
        near = outcome.output[max(control.start() - 60, 0) : control.end() + 20]
        return f"control characters in what is printed: {near!r}"
    if outcome.code == 2 and len(refusals[0]) > 1500:
        return "a line of more than 1,500 characters"
    if outcome.growth > GROWTH:
        return f"memory: {outcome.growth / 2**30:.1f} GiB"
    return f"time: {outcome.cpu_seconds:.0f} s" if outcome.cpu_seconds > CPU_SECONDS else ""


def run_case(kind: Kind, base: Path, root: Path, seed: int, marker: Path) -> tuple[Outcome, str]:
    """One damaged file, and what the command makes of it."""
    rng = random.Random(f"{kind.name} {seed}")
    folder = root / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in kind.copies:
        source = base / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)
    files = sorted(folder.glob(rng.choice(kind.damaged)))
    target = rng.choice([file for file in files if file.is_file()])
    mutation: Mutation = hostile_pickles(str(marker)) if kind.mutation is None else kind.mutation
    if seed != GOOD:
        target.write_bytes(mutation(target.read_bytes(), rng))
    tokens = [t.replace("{base}", str(base)).replace("{file}", str(target)) for t in kind.command.split()]
    outcome = in_child(command(tokens, folder), root / "log", limited=True)
    fault = fault_of(outcome, marker)
    marker.unlink(missing_ok=True)
    return outcome, fault


def cases(kinds: list[Kind], count: int) -> Iterator[tuple[Kind, int]]:
    """`count` cases, the kinds in turn."""
    for number in range(count):
        yield kinds[number % len(kinds)], number // len(kinds)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.malformed")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="kinds, by name")
    parser.add_argument("--case", type=int, help="show this case of --only in full")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="malformed-"))
    base, marker = root / "base", root / "executed"
    os.environ |= {"XDG_CACHE_HOME": str(root / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    _fake_programs(root / "bin", marker)
    warm()
    base.mkdir()
    make_data(base)
    for tokens in good_commands(base):
        outcome = in_child(command(tokens, base), root / "log")
        if outcome.code:
            print(f"causalfusion {' '.join(tokens)}: exit code {outcome.code}\n{outcome.output}")
            return 1
    shutil.copy(next((root / "cache").rglob("references/*.npz")), base / "reference.npz")
    kinds = [kind for kind in KINDS if not arguments.only or kind.name in arguments.only]
    if arguments.case is not None:
        outcome, fault = run_case(kinds[0], base, root, arguments.case, marker)
        print(f"{outcome.output}\n{outcome.code} {outcome.cpu_seconds:.1f} s {outcome.growth:,} B: {fault}")
        print(f"kept: {root}")
        return 0
    for kind in kinds:  # else all of its cases are refused for another reason than their damage
        outcome, fault = run_case(kind, base, root, GOOD, marker)
        if fault or (outcome.code == 2 and not kind.is_refused):
            print(f"{kind.name}, undamaged: exit code {outcome.code} {fault}\n{outcome.output}")
            return 1
    faults = measure(kinds, arguments.count, arguments.seed, base, root, marker)
    shutil.rmtree(root)
    return 1 if faults else 0


def measure(kinds: list[Kind], count: int, seed: int, base: Path, root: Path, marker: Path) -> int:
    """Run the cases and print the tables; the number of faults."""
    tally: dict[str, Counter[str]] = defaultdict(Counter)
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    slowest, largest = 0.0, 0
    for kind, number in cases(kinds, count):
        outcome, fault = run_case(kind, base, root, seed * 100_000 + number, marker)
        result = "fault" if fault else "refused" if outcome.code == 2 else "accepted"
        tally[kind.name][result] += 1
        slowest, largest = max(slowest, outcome.cpu_seconds), max(largest, outcome.growth)
        if fault:
            found[kind.name, fault].append(seed * 100_000 + number)
            print(f"{kind.name} {seed * 100_000 + number}: {fault}", file=sys.stderr, flush=True)
    print("| kind | cases | accepted | refused in one line | faults |\n|---|---|---|---|---|")
    for name, of in tally.items():
        print(f"| {name} | {of.total()} | {of['accepted']} | {of['refused']} | {of['fault']} |")
    total = sum(tally.values(), Counter())
    print(f"| all | {total.total()} | {total['accepted']} | {total['refused']} | {total['fault']} |")
    print(f"\nslowest case {slowest:.1f} s of CPU; largest growth {largest / 2**20:,.0f} MiB")
    for (name, fault), numbers in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"{len(numbers)} x {name}: {fault} (case {numbers[0]})")
    return total["fault"]


def _fake_programs(folder: Path, marker: Path) -> None:
    """Programs that Pillow could start; they tell if it does."""
    folder.mkdir()
    for name in ("gs", "gswin64c", "xdg-open", "display"):
        (folder / name).write_text(f"#!/bin/sh\n: > {marker}\n")
        (folder / name).chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


if __name__ == "__main__":
    sys.exit(main())
