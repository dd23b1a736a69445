"""The page's jobs without the page: frames while a model draws, masks, captions, quality against time."""

from __future__ import annotations

import itertools
import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion.app.asked import Asked
from causalfusion.app.frames import MOST_FRAMES, Frame, is_kept
from causalfusion.app.live import reports_of
from causalfusion.app.opened import Opened, open_model
from causalfusion.app.quality import (
    as_asked,
    best_within,
    chart,
    measure,
    open_page_judge,
    sweep_around,
    table,
)
from causalfusion.app.request import AppRequest
from causalfusion.app.tiles import data_uri, tiles
from causalfusion.app.work import change, describe, draw
from causalfusion.errors import UserError
from causalfusion.generate.tokens import StepEvent
from causalfusion.planner.sweep import frontier

QUICK = {"diffusion_steps": 3, "images": 2}


def test_drawing_shows_every_part_and_ends_with_the_pipelines_images(shapes: Opened):
    asked = replace(shapes.defaults(), prompt="a red star", ar_steps=4, order="raster", seed=3, **QUICK)
    *frames, last = draw(shapes, asked)
    expected = shapes.pipeline.generate(config=shapes.settings(asked), prompts=["a red star"] * 2, seed=3)
    assert np.array_equal(last.pixels, shapes.pipeline.codec.to_uint8(expected))
    assert last.words.startswith("2 pictures in ") and last.in_progress is None
    assert [frame.words for frame in frames] == [
        f"part {s} of 4, step {k} of 3" for s in range(1, 5) for k in range(1, 4)
    ]
    made = np.zeros((8, 8), bool)
    for frame in frames[2::3]:  # the last of every part: 16 tokens, row by row
        assert frame.in_progress is not None and frame.not_begun is not None
        assert frame.in_progress[0].sum() == 16 and not (frame.in_progress[0] & made).any()
        made |= frame.in_progress[0]
        assert np.array_equal(frame.not_begun[0], ~made)
    assert made.all() and np.array_equal(frames[-1].pixels, last.pixels)


def test_classes_in_turn_and_one_class(digits: Opened):
    assert digits.class_names == [str(k) for k in range(10)] and not digits.reads_text
    asked = replace(digits.defaults(), images=3, diffusion_steps=2)
    *_, last = draw(digits, asked)
    settings = digits.settings(asked)
    in_turn = digits.pipeline.generate([0, 1, 2], settings, seed=0)
    assert np.array_equal(last.pixels, digits.pipeline.codec.to_uint8(in_turn))
    *_, last = draw(digits, replace(asked, class_name="index:7"))
    sevens = digits.pipeline.generate([7, 7, 7], settings, seed=0)
    assert np.array_equal(last.pixels, digits.pipeline.codec.to_uint8(sevens))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": " "}, "the description is empty"),
        ({"prompt": "a red star " * 40}, "this model has room for"),
        ({"prompt": "x", "ar_steps": 65}, "the number of parts is 65; expected at most 64"),
        ({"prompt": "x", "class_name": "cat"}, "this model has no class condition"),
    ],
)
def test_what_the_model_refuses_is_refused_before_any_work(shapes: Opened, changes, words):
    with pytest.raises(UserError, match=words):
        next(draw(shapes, replace(shapes.defaults(), **changes)))


def test_a_change_keeps_every_pixel_outside_the_mask(shapes: Opened):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[6:19, 14:] = True
    asked = replace(shapes.defaults(), prompt="a red star", images=3, diffusion_steps=3, ar_steps=2)
    *frames, last = change(shapes, picture, mask, asked)
    assert last.pixels.shape == (3, 32, 32, 3)
    outside = ~mask.numpy()
    for variant in last.pixels:
        assert np.array_equal(variant[outside], picture[outside])
        assert not np.array_equal(variant, picture)
    assert not np.array_equal(last.pixels[0], last.pixels[1]), "variants differ"
    *_, less = change(shapes, picture, mask, asked, 0.4)

    def far(frame: Frame) -> float:
        return float(np.abs(frame.pixels.astype(int) - picture).mean())

    assert 0 < far(less) < far(last), "with less strength it stays nearer to the picture"
    tokens = mask.view(8, 4, 8, 4).any(3).any(1).numpy()
    first, final = frames[0], frames[-1]
    assert first.in_progress is not None and first.not_begun is not None and final.not_begun is not None
    assert np.array_equal(first.in_progress[0] | first.not_begun[0], tokens)
    assert not final.not_begun.any() and len(frames) == 6


def test_a_few_painted_tokens_are_changed_in_as_many_parts(shapes: Opened):
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[0, :8] = True
    asked = replace(shapes.defaults(), prompt="a red star", images=1, diffusion_steps=1, ar_steps=16)
    frames = list(change(shapes, np.zeros((32, 32, 3), np.uint8), mask, asked))
    assert [frame.words for frame in frames[:-1]] == ["part 1 of 2, step 1 of 1", "part 2 of 2, step 1 of 1"]


def test_a_caption_grows_to_what_the_pipeline_says(shapes: Opened):
    asked = replace(shapes.defaults(), prompt="a large red star", images=1)
    *_, last = draw(shapes, asked)
    said = list(describe(shapes, last.pixels[0]))
    assert (
        said[-1]
        == shapes.pipeline.caption(
            shapes.pipeline.to_tensor(
                shapes.pipeline.to_pil(torch.tensor(last.pixels).permute(0, 3, 1, 2) / 127.5 - 1)
            )
        )[0]
    )
    assert "red star" in said[-1] and len(said) > 3
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(said[:-1]))


def test_a_model_of_classes_writes_nothing(digits: Opened):
    assert not digits.describes and not digits.examples
    with pytest.raises(UserError, match="trained without text"):
        next(describe(digits, np.zeros((8, 8, 1), np.uint8)))


def test_frames_are_few_and_end_every_part():
    def kept(ar_steps: int, diffusion_steps: int) -> list[tuple[int, int]]:
        nothing = torch.zeros(0)
        return [
            (s, k)
            for s in range(1, ar_steps + 1)
            for k in range(1, diffusion_steps + 1)
            if is_kept(StepEvent(s, ar_steps, k, diffusion_steps, 0.0, nothing, nothing))
        ]

    for ar_steps, diffusion_steps in itertools.product((1, 2, 5, 48, 64, 1000), (1, 7, 250)):
        found = kept(ar_steps, diffusion_steps)
        assert 1 <= len(found) <= MOST_FRAMES and found[-1] == (ar_steps, diffusion_steps)
        if ar_steps <= MOST_FRAMES:
            assert {(s, diffusion_steps) for s in range(1, ar_steps + 1)} <= set(found)


def test_reports_come_while_the_work_goes_on_and_end_with_its_result():
    gate = threading.Event()

    def work(tell):
        tell("first")
        assert gate.wait(10), "the report is read before the work goes on"
        tell("second")
        return 7

    reports = reports_of(work)
    assert next(reports) == "first"
    gate.set()
    assert next(reports) == "second"
    with pytest.raises(StopIteration) as end:
        next(reports)
    assert end.value.value == 7


def test_work_that_nobody_listens_to_ends_at_its_next_report():
    before, told = threading.active_count(), []

    def work(tell):
        for k in itertools.count():
            told.append(k)
            tell(k)

    reports = reports_of(work)
    assert next(reports) == 0
    reports.close()
    assert threading.active_count() == before and len(told) < 10**6


def test_an_error_of_the_work_is_raised_where_its_reports_are_read():
    def work(tell):
        tell(1)
        raise UserError("no")

    reports = reports_of(work)
    next(reports)
    with pytest.raises(UserError, match="no"):
        next(reports)


def test_tiles_hold_the_images_own_pixels_and_no_markup_of_users():
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    cells = np.array([[[True, True], [False, True]], [[False, False], [False, False]]])
    html = tiles(Frame(pixels, "", in_progress=cells), labels=['<b onclick="x">'], chosen=1)
    assert html.count("<img") == 2 and data_uri(pixels[0]) in html and data_uri(pixels[1]) in html
    assert "<b" not in html and "&lt;b onclick=&quot;x&quot;&gt;" in html
    assert html.count('d="M0 0h2v1h-2zM1 1h1v1h-1z"') == 1 and html.count("<svg") == 1
    assert html.count("cf-chosen") == 1


def test_quality_against_time_is_measured_setting_by_setting(shapes: Opened, monkeypatch):
    monkeypatch.setattr("causalfusion.app.quality.REFERENCE_IMAGES", 200)
    judge = open_page_judge(shapes)
    plan = sweep_around(shapes, replace(shapes.defaults(), prompt="a star", seed=4))
    assert len(plan) == len(set(plan)) <= 10 and all(each.seed == 4 for each in plan)
    assert plan[0].diffusion_steps == shapes.defaults().diffusion_steps, "the settings of the page come first"
    seen = list(measure(shapes, judge, plan[:2], 16))
    assert [len(each.tried) for each in seen] == [0, 1, 2]
    assert [bool(each.now) for each in seen] == [True, True, False]
    tried = seen[-1].tried
    assert all(t.frechet and t.accuracy is not None and t.seconds_per_image > 0 for t in tried)
    assert best_within(tried, 1e9) is frontier(tried)[-1] and best_within(tried, 1e-9) is frontier(tried)[0]
    picture = chart(tried, 0.05)
    assert picture.ndim == 3 and picture.shape[2] == 3 and picture.std() > 1
    assert len(table(tried)) == 2 and {len(row) for row in table(tried)} == {6}
    again = as_asked(tried[1], Asked(prompt="a star"))
    assert again.prompt == "a star" and again.diffusion_steps == tried[1].settings.diffusion_steps[0]


def test_without_real_images_quality_says_what_is_missing(shapes: Opened):
    with pytest.raises(UserError, match="--reference photos"):
        open_page_judge(replace(shapes, reference=None))


def test_a_page_opens_with_prompts_of_its_images_although_one_is_damaged(tmp_path: Path):
    for number in range(3):
        Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "0.png").write_bytes(b"no image")
    lines = [json.dumps({"image": f"{k}.png", "caption": f"a star of {k}"}) for k in range(3)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    opened = open_model(AppRequest(device="cpu", reference=str(tmp_path / "data.jsonl")))
    assert opened.examples == ("a star of 0", "a star of 1", "a star of 2"), "their captions are whole"


def test_the_page_begins_within_its_bounds(shapes):
    """Whatever a model recommends: beyond them, the page would not open."""
    far = replace(shapes.sampling, guidance_scale=50.0, diffusion_steps=[1000])
    begun = replace(shapes, sampling=far).defaults()
    assert (begun.guidance, begun.diffusion_steps) == (20.0, 250)


def test_the_page_begins_with_the_seed_of_the_command():
    assert open_model(AppRequest(device="cpu", seed=7)).defaults().seed == 7
    with pytest.raises(UserError, match="--seed is -1; expected 0 to 4294967295"):
        AppRequest(seed=-1)
