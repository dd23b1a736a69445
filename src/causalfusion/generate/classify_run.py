"""`causalfusion classify`: images in, the most probable classes of each out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from causalfusion.errors import printable
from causalfusion.files import write_whole
from causalfusion.generate.caption_run import image_files, read_model_image
from causalfusion.generate.classifier import Classifier
from causalfusion.generate.layout import batches_of
from causalfusion.generate.output import one_line, say
from causalfusion.generate.request import ClassifyRequest
from causalfusion.machine.processes import require_one_process
from causalfusion.machine.runtime import compute_dtype, select_device


def classify_images(paths: Sequence[Path], request: ClassifyRequest) -> list[dict[str, float]]:
    """Probabilities of the most probable classes of image files and of the images in folders, printed as they
    come, and written to the request's `out` when all are there. Raises UserError."""
    require_one_process("classify")
    files = image_files(paths)
    classifier = Classifier.load(
        request.model,
        device=select_device(request.device),
        autocast_dtype=compute_dtype(request.precision),
        autoencoder=request.autoencoder,
    )
    for file in files if len(files) > request.batch_size else ():
        read_model_image(classifier.pipeline, file)  # a damaged one is refused before the first is classified
    names, found = distinct_names(classifier.class_names), list[dict[str, float]]()
    for batch in batches_of(len(files), request.batch_size):
        images = torch.stack([read_model_image(classifier.pipeline, files[index]) for index in batch])
        shares, classes = classifier.probabilities(images).topk(min(request.top, len(names)))
        for index, row, numbers in zip(batch, shares.tolist(), classes.tolist(), strict=True):
            found.append({names[number]: share for number, share in zip(numbers, row, strict=True)})
            told = ", ".join(f"{one_line(name)} {100 * share:.1f} %" for name, share in found[-1].items())
            say(f"{printable(files[index])}: {told}")
    if request.out is not None:
        lines = [
            json.dumps({"image": str(file), "classes": classes}, ensure_ascii=False)
            for file, classes in zip(files, found, strict=True)
        ]
        write_whole(request.out, "\n".join(lines) + "\n")
    return found


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names of classes; one that several have with the class's number, as `--classes` takes it."""
    counts = Counter(names)
    return [f"{name} (index:{k})" if counts[name] > 1 else name for k, name in enumerate(names)]
