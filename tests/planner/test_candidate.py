"""The prompts that a plan takes from real images' captions."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causalfusion.config import DataConfig
from causalfusion.errors import UserError
from causalfusion.generate.pipeline import Pipeline
from causalfusion.planner.candidate import prompts_for


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load("shapes")


def captioned(folder: Path, captions: list[str]) -> DataConfig:
    """Images with these captions, the second of which is damaged."""
    folder.mkdir()
    for number in range(len(captions)):
        Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes(b"no image")
    lines = [json.dumps({"image": f"{k}.png", "caption": text}) for k, text in enumerate(captions)]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return DataConfig(source="jsonl", path=str(folder / "data.jsonl"))


def test_captions_without_room_are_counted_and_are_no_prompts_and_those_of_damaged_images_are(
    pipeline, tmp_path
):
    data = captioned(tmp_path / "some", ["a red star", "a red circle", "a red star " * 40, "a blue star"])
    with pytest.warns(UserWarning, match=r"1 of 4 captions of .*data\.jsonl are left out as prompts: they"):
        assert prompts_for(pipeline, data) == ["a red star", "a red circle", "a blue star"]


def test_without_any_prompt_one_line_says_why(pipeline, tmp_path):
    data = captioned(tmp_path / "none", ["a red star " * 40, "a red circle " * 40])
    with pytest.raises(UserError, match=r"2 of 2 captions of .* can be no prompts: .*give another --ref"):
        prompts_for(pipeline, data)


def test_prompts_are_spread_over_a_reference_that_is_sorted(pipeline, tmp_path):
    """Of few images, the prompts were those of its first ones; the others were often the same again."""
    colors = ("red", "red", "green", "green", "blue", "blue", "yellow")
    data = captioned(tmp_path / "sorted", [f"a {color} star" for color in colors])
    assert prompts_for(pipeline, data, 3) == [f"a {colors[k]} star" for k in (0, 3, 6)]
    other = prompts_for(pipeline, data, 4, other=True)
    assert other == [f"a {colors[k]} star" for k in (1, 3, 5)]
    assert prompts_for(pipeline, data, 100, other=True) == prompts_for(pipeline, data, 100)
