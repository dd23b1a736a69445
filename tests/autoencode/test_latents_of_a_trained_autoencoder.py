"""A model trained on the latents of an autoencoder that was trained here."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from causalfusion.codec.encode import encode_to_cache
from causalfusion.config.recipes import load_config
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.processes import World
from causalfusion.train.feed import open_training_data
from causalfusion.train.run import train

CPU = World(0, 1, torch.device("cpu"))


def settings(folder: Path, out: Path):
    return load_config(
        out=str(out),
        data={"holdout": 0.1},
        codec={"autoencoder": str(folder), "normalization": "measured"},
        model={"hidden_size": 32, "depth": 2, "num_heads": 2, "num_class_tokens": 2},
        train={"images": 64, "batch_size": 16, "evaluate_every": 0, "sample_minutes": 0},
        sample={"diffusion_steps": [4]},
    )


def test_training_tokens_are_drawn_alike_with_and_without_a_cache(trained, tmp_path):
    _, folder = trained
    run = settings(folder, tmp_path / "run")
    encode_to_cache(run, tmp_path / "latents", dtype="float32")
    given = replace(run.codec, normalization="given")
    direct = next(open_training_data(replace(run, codec=given), CPU).batches(0))
    cached = replace(run, codec=given, data=replace(run.data, cache=str(tmp_path / "latents")))
    found = next(open_training_data(cached, CPU).batches(0))
    assert torch.allclose(found.tokens, direct.tokens, atol=1e-5)
    mode = replace(run, codec=replace(given, latents="mode"))
    difference = (direct.tokens - next(open_training_data(mode, CPU).batches(0)).tokens).flatten(1).std(1)
    assert (difference > 0).all()
    if trained[0] == "fixed_variance":  # each image has its own deviation; their root mean square is 0.9375
        assert difference.max() > 2 * difference.min()
        assert difference.square().mean().sqrt() == pytest.approx(0.9375, rel=0.5)


def test_a_model_of_the_latents_draws(trained, tmp_path):
    _, folder = trained
    model = train(settings(folder, tmp_path / "run"), show_progress=False)
    pipeline = Pipeline.load(model)
    assert pipeline.spec.autoencoder_fingerprint and pipeline.spec.codec.autoencoder == str(folder)
    images = pipeline.generate([0, 1], replace(settings(folder, tmp_path).sample, num_ar_steps=2))
    assert images.shape == (2, 1, 8, 8) and bool((images.abs() <= 1).all())
    assert not torch.equal(images[0], images[1])
