from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from causalfusion.config import DiffusionConfig, ModelConfig, SampleConfig
from causalfusion.diffusion.process import make_process
from causalfusion.errors import UserError
from causalfusion.generate.context import prefill
from causalfusion.generate.layout import draw_orders, to_raster
from causalfusion.generate.noise import ImageNoise
from causalfusion.generate.tokens import generate_tokens
from causalfusion.model.transformer import Transformer
from causalfusion.pictures.charts import axes_of, log_scale
from causalfusion.pictures.compose import (
    ACCENT,
    BLANK,
    Edit,
    cover,
    edit_sheet,
    fitting_font,
    outline,
    to_image_grid,
    to_tiles,
)
from causalfusion.show.charts import _smoothed, save_loss_curve
from causalfusion.show.process import ProcessRecorder


def masks(rows: int, columns: int) -> st.SearchStrategy[torch.Tensor]:
    cells = st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)
    return cells.map(lambda values: torch.tensor(values).view(rows, columns))


def test_tiles_span_black_to_white_and_clamp() -> None:
    images = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).view(5, 1, 1, 1).expand(-1, 1, 2, 2)
    levels = [np.unique(np.asarray(tile)).tolist() for tile in to_tiles(images, 3)]
    assert levels == [[0], [0], [128], [255], [255]]


def test_nearest_tiles_repeat_every_pixel() -> None:
    images = torch.rand(2, 3, 4, 5) * 2 - 1
    for image, tile in zip(images, to_tiles(images, 3, "nearest"), strict=True):
        expected = ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal(np.asarray(tile), expected.repeat(3, 0).repeat(3, 1))


def test_two_channels_are_refused() -> None:
    with pytest.raises(UserError, match=r"\(1, 2, 4, 4\); expected \(B, 1 or 3, H, W\)"):
        to_tiles(torch.zeros(1, 2, 4, 4), 1)


def test_grid_holds_every_image_in_reading_order() -> None:
    colours = torch.rand(7, 3)
    images = (colours * 2 - 1)[:, :, None, None].expand(-1, -1, 8, 8)
    grid = np.asarray(
        to_image_grid(images, 3, scale=4, title="t", row_labels=["a", "b"], column_labels=["x"])
    )
    wanted = [list(tile.getpixel((0, 0))) for tile in to_tiles(images, 1)]  # pyright: ignore[reportArgumentType]
    met = dict.fromkeys(tuple(pixel) for row in grid.tolist() for pixel in row)
    assert [list(pixel) for pixel in met if list(pixel) in wanted] == wanted
    assert all((grid == colour).all(-1).sum() == 32 * 32 for colour in wanted)


def test_texts_shrink_to_the_width_of_a_cell() -> None:
    face = fitting_font(["automobile", "cat"], 40, 14)
    assert face.getlength("automobile") <= 40 < fitting_font(["cat"], 40, 14).getlength("automobile")


@settings(max_examples=40)
@given(masks(3, 4), st.integers(1, 3))
def test_outline_is_the_inner_border_of_the_region(cells: torch.Tensor, width: int) -> None:
    side = 6
    tile = Image.new("RGB", (4 * side, 3 * side))
    outline(tile, cells, ACCENT, width)
    inside = cells.repeat_interleave(side, 0).repeat_interleave(side, 1).numpy()
    padded = np.pad(inside, width)
    deep = np.ones_like(inside)  # with all straight neighbours up to `width` away in the region as well
    for shift in range(-width, width + 1):
        rows = slice(width + shift, width + shift + 3 * side)
        columns = slice(width + shift, width + shift + 4 * side)
        deep &= padded[rows, width:-width] & padded[width:-width, columns]
    drawn = (np.asarray(tile) == ACCENT).all(-1)
    assert np.array_equal(drawn, inside & ~deep)


@settings(max_examples=20)
@given(masks(2, 5))
def test_cover_paints_the_region_and_nothing_else(cells: torch.Tensor) -> None:
    tile = Image.new("RGB", (20, 8))
    cover(tile, cells, BLANK)
    painted = (np.asarray(tile) == BLANK).all(-1)
    assert np.array_equal(painted, cells.repeat_interleave(4, 0).repeat_interleave(4, 1).numpy())


def test_edit_sheet_shows_what_was_kept_and_what_replaced_it() -> None:
    red, green = (torch.tensor(c).view(1, 3, 1, 1).expand(2, 3, 8, 8) for c in ([1.0, -1, -1], [-1.0, 1, -1]))
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    edit = Edit("top half", mask, green, ["5", "6"])
    pixels = np.asarray(edit_sheet(red, ["1", "2"], [edit], scale=4))
    half, border = 32 * 16, 2 * (32 + 12) * 2

    def area(colour: tuple[int, int, int]) -> int:
        return int((pixels == colour).all(-1).sum())

    assert area((255, 0, 0)) == 2 * (2 * half + half)  # the originals, and the halves that were kept
    assert area((0, 255, 0)) == 2 * (2 * half - border)
    assert area(BLANK) == 2 * (half - border)
    assert area(ACCENT) == 4 * border


@pytest.fixture(scope="module")
def recorded() -> tuple[ProcessRecorder, torch.Tensor]:
    """Two images generated in three AR steps, the second followed; its final tokens in raster order."""
    config = ModelConfig(
        hidden_size=16, depth=1, num_heads=2, num_class_tokens=1, num_classes=2, token_dim=4, grid_height=2,
        grid_width=4,
    )  # fmt: skip
    model = Transformer(config).eval()
    torch.nn.init.normal_(model.image_out.weight, std=0.2)
    sample = SampleConfig(num_ar_steps=3, diffusion_steps=[7])
    context = prefill(model, torch.tensor([0, 1]), sample)
    order = draw_orders(sample, 2, 4, 0, [0, 1])
    recorder = ProcessRecorder(8, 4, rows=4, image=1)
    process = make_process(DiffusionConfig())
    tokens = generate_tokens(
        model, process, sample, context, order, [3, 3, 2], ImageNoise(0, [0, 1], 8, 4), recorder
    )
    return recorder, to_raster(tokens, order)[1]


def test_recorder_ends_with_the_generated_tokens(recorded: tuple[ProcessRecorder, torch.Tensor]) -> None:
    recorder, final = recorded
    assert torch.equal(recorder.snapshots[-1][-1].canvas, final)
    assert [[s.event.diffusion_step for s in column] for column in recorder.snapshots] == [[1, 3, 5, 7]] * 3


def test_recorder_knows_the_state_of_every_token(recorded: tuple[ProcessRecorder, torch.Tensor]) -> None:
    recorder, final = recorded
    for column, finished in zip(recorder.snapshots, (0, 3, 6), strict=True):
        for snapshot in column:
            assert int(snapshot.finished.sum()) == finished
            assert not (snapshot.finished & snapshot.in_progress).any()
            assert torch.equal(snapshot.canvas[snapshot.finished], final[snapshot.finished])
            untouched = ~(snapshot.finished | snapshot.in_progress)
            assert not snapshot.canvas[untouched].any()
        assert torch.equal(column[-1].canvas[column[-1].in_progress], final[column[-1].in_progress])


def test_process_picture_marks_untouched_tokens(recorded: tuple[ProcessRecorder, torch.Tensor]) -> None:
    recorder, _ = recorded

    def decode(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.mean(-1).view(-1, 1, 2, 4)

    pixels = np.asarray(recorder.draw(decode, 2, 4, scale=12))
    legend = 18 * 18
    untouched = 4 * (5 + 2 + 0) * 12 * 12  # 4 rows; 5, then 2, then no tokens
    assert int((pixels == BLANK).all(-1).sum()) == untouched + legend


def test_smoothing_keeps_straight_lines() -> None:
    line = np.linspace(3.0, -1.0, 200)
    assert np.allclose(_smoothed(line), line)
    noisy = np.random.default_rng(0).normal(size=200)
    assert _smoothed(noisy)[20:-20].std() < 0.6


def test_loss_curve_without_records_is_refused(tmp_path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"kind": "evaluation", "images_seen": 1, "mean": 1.0}) + "\n")
    with pytest.raises(UserError, match="no training record"):
        save_loss_curve(log, tmp_path / "loss.png")


@pytest.mark.parametrize(
    ("low", "high", "plain"), [(0.8, 35.0, {"1", "2", "5", "10", "20"}), (2.1, 4.6, {"3", "4"})]
)
@pytest.mark.parametrize("along", ["x", "y"])
def test_a_log_scale_has_plain_numbers(tmp_path, low, high, plain, along) -> None:
    with axes_of(tmp_path / "chart.png", 1, (4.0, 3.0)) as (axes,):
        axes.plot([low, high], [low, high])
        log_scale(axes, along)
        axes.figure.canvas.draw()
        axis = axes.xaxis if along == "x" else axes.yaxis
        told = {tick.get_text() for tick in [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]}
    assert plain <= told and not any("$" in text for text in told)
