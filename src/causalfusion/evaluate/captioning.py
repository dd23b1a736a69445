"""The captions that a run learned to write: of held-out images, against the images' own."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from causalfusion.config import DataConfig, WriteConfig
from causalfusion.data import open_source
from causalfusion.data.loader import load_indices, split_holdout
from causalfusion.data.shapes import Shapes
from causalfusion.data.sizes import grids_of, groups_of
from causalfusion.data.source import spread
from causalfusion.errors import UserError
from causalfusion.evaluate.measures.captions import caption_scores
from causalfusion.evaluate.measures.scenes import caption_truth
from causalfusion.files import write_whole
from causalfusion.generate.layout import batches_of
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.progress import ProgressLine, tell
from causalfusion.machine.runtime import select_device
from causalfusion.saved.folder import latest_model
from causalfusion.train.from_data import large_enough

FILE_NAME = "captions.json"


def score_run(run: Path, data: DataConfig, device: str = "auto", *, images: int = 500) -> dict[str, float]:
    """Describe so many held-out images of the run's data, or all there are, by its last checkpoint, say the
    figures, and write them to RUN/captions.json with the captions: CIDEr-D, BLEU-4 and ROUGE-L (extra
    `eval`), on `shapes` also whether captions are true. By the main process alone; nothing for 0 images."""
    if not images or os.environ.get("RANK", "0") != "0":
        return {}
    try:
        source = open_source(replace(data, cache=""))
    except UserError as error:
        if not data.cache:
            raise
        tell(f"note: captions are not scored, as data.cache holds no images ({error}); give data.path, too")
        return {}
    pipeline = Pipeline.load(latest_model(run), device=select_device(device))
    fit, captions, references = data.fit(pipeline.codec.cell), list[str](), list[list[str]]()
    grids = grids_of(source, fit) if data.native else None
    train, held_out = large_enough(grids, *split_holdout(len(source), data.holdout))
    chosen = held_out[:images] if len(held_out) else spread(train, images)
    line, groups = ProgressLine(len(chosen), 0, what="images"), groups_of(grids, chosen)
    for group in groups:  # images of one size
        for batch in batches_of(len(group), 64):
            rows = group[batch.start : batch.stop]
            found = load_indices(source, chosen[rows], data, fit, grids)
            pixels = found.images.to(pipeline.device)
            captions += pipeline.caption(pixels, WriteConfig(), image_indices=rows.tolist())
            references += [list(texts) for texts in found.all_captions]
            line.show(len(captions), "captions")
    line.close()
    chosen = chosen[np.concatenate(groups)]
    figures: dict[str, float] = {}
    if isinstance(source, Shapes):
        figures |= caption_truth(captions, [source.scene(index) for index in chosen.tolist()])
    try:
        figures |= caption_scores(captions, references)
    except UserError as error:  # of a package that is not installed
        warnings.warn(f"captions are not scored: {error}", stacklevel=2)
    record = {
        "images": len(chosen),
        "held_out": bool(len(held_out)),
        "figures": figures,
        "captions": captions,
    }
    write_whole(run / FILE_NAME, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    tell(
        f"captions of {len(chosen):,} {'held-out ' if len(held_out) else ''}images: {told}; {run / FILE_NAME}"
    )
    return figures
