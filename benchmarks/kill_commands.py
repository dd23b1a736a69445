"""Commands that write files, killed at random moments and given again: is the result that of one that was
left alone, with nothing beside it?

    python -m benchmarks.kill_commands --trials 20 --seed 0

`train` has a program of its own. Figures that are times, and what is made of them, are not compared.
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
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.forked import command, in_child, warm
from benchmarks.malformed.base import CODEC, TINY

IMAGES, SIDE = 240, 16
CAPTIONS = 20_000
REFERENCE = "--reference {base}/photos --features pixels:4 --device cpu --out out"
DRAW = "--model {base}/model --images 60 --batch-size 4 --diffusion-steps 10"
COMMANDS = {
    "encode": f"encode {CODEC} --data.source folder --data.path {{base}}/photos --batch-size 4 --out out",
    "sample": f"sample {DRAW} --device cpu --out out --output png grid npz",
    "evaluate": f"evaluate {DRAW} {REFERENCE} --cache cache",
    "plan": f"plan {{base}}/model --budget 100s {REFERENCE} --images 16 --samplers ddim "
    "--diffusion-steps 4 8 --ar-steps 1 2 --guidance-scales 1",
    "probe": "probe {base}/model --data.source folder --data.path {base}/photos --levels clean 0.3 "
    "--kind linear knn --data.holdout 0.2 --batch-size 4 --device cpu --out out",
    "ema": "ema {base}/model --width 0.07 --out out",
    "tokenizer": "tokenizer train --data.source jsonl --data.path {base}/captions.jsonl --vocab-size 2000 "
    "--out tokenizer.json",
}
TIMES = {
    "run",
    "seconds",
    "seconds_per_image",
    "images_per_second",
    "generation_seconds",
    "machine",
    "best",
    "frontier",
    "spread",
    "file",
}
"""Keys whose values depend on the moment or the place."""
PICTURES_OF_TIMES = {"plan.png", "plan.md"}


def make_base(base: Path) -> None:
    """Photos in two classes, captions, and a small model trained on the photos."""
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        folder = base / "photos" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    words = [f"word{number}" for number in range(3000)]
    with (base / "captions.jsonl").open("w") as lines:
        for index in range(CAPTIONS):
            caption = " ".join(rng.choice(words, 12))
            image = f"photos/{'ab'[index % 2]}/{index % IMAGES - index % 2 + index % 2}.png"
            lines.write(json.dumps({"image": image, "caption": caption}) + "\n")


TRAIN = (
    f"train {TINY} --data.source folder --data.path photos --train.images 64 --train.ema-widths 0.05 0.1 "
    "--train.ema-snapshot-images 8 --out model"
)


def content(folder: Path) -> dict[str, Any]:
    """The content of every file by its name; of JSON, what does not depend on the time or the place."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name == ".lock" or path.name in PICTURES_OF_TIMES:
            continue
        if path.suffix == ".json" and path.name != "tokenizer.json":
            found[name] = _lasting(json.loads(path.read_text()), str(folder))
        elif path.suffix == ".npz":  # the archive holds the time
            with np.load(path, allow_pickle=False) as arrays:
                found[name] = {key: arrays[key].tobytes() for key in arrays.files if key not in TIMES}
        else:
            found[name] = path.read_bytes()
    return found


def _lasting(value: Any, folder: str) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(item, folder) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [_lasting(item, folder) for item in value]
    return value.replace(folder, "") if isinstance(value, str) else value


def trials(name: str, tokens: list[str], root: Path, count: int, rng: random.Random) -> list[str]:
    """The faults, one line each."""
    log, alone = root / "log", root / f"{name}-alone"
    alone.mkdir()
    begin = time.monotonic()
    outcome = in_child(command(tokens, alone), log)
    seconds = time.monotonic() - begin
    if outcome.code:
        return [f"{name}: exit code {outcome.code}: {outcome.output[-500:]}"]
    expected, wrong, killed = content(alone), [], 0
    for trial in range(count):
        folder = root / f"{name}-{trial}"
        folder.mkdir()
        for _ in range(rng.choice((1, 1, 2, 3))):
            killed += in_child(command(tokens, folder), log, kill_after=rng.uniform(0, seconds)).code == 109
        outcome = in_child(command(tokens, folder), log)
        found = content(folder)
        differ = [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]
        if outcome.code or differ:
            last = outcome.output.strip().splitlines()[-1:]
            wrong.append(
                f"{name} {trial}: exit code {outcome.code}, {last}; other than alone: {sorted(differ)[:5]}"
            )
        shutil.rmtree(folder)
    print(f"| {name} | {seconds:.1f} s | {count} | {killed} | {len(wrong)} |", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.kill_commands")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(COMMANDS))
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="killed-"))
    os.environ |= {"XDG_CACHE_HOME": str(root / "cache"), "OMP_NUM_THREADS": "1"}
    warm()
    base = root / "base"
    base.mkdir()
    make_base(base)
    outcome = in_child(command(TRAIN.split(), base), root / "log")
    if outcome.code:
        print(outcome.output)
        return 1
    rng, wrong = random.Random(arguments.seed), []
    print("| command | alone | trials | kills | wrong |\n|---|---|---|---|---|")
    for name in arguments.only:
        wrong += trials(
            name, COMMANDS[name].replace("{base}", str(base)).split(), root, arguments.trials, rng
        )
    print("\n".join(wrong))
    shutil.rmtree(root)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
