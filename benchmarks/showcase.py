"""`python -m benchmarks.showcase`: the README's pictures of the packaged model.

prompts.png: prompts and their images with one and with four AR steps, and the best of eight; captions.png:
unseen scenes and what the model says of them; text-edits.png: right halves, regenerated for a new caption.
The first that come, at seed 0: none is chosen.

    python -m benchmarks.showcase --out docs/images
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.text_image import CANDIDATES, sampling
from causalfusion.config import WriteConfig
from causalfusion.data.shapes import Shapes
from causalfusion.evaluate.text_image import edit_task
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.rank import generate_best
from causalfusion.generate.read import to_float
from causalfusion.generate.regions import region_mask
from causalfusion.pictures.compose import (
    ACCENT,
    BLANK,
    below,
    cover,
    framed,
    outline,
    paragraph,
    sheet,
    to_tiles,
)

PROMPTS = (
    "a large red star", "a small blue circle in the top left", "a big green triangle at the bottom",
    "a small orange diamond", "a small red circle to the left of a large blue square",
    "a large yellow star above a small black diamond", "a big purple triangle under a tiny cyan star",
    "a large orange square, and a small green circle to the right of the square",
)  # fmt: skip
GUIDANCE, SCALE = 3.0, 5
SCENES, EDITS = 16, 8


def page(title: str, blocks: Sequence[Image.Image], columns: int) -> Image.Image:
    """Blocks in rows below a title."""
    rows = [blocks[start : start + columns] for start in range(0, len(blocks), columns)]
    return framed(below([paragraph(title, 900, 17), *(_row(row) for row in rows)]))


def _row(blocks: Sequence[Image.Image]) -> Image.Image:
    """Side by side, aligned at the top."""
    canvas = Image.new(
        "RGB", (sum(b.width + 8 for b in blocks), max(b.height for b in blocks)), blocks[0].getpixel((0, 0))
    )
    x = 0
    for block in blocks:
        canvas.paste(block, (x, 0))
        x += block.width + 8
    return canvas


def _block(tiles: Sequence[Image.Image], text: str) -> Image.Image:
    row = sheet([_edged(tile) for tile in tiles], len(tiles))
    return below([row, paragraph(text, row.width)], gap=2)


def _edged(tile: Image.Image) -> Image.Image:
    """With a thin line around it: scenes are nearly as bright as the paper."""
    canvas = Image.new("RGB", (tile.width + 2, tile.height + 2), "#d9dee6")
    canvas.paste(tile, (1, 1))
    return canvas


def prompts(pipeline: Pipeline) -> Image.Image:
    images = [pipeline.generate(prompts=PROMPTS, config=sampling(s, GUIDANCE)) for s in (1, 4)]
    images.append(generate_best(pipeline, None, PROMPTS, sampling(1, GUIDANCE), CANDIDATES))
    columns = [to_tiles(batch, SCALE, "nearest") for batch in images]
    blocks = [_block(tiles, text) for *tiles, text in zip(*columns, PROMPTS, strict=True)]
    return page(
        "Prompts and their images: S = 1, S = 4 AR steps, the best of 8 by the model's own judgement",
        blocks,
        2,
    )


def captions(pipeline: Pipeline, data: Shapes) -> Image.Image:
    images = to_float(np.stack([data.read(index).image for index in range(SCENES)]))
    texts = pipeline.caption(images, WriteConfig())
    tiles = to_tiles(images, SCALE, "nearest")
    blocks = [_block([tile], text) for tile, text in zip(tiles, texts, strict=True)]
    return page("Images that the model has not seen in training, and its captions", blocks, 8)


def edits(pipeline: Pipeline, data: Shapes) -> Image.Image:
    tasks = [edit_task(data, index) for index in range(EDITS)]
    before, texts = to_float(np.stack([image for image, _ in tasks])), [text for _, text in tasks]
    mask = region_mask("right", *before.shape[2:])
    after = pipeline.edit(before, mask, None, sampling(2, GUIDANCE), prompts=texts)
    blocks = []
    for text, old, new in zip(texts, *(to_tiles(i, SCALE, "nearest") for i in (before, after)), strict=True):
        kept = old.copy()
        cover(kept, mask, BLANK)
        outline(kept, mask, ACCENT)
        blocks.append(_block([old, kept, new], text))
    return page(
        "Text-guided edits: an image, the kept part, and the rest regenerated for the prompt below", blocks, 2
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.showcase", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", nargs="?", default="shapes")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    given = parser.parse_args()
    pipeline, data = Pipeline.load(given.model), Shapes("test")
    one = Shapes("test", num_objects=1)
    given.out.mkdir(parents=True, exist_ok=True)
    prompts(pipeline).save(given.out / "prompts.png")
    captions(pipeline, data).save(given.out / "captions.png")
    edits(pipeline, one).save(given.out / "text-edits.png")


if __name__ == "__main__":
    main()
