"""Batches of images of several sizes, padded or several in a row: what they compute is what each image alone
does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from causalfusion.codec.encode import encode_to_cache
from causalfusion.errors import UserError
from causalfusion.estimate.memory import of_largest_images
from causalfusion.factorization import UNSEEN
from causalfusion.machine.processes import World
from causalfusion.mask import block_mask, dense_mask
from causalfusion.model.transformer import Transformer
from causalfusion.rows import fill_rows
from causalfusion.saved.folder import checkpoints_of
from causalfusion.train.batch import TokenBatch
from causalfusion.train.feed import open_training_data
from causalfusion.train.run import train
from causalfusion.train.step import Objective
from causalfusion.train.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:left out 2 of 92 images")
ALONE = World(0, 1, torch.device("cpu"))
SPLITS = {"distribution": "uniform", "split": "per_image"}
HEAD = {"kind": "per_token", "depth": 1, "width": 24}
FIT = {
    "model": {
        "conditioning": "adaln_zero", "num_class_tokens": 0, "adaln_rank": 8, "mlp": "swiglu",
        "position_embedding": "rope", "rope": {"base": 1e4, "pairs": "interleaved"},
        "qk_norm": {"kind": "layer_norm", "weight": "none"},
    },
    "factorization": {"distribution": "fixed", "num_ar_steps": 1, "loss_weight": "none"},
    "diffusion": {
        "path": "rectified_flow", "prediction_type": "velocity", "level_distribution": "logit_normal",
    },
    "sample": {"sampler": "heun"},
}  # fmt: skip
SETTINGS = {
    "causalfusion": {"factorization": {**SPLITS, "timesteps_per_ar_step": 2}},
    "lengths": {"factorization": SPLITS, "train": {"length_multiple": 8}},
    "fit": FIT,
    "levels of tokens": {
        **FIT,
        "model": {**FIT["model"], "rope": {"extrapolation": "ntk_pro2", "trained_side": 2}},
        "factorization": {**SPLITS, "timesteps": "per_token", "timesteps_per_ar_step": 2},
    },
    "raster positions": {
        "model": {"position_embedding": "rope", "rope": {"axes": "raster"}},
        "factorization": {"distribution": "uniform", "timesteps": "per_ar_step"},
    },
    "table": {"model": {"position_embedding": "learnable"}, "factorization": SPLITS},
    "per-token head": {
        "model": {"head": {**HEAD, "positions": True}, "position_embedding": "learnable"},
        "factorization": {**SPLITS, "timesteps_per_ar_step": 2},
    },
    "next token": {
        "model": {"head": {**HEAD, "ask": "previous"}, "position_embedding": "rope"},
        "factorization": {"distribution": "fixed", "num_ar_steps": 0, "order": "raster"},
        "sample": {"order": "raster", "num_ar_steps": 0},
    },
}  # fmt: skip
CASES = [(n, b) for n in SETTINGS for b in ("padded", "packed") if (n, b) != ("next token", "packed")]


@pytest.fixture
def mixed_run(native_run):
    def make(name: str, batches: str, out: str = "run", **sections):
        settings = {**SETTINGS[name], **sections}
        data = {"batches": batches, "packed_tokens": 17 if batches == "packed" else 0}
        return native_run(out, **{**settings, "data": {**data, **settings.pop("data", {})}})

    return make


def opened(config) -> tuple[Objective, Transformer, TokenBatch]:
    """The objective, a model with random weights where they would begin as zero, and a batch."""
    data = open_training_data(config, ALONE)
    trainer, batch = Trainer(data.config, ALONE), next(data.batches(32))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    assert isinstance(trainer.model, Transformer)
    return trainer.objective, trainer.model, batch


def loss_and_gradient(
    objective: Objective, model: Transformer, batch: TokenBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    piece = objective.arrange(batch, objective.draw(batch, seed=5, split_index=32))
    loss = objective.image_loss(objective.errors(model, piece).image, piece)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return loss.detach(), torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def alone(batch: TokenBatch, image: int) -> TokenBatch:
    """One of its images as a batch of its own grid."""
    assert batch.grids is not None
    rows, columns = batch.grids[image]
    one = replace(batch.slice(slice(image, image + 1)), grids=None, grid=(rows, columns))
    assert one.tokens.shape[1] == rows * columns
    return one


@pytest.mark.parametrize(("name", "batches"), CASES)
def test_a_batch_is_its_images_one_by_one(mixed_run, name, batches):
    """Loss and gradients are the means of those of each image alone, which come the way of one grid."""
    objective, model, batch = opened(mixed_run(name, batches))
    assert batch.grids is not None and len(set(batch.grids)) > 2
    loss, gradient = loss_and_gradient(objective, model, batch)
    each = [loss_and_gradient(objective, model, alone(batch, i)) for i in range(len(batch.grids))]
    assert float(loss) == pytest.approx(float(torch.stack([one[0] for one in each]).mean()), rel=1e-5)
    wanted = torch.stack([one[1] for one in each]).mean(0)
    assert float(wanted.abs().max()) > 1e-3
    assert torch.allclose(gradient, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_images_share_rows_and_padding_is_rare(mixed_run):
    objective, _, batch = opened(mixed_run("causalfusion", "packed"))
    piece = objective.arrange(batch, objective.draw(batch, seed=5, split_index=0))
    assert piece.rows is not None and batch.grids is not None
    lengths = [height * width for height, width in batch.grids]
    assert len(piece.rows.images) <= -(-sum(lengths) // 17) + 1
    assert int((piece.rows.images >= 0).sum(1).max()) > 2
    assert sorted(piece.rows.images[piece.rows.images >= 0].tolist()) == list(range(len(lengths)))


def test_rows_are_filled_in_the_order_of_the_stream():
    assert fill_rows([5, 6, 4, 3, 1], 10) == [[0, 2, 4], [1, 3]]
    assert fill_rows([10, 10], 10) == [[0], [1]]


@pytest.mark.parametrize("batches", ["padded", "packed"])
@pytest.mark.parametrize("name", ["causalfusion", "fit", "per-token head"])
def test_neither_padding_nor_a_neighbour_is_seen(mixed_run, name, batches):
    """Other values in padding, and another image beside it, change not a bit of an image's errors."""
    objective, model, batch = opened(mixed_run(name, batches))
    draws = objective.draw(batch, seed=5, split_index=0)
    assert batch.grids is not None
    lengths = torch.tensor([height * width for height, width in batch.grids])
    real = torch.arange(batch.tokens.shape[1]) < lengths[:, None]
    changed = batch.tokens.where(real[:, :, None], 7.0)
    changed[3] = -changed[3]
    found = []
    for tokens in (batch.tokens, changed):
        piece = objective.arrange(replace(batch, tokens=tokens), draws)
        found.append(objective.errors(model, piece).image)
    copies = found[0].shape[1] // real.shape[1]
    same = (found[0] == found[1]).all(2) | ~real.repeat(1, copies)
    others = torch.arange(len(lengths)) != 3
    assert same[others].all() and not same[3].all()


@pytest.mark.parametrize("batches", ["padded", "packed"])
@pytest.mark.parametrize("name", ["causalfusion", "per-token head"])
def test_masks_are_those_of_the_images(mixed_run, name, batches):
    """In a row, a token sees what the oracle of its own image says; in all forms of the mask."""
    objective, model, batch = opened(mixed_run(name, batches))
    piece = objective.arrange(batch, objective.draw(batch, seed=5, split_index=0))
    sequence = objective.pack(piece, piece.noised_from(0, objective.process))
    dense = dense_mask(sequence.clean, sequence.ar_step, owner=sequence.owner)
    block = block_mask(sequence.clean, sequence.ar_step, sequence.owner)
    index = torch.arange(sequence.num_tokens)[:, None], torch.arange(sequence.num_tokens)[None]
    steps, clean = sequence.ar_step, sequence.clean
    for row in range(4):
        assert block.mask_mod(torch.tensor(row), torch.tensor(0), *index).equal(dense[row, 0])
        for q in range(sequence.num_tokens):
            earlier = steps[row] <= steps[row, q] if clean[q] else steps[row] < steps[row, q]
            seen = torch.where(clean, earlier, (steps[row] == steps[row, q]) & ~clean[q])
            if sequence.owner is not None:
                seen &= sequence.owner[row] == sequence.owner[row, q]
            assert dense[row, 0, q].equal(seen) and seen.any()
    if sequence.owner is None:
        padding = steps >= UNSEEN
        assert (
            not dense[:, 0]
            .masked_fill(padding[:, :, None], False)[padding[:, None].expand_as(dense[:, 0])]
            .any()
        )
    found = [model(sequence, backend=backend).image for backend in ("dense", "segments")]
    with torch.no_grad():
        found.append(model(sequence, backend="flex").image)
    assert all(torch.allclose(one, found[0], atol=1e-5) for one in found)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints_of(folder)[-1] / "raw.safetensors")


def trained(config) -> dict[str, torch.Tensor]:
    return weights(train(config, device="cpu", show_progress=False).parent.parent)


def test_resumed_run_is_the_same_run(mixed_run):
    whole = trained(mixed_run("causalfusion", "packed", "whole", train={"images": 96}))
    for images in (48, 96):
        part = trained(mixed_run("causalfusion", "packed", "part", train={"images": images}))
    assert all(value.equal(part[key]) for key, value in whole.items())


def test_the_same_images_whatever_the_layout_and_the_process(mixed_run):
    """Padded, packed, in micro-batches, shared by two processes: one stream, one result to rounding."""
    configs = [mixed_run("fit", batches) for batches in ("padded", "packed")]
    whole = open_training_data(configs[0], ALONE).batches(32)
    halves = [
        open_training_data(configs[1], World(rank, 2, torch.device("cpu"))).batches(32) for rank in (0, 1)
    ]
    for _ in range(4):
        batch, parts = next(whole), [next(half) for half in halves]
        assert batch.grids == sum((part.grids or () for part in parts), ())
        for index, part in enumerate(parts):
            own = batch.slice(slice(8 * index, 8 * index + 8))
            assert torch.equal(own.tokens, part.tokens) and torch.equal(own.labels, part.labels)
            assert torch.equal(own.sample_indices, part.sample_indices)
    sections = {"images": 64, "checkpoint_every": 100, "evaluate_every": 0}
    one = trained(mixed_run("fit", "padded", "one", train=sections))
    other = trained(mixed_run("fit", "packed", "other", train={**sections, "grad_accumulation": 4}))
    assert all(torch.allclose(value, other[key], atol=1e-4) for key, value in one.items())


def test_padding_counts_as_no_arithmetic(mixed_run):
    """What the log calls needed is the sum over images, each with the tokens and AR steps it has."""
    config = open_training_data(mixed_run("causalfusion", "packed"), ALONE).config
    trainer, batch = Trainer(config, ALONE), next(open_training_data(config, ALONE).batches(0))
    result = trainer.step(batch)
    assert batch.grids is not None
    assert [sum(split) for split in result.splits] == [height * width for height, width in batch.grids]
    assert result.split == result.splits[0] and len({len(split) for split in result.splits}) > 2


def test_memory_is_that_of_the_largest_images(native_run):
    config = open_training_data(native_run(), ALONE).config
    assert config.model.num_tokens == 9
    assert of_largest_images(config).model.num_tokens >= 10
    square = replace(config, data=replace(config.data, max_area=144))
    assert of_largest_images(square) is square


@pytest.mark.parametrize("batches", ["padded", "packed"])
def test_a_cache_gives_the_same_batches(mixed_run, tmp_path, batches):
    encode_to_cache(mixed_run("fit", "buckets"), tmp_path / "cache", batch_size=7, device="cpu")
    read = open_training_data(mixed_run("fit", batches), ALONE).batches(16)
    cached = mixed_run("fit", batches, data={"cache": str(tmp_path / "cache")})
    kept = open_training_data(cached, ALONE).batches(16)
    for _ in range(6):
        one, other = next(read), next(kept)
        assert one.grids == other.grids and torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.labels, other.labels)


def test_all_images_have_their_turn_once_an_epoch(mixed_run):
    """The plain stream: also the images of rare grids, which buckets repeat within a batch."""
    data = open_training_data(mixed_run("fit", "padded", data={"holdout": 0.1}), ALONE)
    batches, seen, count = data.batches(0), [], len(data.train_indices)
    while len(seen) < count:
        batch = next(batches)
        assert batch.grids is not None
        lengths = [height * width for height, width in batch.grids]
        seen += [tokens[:n].numpy().tobytes() for tokens, n in zip(batch.tokens, lengths, strict=True)]
    assert len(set(seen[:count])) == count


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"image_size": 8}}, "expected buckets, where data.image_size is not native"),
        ({"data": {"packed_tokens": 7}}, "packed_tokens is 7; expected at least 8, the tokens of"),
        ({"text": {"tokenizer": "train"}}, "expected buckets, for text"),
        (
            {"model": {"head": HEAD, "context": "bidirectional"}},
            "expected buckets, for a bidirectional context",
        ),
        (SETTINGS["next token"], "expected buckets or padded, as the head asks by the token before"),
    ],
)  # fmt: skip
def test_what_cannot_stand_together_is_one_line(native_run, sections, message):
    data = {"batches": "packed", **sections.get("data", {})}
    with pytest.raises(UserError, match=message) as caught:
        train(native_run(**{**sections, "data": data}), device="cpu", show_progress=False)
    assert "\n" not in str(caught.value)
