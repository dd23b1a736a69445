"""Drawing and editing at other sizes than those of training."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion import cli
from causalfusion.codec.codec import Codec
from causalfusion.config import ModelConfig, RopeConfig, SampleConfig
from causalfusion.errors import UserError
from causalfusion.factorization import Plan, ar_step_of, grid_tensor, places_of
from causalfusion.generate.context import prefill
from causalfusion.generate.pipeline import Pipeline
from causalfusion.model.positions import sincos_positions
from causalfusion.model.rotation import image_rotation
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import PackedSequence, class_segment, pack_training

GRID = (3, 5)
CONFIG = ModelConfig(hidden_size=32, depth=3, num_heads=2, num_class_tokens=4, num_classes=5, token_dim=3,
                     grid_height=4, grid_width=4)  # fmt: skip
ROPE = RopeConfig(extrapolation="ntk")
STEPS = SampleConfig(diffusion_steps=[3], num_ar_steps=3)


def make_model(**changes) -> Transformer:
    model, generator = Transformer(replace(CONFIG, **changes)), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    "changes",
    [
        {"position_embedding": "sincos"},
        {"position_embedding": "learnable"},
        {"position_embedding": "rope"},
        {"position_embedding": "rope", "rope": ROPE},
        {"position_embedding": "rope", "rope": RopeConfig(axes="raster")},
    ],
    ids=lambda changes: str(changes),
)
def test_cached_generation_equals_the_masked_pass_on_another_grid(changes):
    model, generator = make_model(**changes), torch.Generator().manual_seed(1)
    clean, noised = torch.randn(2, 2, 15, 3, generator=generator).unbind(0)
    order = torch.stack([torch.randperm(15, generator=generator) for _ in range(2)])
    labels, timesteps, sizes = torch.tensor([1, 4]), torch.tensor([[30], [30]]), [4, 1, 10]
    plan = Plan(order, ar_step_of(sizes)[None], GRID[1], grid_tensor(CONFIG, GRID))
    masked = model(pack_training(labels, 4, clean, noised, plan, timesteps), backend="dense").image

    context, start, predictions = prefill(model, labels, SampleConfig(), grid=GRID), 0, []
    for step, size in enumerate(sizes, start=1):
        part = slice(start, start + size)
        ar_step, cache = torch.full((1, size), step), context.cache
        for role, tokens, timestep in (("noised", noised, 30), ("clean", clean, None)):
            segment = context.image.segment(role, tokens[:, part], ar_step, order[:, part], timestep)
            sequence = PackedSequence((class_segment(labels, 0), segment))
            found = model(sequence, cache.attend(sequence)).image
            if role == "noised":
                predictions.append(found)
        cache.commit(sequence)
        start += size
    difference = (torch.cat(predictions, 1) - masked).abs().max() / masked.abs().max()
    assert difference <= 1e-5


def test_fixed_positions_of_another_grid_are_those_of_its_places():
    """What a model of 3x5 tokens has as a table, one of 4x4 tokens computes."""
    own, other = make_model(grid_height=3, grid_width=5), make_model()
    other.load_state_dict(own.state_dict())
    assert torch.equal(own.image_position, sincos_positions(32, *GRID))
    tokens = torch.randn(2, 15, 3, generator=torch.Generator().manual_seed(0))
    order, labels = torch.arange(15).expand(2, -1), torch.tensor([0, 1])
    predicted = []
    for model in (own, other):
        plan = Plan(order, ar_step_of([7, 8])[None], 5, grid_tensor(model.config, GRID))
        assert (plan.grid is None) == (model is own)
        predicted.append(
            model(pack_training(labels, 4, tokens, tokens, plan, torch.tensor([[5], [5]]))).image
        )
    assert torch.allclose(*predicted, atol=1e-6)


def test_a_rule_for_larger_grids_leaves_the_trained_one_alone():
    model, places = make_model(position_embedding="rope"), places_of(torch.arange(16), 4)[None]
    before = model.rope.clone()
    model.extrapolate("ntk")
    assert torch.equal(model.rope, before)
    larger = torch.tensor([[8, 4]])
    turned = image_rotation(places, larger, model.config)
    model.extrapolate("none")
    plain = image_rotation(places, larger, model.config)
    rows, columns = slice(0, 4), slice(4, 8)  # halves of a head of 16: pairs of rows, then of columns
    assert torch.equal(turned[..., columns], plain[..., columns])
    assert not torch.equal(turned[..., rows], plain[..., rows])
    assert torch.equal(turned[..., 0], plain[..., 0]), "the fastest frequency stays"


@pytest.mark.parametrize("name", ["classes", "both"])
def test_images_of_a_size_are_their_own(models, name):
    """An image depends on its index, its condition and its size, not on the batch it is drawn in."""
    pipeline = Pipeline.load(models[name]).at(12, 20)
    prompts = None if name == "classes" else ["a small red circle", "a large blue star"]
    together = pipeline.generate([0, 2], STEPS, prompts=prompts, seed=3, image_indices=[5, 9])
    assert together.shape == (2, 3, 12, 20)
    for row, index in enumerate((5, 9)):
        one = None if prompts is None else prompts[row : row + 1]
        alone = pipeline.generate([2 * row], STEPS, prompts=one, seed=3, image_indices=[index])
        assert torch.allclose(together[row], alone[0], atol=1e-4)
    square = Pipeline.load(models[name]).at(8, 8).generate([0], STEPS, prompts=prompts and prompts[:1])
    assert torch.equal(
        square, Pipeline.load(models[name]).generate([0], STEPS, prompts=prompts and prompts[:1])
    )


def test_candidates_are_judged_at_their_size(models, tmp_path):
    given = ["sample", "a small red circle", "--candidates", "2", "--images", "2", "--size", "12x4"]
    given += ["--diffusion-steps", "2", "--model", str(models["text"]), "--out", str(tmp_path / "s")]
    assert cli.run([*given, "--device", "cpu"]) == 0
    assert Image.open(tmp_path / "s" / "000001.png").size == (12, 4)


def test_several_sizes_in_one_folder_and_each_image_as_alone(models, tmp_path, capsys):
    given = ["sample", "--model", str(models["classes"]), "--diffusion-steps", "2", "--device", "cpu"]
    out = ["--out", str(tmp_path / "all")]
    assert cli.run([*given, "--size", "12x4", "8", "4x16", "--images", "7", *out]) == 0
    sizes = [Image.open(tmp_path / "all" / f"{n:06d}.png").size for n in range(7)]
    assert sizes == [(12, 4), (8, 8), (4, 16)] * 2 + [(12, 4)]
    settings = json.loads((tmp_path / "all" / "settings.json").read_text())
    assert settings["sizes"] == ["12x4", "8x8", "4x16"]
    # Image 4 is that of a run of one size; and what is missing is made again, as it was.
    assert cli.run([*given, "--size", "8", "--images", "5", "--out", str(tmp_path / "one")]) == 0
    same = [np.asarray(Image.open(tmp_path / name / "000004.png")) for name in ("all", "one")]
    assert np.array_equal(*same)
    capsys.readouterr()
    assert cli.run([*given, "--size", "12x4", "8", "--output", "npz", "--out", str(tmp_path / "npz")]) == 2
    assert "--output npz holds images of one size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("10x8", "the image width is 10; expected a multiple of 4"),
        ("8x2", "the image height is 2; expected a multiple of 4 (downsampling 1 x patch size 4), such as 4"),
        ("8by8", "--size is '8by8'; expected WIDTHxHEIGHT in pixels"),
    ],
)
def test_a_size_that_does_not_fit_is_one_line(models, tmp_path, capsys, size, message):
    given = ["sample", "--model", str(models["classes"]), "--size", size, "--out", str(tmp_path / "s")]
    assert cli.run([*given, "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line and not (tmp_path / "s").exists()


def test_a_rule_needs_rotary_positions(models, tmp_path, capsys):
    given = ["sample", "--model", str(models["classes"]), "--rope-extrapolation", "ntk"]
    assert cli.run([*given, "--out", str(tmp_path / "s"), "--device", "cpu"]) == 2
    assert "the positions of this model are sincos" in capsys.readouterr().err


def test_an_image_is_edited_in_its_own_shape(models, tmp_path):
    """Its own pixels where nothing may change, at 2 x 1 tokens: the area of the model's 8x8 images."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 13, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    mask = np.zeros((5, 13), np.uint8)
    mask[:, 9:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = ["edit", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "mask.png"), "--class", "dog"]
    given += ["--size", "native", "--model", str(models["classes"]), "--out", str(tmp_path / "e")]
    assert cli.run([*given, "--diffusion-steps", "2", "--device", "cpu"]) == 0
    edited = np.asarray(Image.open(tmp_path / "e" / "edited-00.png"))
    original = np.asarray(Image.open(tmp_path / "e" / "original.png"))
    changed = np.asarray(Image.open(tmp_path / "e" / "mask.png")) > 0
    assert edited.shape == original.shape == (4, 12, 3) and changed.any()
    assert (
        np.array_equal(edited[~changed], original[~changed]) and (edited[changed] != original[changed]).any()
    )


def test_a_model_of_any_size_reads_and_edits_images_in_their_own(models):
    """Tokens stand where they are in the image, not where they would be in one of the default size."""
    fixed = Pipeline.load(models["both"])
    codec = Codec(replace(fixed.codec.config, max_area=4096), None)
    pipeline = replace(fixed, codec=codec)
    height, width = 3 * codec.cell, 2 * codec.cell
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sized = pipeline.at(height, width)
    assert pipeline.caption(images) == sized.caption(images)
    settings = SampleConfig(diffusion_steps=[2], num_ar_steps=2)
    for mask in ("right", torch.arange(height)[:, None].expand(-1, width) < height // 2):
        found = [p.edit(images, mask, ["dog"] * 2, settings) for p in (pipeline, sized)]
        assert found[0].equal(found[1]) and found[0].shape == images.shape
    with pytest.raises(UserError, match=f"images have {width}x{height} pixels; expected "):
        pipeline.draw_next([[images[0]]])
    with pytest.raises(UserError, match="the model's are"):
        fixed.caption(images)


def test_a_picture_of_less_than_a_token_is_one_line(models, tmp_path, capsys):
    Image.new("RGB", (20, 3)).save(tmp_path / "thin.png")
    given = ["edit", str(tmp_path / "thin.png"), "--region", "left", "--class", "dog", "--size", "native"]
    assert cli.run([*given, "--model", str(models["classes"]), "--out", str(tmp_path / "e")]) == 2
    assert "has 20x3 pixels; expected at least one token, 4x4" in capsys.readouterr().err


def test_a_size_of_one_pipeline_leaves_another_alone(models):
    pipeline = Pipeline.load(models["classes"])
    assert pipeline.at(16, 8).grid == (4, 2) and pipeline.grid == (2, 2)
    with pytest.raises(UserError, match="the image height is 9"):
        pipeline.at(9, 8)
