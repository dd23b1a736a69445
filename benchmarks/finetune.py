"""`python -m benchmarks.finetune`: what fine-tuning teaches the packaged model, and what it forgets.

The model learns a shape that it never saw, hearts in six colours, from a few captioned scenes, in each of
these ways: all weights, low-rank additions, or a word alone; with and without images of its own among them.
Measured before and after, in percent of images that show what their prompt says: hearts in colours that were
shown, hearts in the two others, old prompts of one and of two objects; and captions of old scenes that are
true. Time is that of the processor. Writes finetune.json, finetune.md and finetune.png. Resumes: what is
there is not done again.

    python -m benchmarks.finetune --out runs/finetune-benchmark
    python -m benchmarks.finetune --ways lora --seeds 0 --count 50 -- --train.lr 1e-3
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hearts import HEART, NOT_SHOWN, SHOWN, check_judge, is_right, prompts, write_scenes
from causalfusion.cli import run as command
from causalfusion.config import WriteConfig
from causalfusion.data.shapes import Shapes
from causalfusion.evaluate.text_image import measure_caption_truth, measure_text_to_image
from causalfusion.files import write_whole
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.progress import tell
from causalfusion.saved.folder import latest_model
from causalfusion.saved.sampling import read_sampling

MODEL, WORD = "shapes", "<heart>"
PRIOR = ["--prior-preservation", "0.5"]
WAYS: dict[str, list[str]] = {
    "all weights": ["--adapter", "none"],
    "all weights, own images": ["--adapter", "none", *PRIOR],
    "LoRA": ["--adapter", "lora"],
    "LoRA, own images": ["--adapter", "lora", *PRIOR],
    "a word": ["--adapter", "text-inversion", "--word", WORD, "--like", "diamond"],
}
COLUMNS = ("hearts", "hearts, other colours", "one object", "two objects", "captions of one object")
IN_PICTURE = 6


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetune", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--scenes", type=int, default=80, help="captioned scenes to learn from")
    parser.add_argument("--images", type=int, default=0, help="training images; 0: the command's own number")
    parser.add_argument("--count", type=int, default=100, help="images, and captions, of each figure")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune-benchmark"))
    given, options = parser.parse_known_args()
    options = [option for option in options if option != "--"]
    tell(f"the judge reads {check_judge():.1%} of real scenes as they are")
    rows = {"before": [measured(Path(MODEL), given.count, given.out / f"before-{given.count}.json", HEART)]}
    for way in given.ways:
        rows[way] = [one_run(way, seed, given, options) for seed in given.seeds]
    write_whole(given.out / "finetune.json", json.dumps(rows, indent=1) + "\n")
    text = table(rows)
    write_whole(given.out / "finetune.md", text)
    print(text)
    picture({way: found[0] for way, found in rows.items()}, given.out / "finetune.png")


def one_run(way: str, seed: int, given: argparse.Namespace, options: Sequence[str]) -> dict[str, Any]:
    """Fine-tune, unless that is done, and measure. Raises SystemExit where the command fails."""
    out = given.out / f"{way.replace(', ', '-').replace(' ', '-')}-{seed}"
    word = WORD if "--word" in WAYS[way] else HEART
    data = given.out / f"scenes-{seed}-{word.strip('<>')}-{len(word)}"
    listed = write_scenes(data, given.scenes, seed, word) if not data.exists() else data / "scenes.jsonl"
    line = ["finetune", MODEL, "--data", str(listed), "--out", str(out), "--train.seed", str(seed)]
    line += [*WAYS[way], "--train.sample-minutes", "0", "--train.log-to", "tensorboard", *options]
    if given.images:
        line += ["--train.images", str(given.images)]
    done, begin = out / "seconds.json", time.process_time()
    if not done.exists():
        code = command(line)
        if code:
            raise SystemExit(code)
        write_whole(done, json.dumps(time.process_time() - begin))
    found = measured(out, given.count, out / f"figures-{latest_model(out).name}-{given.count}.json", word)
    return {**found, "seconds": json.loads(done.read_text())}


def measured(model: Path, count: int, file: Path, word: str) -> dict[str, Any]:
    """Shares in each of the COLUMNS, and images of some prompts; from the file if they are there."""
    if file.exists():
        return json.loads(file.read_text())
    tell(f"measuring {model}")
    adapters: dict[str | Path, float] | None = {model: 1.0} if (model / "adapter").is_dir() else None
    pipeline = Pipeline.load(MODEL if adapters else model, adapters=adapters)
    sample = read_sampling(latest_model(Path(MODEL)))
    assert sample is not None
    found: dict[str, Any] = {}
    for name, colors in zip(COLUMNS, (SHOWN, NOT_SHOWN), strict=False):
        asked = prompts(count, colors, word)
        images = pipeline.generate(None, sample, prompts=[prompt for prompt, _ in asked], seed=1)
        pixels = pipeline.codec.to_uint8(images)
        found[name] = np.mean([is_right(p, f) for p, (_, f) in zip(pixels, asked, strict=True)]).item()
        found.setdefault("pictures", []).extend(pixels[:IN_PICTURE].tolist())
    for name, number in zip(COLUMNS[2:4], (1, 2), strict=True):
        figures, pixels = measure_text_to_image(pipeline, Shapes("test", num_objects=number), count, sample)
        found[name] = figures["all"]
        found["pictures"].extend(pixels[: IN_PICTURE // 2].tolist())
    one = Shapes("test", num_objects=1)
    found[COLUMNS[4]] = measure_caption_truth(pipeline, one, count, WriteConfig())[0]["all"]
    write_whole(file, json.dumps(found))
    return found


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table: a row for each way, the mean over its seeds, and each seed's own in brackets."""
    lines = [f"| | {' | '.join(COLUMNS)} | seconds |\n", f"|---|{'---|' * (len(COLUMNS) + 1)}\n"]
    for way, found in rows.items():
        cells = []
        for name in COLUMNS:
            each = [100 * run[name] for run in found]
            own = f" ({', '.join(f'{value:.0f}' for value in each)})" if len(each) > 1 else ""
            cells.append(f"{np.mean(each):.0f} %{own}")
        seconds = [run["seconds"] for run in found if "seconds" in run]
        cells.append(f"{np.mean(seconds):.0f}" if seconds else "")
        lines.append(f"| {way} | {' | '.join(cells)} |\n")
    return "".join(lines)


def picture(rows: dict[str, dict[str, Any]], file: Path) -> None:
    """A row for each way: hearts, hearts in other colours, old prompts."""
    from causalfusion.generate.read import to_float
    from causalfusion.pictures.compose import framed, sheet, to_tiles

    images = np.array([image for found in rows.values() for image in found["pictures"]], np.uint8)
    tiles = to_tiles(to_float(images), 2)
    framed(sheet(tiles, len(tiles) // len(rows), row_labels=list(rows)), 8).save(file)


if __name__ == "__main__":
    main()
