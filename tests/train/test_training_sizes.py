"""Runs on images of any size: the same run however often it is stopped, and one grid as ever."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import forked
from causalfusion.cli import prepare
from causalfusion.codec.encode import encode_to_cache
from causalfusion.diffusion.process import make_process
from causalfusion.errors import UserError
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.processes import World
from causalfusion.model.positions import sincos_positions
from causalfusion.saved.folder import checkpoints_of, load_model
from causalfusion.train.feed import open_training_data
from causalfusion.train.loss_map import loss_map
from causalfusion.train.run import train
from causalfusion.train.step import Objective
from causalfusion.train.trainer import Trainer

ALONE = World(0, 1, torch.device("cpu"))


pytestmark = pytest.mark.filterwarnings("ignore:left out 2 of 92 images")


def assert_same_model(first: Path, second: Path) -> None:
    for name in ("model.safetensors", "raw.safetensors", "state/optimizer.safetensors"):
        a, b = load_file(first / name), load_file(second / name)
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert value.equal(b[key]), f"{name} {key} differs"


@pytest.mark.parametrize("position", ["rope", "learnable", "sincos"])
def test_resumed_run_is_the_same_run(native_run, position):
    options = {"model": {"position_embedding": position}}
    whole = train(native_run("whole", **options), device="cpu", show_progress=False)
    for images in (64, 112, 160):
        config = native_run("part", train={"images": images}, **options)
        part = train(config, device="cpu", show_progress=False)
    assert_same_model(whole, part)


def test_killed_run_goes_on_as_the_same_run(native_run, one_thread):
    options = {"images": 800, "checkpoint_every": 7, "evaluate_every": 30}
    config = native_run("killed", train=options)
    process = forked.start(forked.train_until_stopped, config)
    try:
        while len(checkpoints_of(Path(config.out))) < 2:
            assert process.is_alive(), "the run ended before it could be killed"
            time.sleep(0.02)
    finally:
        process.kill()
        process.join()
    resumed = train(config, device="cpu", show_progress=False)
    whole = train(native_run("whole", train=options), device="cpu", show_progress=False)
    assert_same_model(whole, resumed)


def test_processes_share_what_one_process_has(native_run):
    config = native_run()
    alone = open_training_data(config, ALONE).batches(32)
    parts = [open_training_data(config, World(rank, 2, torch.device("cpu"))).batches(32) for rank in (0, 1)]
    grids = set()
    for _ in range(8):
        whole, halves = next(alone), [next(part) for part in parts]
        assert whole.grid == halves[0].grid == halves[1].grid
        assert torch.equal(whole.tokens, torch.cat([half.tokens for half in halves]))
        assert torch.equal(whole.sample_indices, torch.cat([half.sample_indices for half in halves]))
        assert whole.grid is not None and whole.tokens.shape[1] == whole.grid[0] * whole.grid[1]
        grids.add(whole.grid)
    assert grids == {(2, 2), (2, 3), (3, 2), (2, 4)}


@pytest.mark.parametrize("position", ["rope", "learnable", "sincos"])
@pytest.mark.parametrize("head", ["joint", "per_token"])
def test_the_models_own_grid_is_nothing_special(native_run, position, head):
    """A batch that says its grid, where that is the model's, is to the bit a batch that does not."""
    data = open_training_data(
        native_run(model={"position_embedding": position, "head": {"kind": head}}), ALONE
    )
    batch = next(b for b in data.batches(0) if b.grid == (3, 3) or b.grid == (2, 2))
    config = replace(
        data.config, model=replace(data.config.model, grid_height=batch.grid[0], grid_width=batch.grid[1])
    )
    trainer = Trainer(config, ALONE)
    losses = []
    for one in (batch, replace(batch, grid=None)):
        draws = trainer.objective.draw(one, seed=1, split_index=0)
        assert draws.plan.grid is None
        piece = trainer.objective.arrange(one, draws)
        losses.append(trainer.objective.errors(trainer.model, piece).image)
    assert torch.equal(*losses)


def test_every_image_counts_alike_whatever_its_grid(native_run):
    """The loss is the mean over an image's own tokens: FiTv2's rescaling, where nothing is padded."""
    data = open_training_data(native_run(), ALONE)
    objective = Objective(data.config, make_process(data.config.diffusion))
    batch = next(b for b in data.batches(0) if b.grid == (2, 4))
    draws = objective.draw(batch, seed=0, split_index=0)
    piece = objective.arrange(batch, draws)
    errors = torch.ones(len(batch.tokens), 8, batch.tokens.shape[2])
    plain = replace(data.config, factorization=replace(data.config.factorization, loss_weight="none"))
    found = Objective(plain, objective.process).image_loss(errors, piece)
    assert float(found) == pytest.approx(float(objective.process.weight(piece.levels).mean()))


def test_loss_map_takes_all_grids(native_run):
    config = native_run(data={"holdout": 0.4})
    data = open_training_data(config, ALONE)
    trainer = Trainer(data.config, ALONE)
    batches = list(data.evaluation_batches(16))
    assert {batch.grid for batch in batches} == {(2, 2), (2, 3), (3, 2), (2, 4)}
    numbers = torch.cat([batch.sample_indices for batch in batches])
    assert sorted(numbers.tolist()) == list(range(min(len(data.held_out), 32)))
    assert 0 < loss_map(trainer.model, make_process(data.config.diffusion), data.config, batches).mean < 100


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"factorization": {"given_order": [0, 1, 2, 3]}}, "given_order is the order of one grid"),
        (
            {"factorization": {"distribution": "fixed", "num_ar_steps": 5}},
            "num_ar_steps is 5, and the smallest image has 4 tokens",
        ),
        ({"data": {"max_area": 15}}, "data.max_area is 15; expected at least 16, the pixels of one token"),
    ],
)
def test_what_needs_one_size_is_one_line(native_run, sections, message):
    with pytest.raises(UserError, match=message) as caught:
        train(native_run(**sections), device="cpu", show_progress=False)
    assert "\n" not in str(caught.value)


def test_sample_grids_show_the_sizes_of_the_data(native_run, monkeypatch):
    """The most frequent ones, the first with most rows: 15 of 20x40 pixels come last, and not at all."""
    drawn, generate = [], Pipeline.generate

    def watched(pipeline, labels, *rest, **named):
        drawn.append((pipeline.image_size, len(labels)))
        return generate(pipeline, labels, *rest, **named)

    monkeypatch.setattr(Pipeline, "generate", watched)
    config = native_run(train={"images": 16, "sample_every": 1}, sample={"diffusion_steps": [1]})
    train(config, device="cpu", show_progress=False)
    assert drawn[:3] == [((8, 8), 8), ((8, 12), 4), ((12, 8), 4)]
    with Image.open(Path(config.out) / "samples" / f"{16:012d}.png") as picture:
        assert picture.height > picture.width / 2
    unfit = native_run("other", train={"sample_every": 1}, sample={"sizes": [4, 5]})
    with pytest.raises(UserError, match=r"sample.sizes .* expected"):
        train(unfit, device="cpu", show_progress=False)


def test_a_cache_gives_the_same_run(native_run, tmp_path):
    """From latents on the disk, the same weights as from the pictures, to the bit (pixels are exact)."""
    from_pictures = train(native_run("pictures-run"), device="cpu", show_progress=False)
    encode_to_cache(native_run(), tmp_path / "cache", batch_size=7, device="cpu")
    config = native_run("cached", data={"cache": str(tmp_path / "cache")})
    cached = train(config, device="cpu", show_progress=False)
    for name in ("model.safetensors", "raw.safetensors"):
        a, b = load_file(from_pictures / name), load_file(cached / name)
        assert all(value.equal(b[key]) for key, value in a.items())


@pytest.mark.parametrize("command", ["finetune", "distill"])
def test_what_goes_on_from_a_model_of_any_size_has_its_largest_size(native_run, tmp_path, command):
    """Not that of a new run, 65536 pixels, at which the model never was. A model that is no run's."""
    config = native_run()
    area = config.data.max_area
    model = tmp_path / "model"
    shutil.copytree(train(config, device="cpu", show_progress=False), model)
    shutil.rmtree(model / "state")
    options = ["--data.path", config.data.path, "--data.source", "folder", "--data.image-size", "native"]
    steps = ["--steps", "1"] if command == "distill" else []
    line = [command, str(model), *steps, *options]
    assert prepare(line).settings["data"]["max_area"] == area != 65_536
    told = tmp_path / "native.toml"
    told.write_text('[data]\nimage_size = "native"\n')
    assert prepare([*line[:-2], "--config", str(told)]).settings["data"]["max_area"] == area


def test_learned_positions_are_interpolated_for_larger_images(tiny_run):
    """A model of 4x4 tokens goes on at 8x8: its table bicubically, all else as it was."""
    small = tiny_run("small", model={"position_embedding": "learnable"}, train={"images": 32})
    folder = train(small, device="cpu", show_progress=False)
    large = tiny_run(
        "larger", model={"position_embedding": "learnable"}, data={"image_size": 16},
        train={"init": str(folder), "images": 32, "trainable": "embeddings_norms_biases", "class_dropout": 0},
    )  # fmt: skip
    after, spec = load_model(train(large, device="cpu", show_progress=False))
    before, _ = load_model(folder)
    assert spec.model.grid_height == 8 and after.image_position.shape == (64, 32)
    # The first table is a sine table, little trained: that of 8x8 has its places between those of 4x4.
    coarse, fine = sincos_positions(32, 4, 4), sincos_positions(32, 8, 8)
    assert not torch.allclose(after.image_position, fine, atol=0.2)
    middle = after.image_position.unflatten(0, (8, 8))[2:6, 2:6].mean((0, 1))
    assert torch.allclose(middle, coarse.unflatten(0, (4, 4))[1:3, 1:3].mean((0, 1)), atol=0.1)
    old = dict(before.named_parameters())
    changed = {n for n, p in after.named_parameters() if p.shape != old[n].shape or not p.equal(old[n])}
    frozen = {name for name, _ in after.named_parameters()} - changed
    assert any("attn" in name and name.endswith("weight") for name in frozen)
    assert not any(name.endswith(".fc1.weight") for name in changed)
    assert {"image_position", "image_in.weight", "image_in.bias", "image_out.weight"} <= changed


def test_small_patches_after_large_ones_begin_with_all_but_the_layers_of_tokens(tiny_run):
    folder = train(tiny_run("coarse", train={"images": 32}), device="cpu", show_progress=False)
    fine = tiny_run("fine", codec={"patch_size": 1}, train={"init": str(folder), "images": 32, "lr": 1e-12})
    with pytest.warns(UserWarning, match="layers into and out of them begin anew"):
        after, spec = load_model(train(fine, device="cpu", show_progress=False))
    before, _ = load_model(folder)
    assert (spec.model.num_tokens, spec.model.token_dim) == (64, 1)
    old = dict(before.named_parameters())
    for name, parameter in after.named_parameters():
        same = parameter.shape == old[name].shape and torch.allclose(parameter, old[name], atol=1e-6)
        assert same != (name.partition(".")[0] in ("image_in", "image_out")), name
    other = tiny_run(
        "wider", codec={"patch_size": 1}, model={"hidden_size": 64}, train={"init": str(folder), "images": 32}
    )
    with pytest.raises(UserError, match=r"hidden_size|shape|weight"), pytest.warns(UserWarning):
        train(other, device="cpu", show_progress=False)
