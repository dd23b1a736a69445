"""`python -m benchmarks.quantize`: what int8 weights cost, judged by the oracle of `shapes`.

The same images are drawn with the weights as they are and with int8 ones: how many show exactly what their
caption says, how large the weights are in memory, and how many images are drawn in a second of one thread's
CPU time, which other work on the machine hardly changes. On the disk, a model is the same: its weights are
made int8 as it is loaded.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from causalfusion.config.options import QuantizeChoice
from causalfusion.evaluate.text_image import by_number_of_objects, measure_text_to_image
from causalfusion.files import write_whole
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.progress import tell
from causalfusion.model.quantized import bytes_of
from causalfusion.saved.folder import latest_model

FORMS: tuple[QuantizeChoice, ...] = ("none", "int8")
TIMED = 64
"""Images of the batch that is timed."""


def measure(model: Path, quantize: QuantizeChoice, count: int) -> dict[str, Any]:
    """Figures of one form of the weights."""
    pipeline = Pipeline.load(model, quantize=quantize)
    settings, side = pipeline.default_sampling, pipeline.codec.config.image_height
    found: dict[str, Any] = {
        "MiB in memory": bytes_of(pipeline.model) / 2**20,
        "MiB of the blocks": sum(map(bytes_of, pipeline.model.each_block())) / 2**20,
    }
    for name, data in by_number_of_objects("test", side):
        found[name], _ = measure_text_to_image(pipeline, data, count, settings)
    prompts, begin = ["a small red circle"] * TIMED, time.process_time()
    pipeline.generate(prompts=prompts, config=settings)
    found["images in a second of CPU time"] = TIMED / (time.process_time() - begin)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantize", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("shapes"))
    parser.add_argument("--count", type=int, default=200, help="scenes of each kind (default: 200)")
    parser.add_argument("--out", type=Path, default=Path("runs/quantize/figures.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stored = (latest_model(arguments.model) / "model.safetensors").stat().st_size
    figures: dict[str, Any] = {"count": arguments.count, "MiB on the disk": stored / 2**20}
    for form in FORMS:
        tell(f"weights {form}")
        figures[form] = measure(arguments.model, form, arguments.count)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.out, json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
