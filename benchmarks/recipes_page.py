"""docs/recipes.md: every recipe with what it is, its size, what it costs and what to expect of it.

    python -m benchmarks.recipes_page

Descriptions are the comments at the head of the recipes, costs what `causalfusion estimate` says.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from causalfusion.config.recipes import SIZES, load_facts, load_layer, recipe_names
from causalfusion.estimate.cost import Cost, estimate
from causalfusion.estimate.devices import CPU_SHARE, Device, named_device
from causalfusion.estimate.planned import plan_run, read_settings

TARGET = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
DATA_RECIPE = "cifar10"
"""The recipe that recipes without data are laid over here."""
SIZE_RECIPE = "imagenet256"
"""The recipe that sizes are laid over here."""
CORE = Device("one CPU core", 96e9, 24e9, 15e9, CPU_SHARE["float32"], is_gpu=False, measured=True)
"""A core with the matrix rate and the bandwidth of docs/performance.md."""
H100 = named_device("h100", "bfloat16")
EXPECTED: dict[str, tuple[str, str]] = {
    "digits": (
        "a classifier that is right on 98.9 % of held-out real digits assigns 100 % of 800 samples to their "
        "class, for S = 1, 2, 4 and 8; 2 minutes 7 seconds on two CPU cores, with everything after training",
        "the-demo",
    ),
    "cifar10": (
        "a classifier assigns 41.5 % (S = 1) and 46.0 % (S = 4) of 400 samples to their class (chance is "
        "10 %, real test images have 83.2 %); about 45 minutes of two CPU cores",
        "cifar-10-from-pixels-on-two-cpu-cores",
    ),
    "shapes": (
        "the first stage of the packaged model: 514,752 images in 69 minutes of one CPU core",
        "the-packaged-model",
    ),
    "shapes-finish": (
        "the second stage; after it, of unseen scenes of one object 97 % were drawn exactly as asked, of two "
        "45 %, and 100 % and 78 % of the captions were true",
        "the-packaged-model",
    ),
    "shapes-fine": (
        "the third stage of the packaged model: of unseen scenes of one object 99.5 % are drawn exactly as "
        "asked, of two 59 %; 100 % and 76.5 % of the captions are true; 44 and 28 minutes of one CPU core",
        "the-packaged-model",
    ),
    "shapes-relations": (
        "after `shapes-fine`: 97 of 100 captions of two objects are true, and nothing can be drawn; 40 "
        "minutes of one CPU core",
        "the-packaged-model",
    ),
    "shapes-both": (
        "a model packaged before: of unseen scenes of one object 98 % are drawn exactly as asked, of two "
        "56.5 %; 100 % and 96.5 % of the captions are true; 37 minutes of two CPU cores",
        "the-packaged-model",
    ),
    "shapes-several": (
        "after `shapes-both`, with other settings: 73 % of unseen scenes of two objects are drawn exactly as "
        "asked, 19 % of three; the second time, as now, 84.5 and 35 %; 30 minutes of two busy CPU cores",
        "levels-at-which-objects-are-agreed-on",
    ),
    "shapes-last": (
        "the packaged model, the third time: of unseen scenes of one object 100 % are drawn exactly as "
        "asked, of two 88 %, of three 56.5 %; 100 %, 99 % and 88.5 % of the captions are true; 52 minutes of "
        "two busy CPU cores",
        "the-packaged-model",
    ),
    "any-size": (
        "with an earlier packaged model, 38,400 images, one object: 98 % as asked at 32x32, 95 % at 48x32, "
        "97 % at 32x48; 15 minutes of one CPU core",
        "images-of-any-size",
    ),
    "transfusion": (
        "after 100,000 images, two seeds, one object: 10.5 % and 7.0 % as asked (CausalFusion 9.5 % and "
        "5.5 %), 58.0 % and 49.5 % of the captions true (CausalFusion 70.5 % and 73.0 %)",
        "causalfusion-against-transfusion",
    ),
    "in-context": (
        "after 65,856 documents of made-up words for colours, one seed: 9 % right without an example, 75 % "
        "after one (chance is 12.5 %); shapes are not learned by then",
        "in-context",
    ),
    "graft-shapes": (
        "after 20,700 scenes, 40 minutes of a core: colours as asked in 78 and 81 % of 100 captions, two "
        "seeds (chance is 12.5 %), sizes and shapes at chance",
        "a-language-model-that-learned-to-draw",
    ),
    "per-token": ("on digits: 96.7 % classified correctly at S = 8", "the-neighbours-in-one-frame"),
    "dit": ("on digits: 12.1 %, predicting v 56.2 %", "the-neighbours-in-one-frame"),
    "sit": ("on digits: 27.4 %", "the-neighbours-in-one-frame"),
    "large-dit": ("on digits: 10.2 %", "the-neighbours-in-one-frame"),
    "fit": ("on digits: 36.9 %", "the-neighbours-in-one-frame"),
    "mar": ("on digits: 80.2 % at S = 8", "the-neighbours-in-one-frame"),
    "latentlm": ("on digits: 91.2 %", "the-neighbours-in-one-frame"),
    "flow": ("on digits: 89.6 % at S = 1, 91.1 % at S = 4", "paths-and-predictions-of-noise"),
    "efficient": (
        "on digits, with the arithmetic of the paper's recipe: 95.4 % classified correctly at S = 1 and 4, "
        "which has 28.8 and 30.5 %",
        "training-that-learns-faster",
    ),
    "flow-sample": ("on digits: 97.0 % at S = 1, 97.9 % at S = 4", "paths-and-predictions-of-noise"),
}
"""What was measured of recipes, and the section of docs/results.md that has it."""
INTRODUCTION = """# Recipes

A recipe is a TOML file with some of the settings. Recipes are laid over one another, later ones over earlier
ones, and the command line over all:

    causalfusion train --config cifar10 --config dit --train.lr 2e-4
    causalfusion estimate --config imagenet256 --config XL --gpu h100 --gpus 8    # arithmetic, time, memory
    causalfusion train photos --config mine.toml

A file of your own has the same tables, `base = ["cifar10"]` names what it extends, and
`causalfusion train --help-all` lists every setting.

*Estimated* times are those of the arithmetic, as `causalfusion estimate` counts it: of one CPU core that
multiplies matrices at 96 GFLOP/s, of which training reaches 65 % ([performance](performance.md#on-a-cpu)), or
of 8 H100s by their data sheet, of which it is assumed to reach 40 %. On your own machine, the command
measures first. *Measured* is what was measured with this code; a recipe without it was not run to its end
here.

This page is written by `python -m benchmarks.recipes_page`, and a test holds it to the recipes.
"""


@dataclass(frozen=True)
class Sized:
    """A run's cost, with the number of its tokens and of the numbers in each."""

    cost: Cost
    tokens: int
    numbers: int


def text_of(name: str) -> str:
    return (resources.files("causalfusion") / "recipes" / f"{name}.toml").read_text()


def comment_of(name: str) -> str:
    """The description at the head of a recipe, as Markdown."""
    lines: list[str] = []
    for line in text_of(name).splitlines():
        if not line.startswith("#"):
            break
        command = line.startswith("#   ")
        lines += ["", f"    {line[1:].strip()}", ""] if command else [line[1:].strip()]
    said = "\n".join(lines).strip()
    options = r"(--config [\w-]+ --config [\w-]+|--train\.init(?! models)|\b[a-z]+\.[a-z]+_[a-z]+\b)"
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", re.sub(options, r"`\1`", said))


def bases_of(name: str) -> list[str]:
    found = re.search(r"^base = (\[.*\])$", text_of(name), re.MULTILINE)
    return json.loads(found[1]) if found else []


def begins_with_language_model(recipes: Sequence[str]) -> bool:
    """True if a recipe's size is that of a language model, which it does not name."""
    return any(load_layer(name).get("text", {}).get("tokenizer") == "init" for name in recipes)


def goes_on(name: str) -> bool:
    """True for a recipe of `causalfusion finetune`, which has its size from a model."""
    return "finetune" in load_layer(name)


def cost_of(recipes: Sequence[str], device: Device, count: int) -> Sized:
    """What `causalfusion estimate` counts, where no data are at hand."""
    with tempfile.TemporaryDirectory() as nowhere, chdir(nowhere):
        planned = plan_run(read_settings(recipes, []), facts=load_facts(recipes))
        train = replace(planned.config.train, precision="bfloat16" if device.is_gpu else "float32")
        config = replace(planned.config, train=train)
        cost = estimate(config, device, count, text_tokens=planned.text_tokens)
    return Sized(cost, config.model.num_tokens, config.model.token_dim)


def measured(name: str) -> str:
    """What was measured of a recipe, with its place; empty if nothing was."""
    if name not in EXPECTED:
        return ""
    text, section = EXPECTED[name]
    return f"{text} ([results](results.md#{section}))"


def run_section(name: str, device: Device, count: int) -> str:
    """A recipe that is a run."""
    if goes_on(name):
        images = load_layer(name)["train"]["images"]
        rows = [f"size and cost are those of the model it goes on from; {images:,} images"]
    elif begins_with_language_model([name]):
        rows = [
            "size and cost are those of the language model it begins with "
            "([language_models.md](language_models.md#which-graft) has those of SmolLM2-135M)"
        ]
    else:
        sized = cost_of([name], device, count)
        cost, each = sized.cost, " on each" * (count > 1)
        rows = [
            f"{cost.parameters:,} parameters; {sized.tokens:,} tokens of {sized.numbers} numbers",
            f"{cost.images:,} images of {_flop(cost.of_image.needed)} each",
            f"estimated: {_time(cost.seconds)} on {_devices(device, count)}, "
            f"{cost.memory.total / 1e9:,.3g} GB{each}" + _needed(cost),
        ]
    if bases_of(name):
        rows.insert(0, f"extends {', '.join(f'`{other}`' for other in bases_of(name))}")
    if name in EXPECTED:
        rows.append(f"measured: {measured(name)}")
    listed = "\n".join(f"- {row}" for row in rows)
    return f"### {name}\n\n{comment_of(name)}\n\n{listed}\n"


def table(names: Sequence[str], over: str, device: Device, count: int) -> str:
    """Recipes that are laid over another, one on each line."""
    lines = [
        f"| over `{over}` | what it is | parameters | an image | {_devices(device, count)} | measured |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        size = "| | |"
        if not begins_with_language_model([name]):
            cost = cost_of([over, name], device, count).cost
            flop = _flop(cost.of_image.needed)
            size = f"| {cost.parameters:,} | {flop} | {_time(cost.seconds)}{_needed(cost)} |"
        said = re.sub(r" {4}(causalfusion .*)", r"`\1`", comment_of(name))
        lines.append(f"| `{name}` | {' '.join(said.split())} {size} {measured(name)} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    runs = [name for name in recipe_names() if "data" in load_layer(name)]
    tuning = [name for name in runs if goes_on(name)]
    large = [name for name in runs if ("imagenet" in name or "256" in name) and name not in tuning]
    over = [name for name in recipe_names() if name not in (*runs, *SIZES)]
    small = [name for name in runs if name not in (*large, *tuning)]
    parts = [
        INTRODUCTION,
        "## On a CPU or one GPU\n\n" + "\n".join(run_section(name, CORE, 1) for name in small),
        "## On ImageNet\n\nSet `data.path`, or `data.cache` with what `causalfusion encode` wrote.\n\n"
        + "\n".join(run_section(name, H100, 8) for name in large),
        "## To go on from a model\n\n[Fine-tuning](finetuning.md) has the command.\n\n"
        + "\n".join(run_section(name, CORE, 1) for name in tuning),
        f"## Sizes\n\n{table(SIZES, SIZE_RECIPE, H100, 8)}",
        f"## To lay over others\n\n{table(over, DATA_RECIPE, CORE, 1)}",
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _devices(device: Device, count: int) -> str:
    return f"{count} H100s" if device.is_gpu else device.name


def _needed(cost: Cost) -> str:
    """The settings without which a run does not fit."""
    if cost.fits:
        return ""
    return f"; does not fit without {' '.join(f'`{change}`' for change in cost.changes) or 'more devices'}"


def _flop(value: float) -> str:
    return f"{value / 1e9:,.3g} GFLOP" if value < 1e12 else f"{value / 1e12:,.3g} TFLOP"


def _time(seconds: float) -> str:
    if seconds < 90 * 60:
        return f"{seconds / 60:,.2g} minutes"
    return f"{seconds / 3600:,.3g} hours" if seconds < 48 * 3600 else f"{seconds / 86400:,.3g} days"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    TARGET.write_text(page())
