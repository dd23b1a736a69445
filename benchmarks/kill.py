"""A training run, killed at random moments and started again: is it, to the bit, the run that was left alone?

    python -m benchmarks.kill --kills 30
    python -m benchmarks.kill --kills 20 --async
    python -m benchmarks.kill --kills 20 --with='--train.optimizer muon --train.ema-widths 0.05 0.1
        --train.ema-snapshot-images 96'

SIGKILL comes at any moment: during start-up, train steps, evaluations, grids, saves (every third step) and
the removal of old checkpoints. After each, every checkpoint that has its name must be whole. At the end
weights, average, optimizer state and log are compared, and so are the names of all files; no process may stay
behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.forked import Outcome, command, in_child, warm
from causalfusion.errors import UserError
from causalfusion.saved.folder import checkpoints_of, load_model, load_weights
from causalfusion.train.checkpoint import read_progress
from causalfusion.train.log import read_log

TRAIN = (
    "train --config digits --device cpu --codec.patch-size 2 --model.hidden-size 32 --model.depth 2 "
    "--model.num-heads 2 --train.images 960 --train.batch-size 16 --train.log-every 1 --train.lr 1e-3 "
    "--train.checkpoint-every 3 --train.keep-checkpoints 2 --train.evaluate-every 7 "
    "--train.evaluate-images 16 --train.sample-every 20 --sample.diffusion-steps 2 --out run"
)
TENSORS = ("model.safetensors", "raw.safetensors", "state/optimizer.safetensors")
TIMES = {"images_per_second", "flops_share", "waiting_share"}
WORKERS_LEAVE = 20.0
"""Seconds in which the data workers of a killed process have to end."""
KILLED = 109


def result(run: Path) -> dict[str, object]:
    """All that is exact of a finished run: tensors, log, progress, and the names of its files."""
    last = checkpoints_of(run)[-1]
    progress = {k: v for k, v in vars(read_progress(last)).items() if k != "seconds"}
    names = (str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    return {
        **{name: (last / name).read_bytes() for name in TENSORS},
        "log": [{k: v for k, v in r.items() if k not in TIMES} for r in read_log(run / "log.jsonl")],
        "progress": progress,
        "files": sorted(name for name in names if not name.startswith("tensorboard/")),
    }


def problems_of(run: Path) -> list[str]:
    """Checkpoints of a killed run that have their name and are not whole."""
    found = []
    for folder in checkpoints_of(run):
        try:
            load_model(folder)
            load_weights(folder, "raw")
            read_progress(folder)
            (folder / TENSORS[2]).stat()
        except (UserError, OSError) as error:
            found.append(f"after a kill, {folder.name} is not whole: {error}")
    return found


def moment_of(run: Path) -> str:
    """The work of the process when it was killed, as far as its files tell."""
    folder = run / "checkpoints"
    leftovers = [path.name for path in folder.glob(".partial-*")] if folder.is_dir() else []
    if any(name.startswith(".partial-old-") for name in leftovers):
        return "while a checkpoint was removed"
    if leftovers:
        return "while a checkpoint was written"
    return "at another moment" if (run / "log.jsonl").exists() else "before the first record"


def attempt(tokens: list[str], folder: Path, kill_after: float | None) -> tuple[Outcome, int]:
    """The command in a process of its own, and that process's number."""

    def work() -> int:
        (folder / "process").write_text(str(os.getpid()))
        return command(tokens, folder)()

    outcome = in_child(work, folder / "output", kill_after=kill_after)
    return outcome, int((folder / "process").read_text() or 0) if (folder / "process").is_file() else 0


def all_gone(group: int) -> bool:
    """True if the process group is empty, or becomes so in time."""
    end = time.monotonic() + WORKERS_LEAVE
    while group and time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return not group


def killed_run(
    tokens: list[str], folder: Path, seconds: float, kills: int, rng: random.Random, moments: Counter[str]
) -> list[str]:
    """Kill a run up to so many times, then let it end. Returns what was wrong."""
    wrong = []
    for _ in range(kills):
        outcome, group = attempt(tokens, folder, rng.uniform(0, seconds))
        if outcome.code != KILLED:
            if outcome.code:
                wrong.append(f"exit code {outcome.code}: {outcome.output.strip().splitlines()[-1:]}")
            break
        moments[moment_of(folder / "run")] += 1
        wrong += problems_of(folder / "run")
        if not all_gone(group):
            wrong.append(f"processes of the group {group} stayed")
    outcome, _ = attempt(tokens, folder, None)
    if outcome.code:
        wrong.append(f"exit code {outcome.code}: {outcome.output.strip().splitlines()[-1:]}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.kill")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--async", dest="background", action="store_true", help="train.async_checkpoint")
    parser.add_argument("--workers", type=int, default=0, help="data.num_workers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--with", dest="options", default="", help="further options of the training")
    arguments = parser.parse_args()
    tokens = [*TRAIN.split(), *["--train.async-checkpoint"] * arguments.background]
    tokens += arguments.options.split()
    tokens.append(f"--data.num-workers={arguments.workers}")
    root = Path(tempfile.mkdtemp(prefix="killed-"))
    os.environ["OMP_NUM_THREADS"] = "1"
    warm()
    from causalfusion.train import reports

    reports.peak_rate = lambda *_: 1e9  # a measurement of some seconds, and no part of the training
    alone = root / "alone"
    alone.mkdir()
    begin = time.monotonic()
    outcome, _ = attempt(tokens, alone, None)
    seconds = time.monotonic() - begin
    if outcome.code:
        print(outcome.output)
        return 1
    expected, rng, runs = result(alone / "run"), random.Random(arguments.seed), 0
    wrong: list[str] = []
    moments: Counter[str] = Counter()
    while moments.total() < arguments.kills:
        folder = root / str(runs)
        folder.mkdir()
        left = min(arguments.kills - moments.total(), rng.randint(2, 6))
        wrong += killed_run(tokens, folder, 0.8 * seconds, left, rng, moments)
        found = result(folder / "run")
        wrong += [f"run {runs}: {name} differs" for name, value in expected.items() if value != found[name]]
        runs += 1
        shutil.rmtree(folder)
    print(json.dumps({"seconds_alone": round(seconds, 1), "runs": runs, "kills": moments.total(), **moments}))
    print("\n".join(wrong) or "all runs are, to the bit, the one that was left alone; nothing is left over")
    shutil.rmtree(root)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
