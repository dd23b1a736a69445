"""Figures of reconstructions, and the commands."""

import json

import numpy as np
import pytest

from causalfusion.autoencode.evaluate import ReconstructionRequest, evaluate_autoencoder, reconstruct
from causalfusion.cli import run
from causalfusion.codec.codec import open_codec
from causalfusion.config import CodecConfig, DataConfig
from causalfusion.data import open_source
from causalfusion.data.loader import split_holdout
from causalfusion.errors import UserError
from causalfusion.evaluate.cards.card import load_card
from causalfusion.evaluate.features.pixels import PixelsExtractor
from causalfusion.evaluate.measures.frechet import gaussian_frechet_distance
from causalfusion.evaluate.measures.gaussian import GaussianStatistics
from causalfusion.evaluate.measures.similarity import peak_signal_to_noise

DATA = DataConfig(holdout=0.1)


def test_the_card_holds_the_figures_of_held_out_images(trained, tmp_path):
    _, folder = trained
    request = ReconstructionRequest(
        autoencoder=str(folder), data=DATA, out=tmp_path, held_out=True, features=("pixels:2",),
        batch_size=50, show_progress=False,
    )  # fmt: skip
    evaluate_autoencoder(request)
    card = load_card(tmp_path)
    source = open_source(DATA)
    _, held_out = split_holdout(len(source), 0.1)
    pixels = np.stack([source.read(i).image for i in np.sort(held_out).tolist()])
    ours = reconstruct(open_codec(CodecConfig(autoencoder=str(folder)), image_shape=(1, 8, 8)), pixels)
    count = len(held_out)
    assert card.samples["count"] == count and card.samples["latents"] == "mode"
    expected = peak_signal_to_noise(ours, pixels).mean()
    assert card.figures[f"psnr_pixels_{count}"].value == pytest.approx(expected, abs=1e-2)
    statistics = [GaussianStatistics.of(PixelsExtractor(2)(part).pool) for part in (ours, pixels)]
    found = card.figures[f"reconstruction_frechet_pixels2_{count}"]
    assert found.value == pytest.approx(gaussian_frechet_distance(*statistics), rel=1e-2)
    assert found.lower_is_better and card.figures[f"l1_pixels_{count}"].lower_is_better
    assert not card.figures[f"ssim_pixels_{count}"].lower_is_better
    assert (tmp_path / "grid.png").is_file()


def test_some_images(trained, tmp_path):
    _, folder = trained
    options = {"autoencoder": str(folder), "data": DATA, "out": tmp_path, "show_progress": False}
    card = evaluate_autoencoder(ReconstructionRequest(**options, images=7))
    assert {figure.count for figure in card.figures.values()} == {7}
    with pytest.raises(UserError, match="images is 1; expected at least 2"):
        evaluate_autoencoder(ReconstructionRequest(**options, images=1))


def test_features_of_one_name_are_refused(trained, tmp_path):
    """Their numbers would come together in one distance, as of twice as many images."""
    _, folder = trained
    request = ReconstructionRequest(
        autoencoder=str(folder), data=DATA, out=tmp_path, images=9, features=("pixels:4", "pixels:4"),
    )  # fmt: skip
    with pytest.raises(UserError, match="features pixels:4 and pixels:4 would have the same names"):
        evaluate_autoencoder(request)


def test_the_commands(tmp_path, capsys):
    out = tmp_path / "kl"
    options = ["--downsample", "2", "--width", "8", "--images", "64", "--batch-size", "16", "--minutes", "0"]
    assert run(["codec", "train", "--data.source", "digits", "--out", str(out), *options]) == 0
    said = capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert f"--codec.autoencoder {out} --codec.shift {config['shift_factor']:.6g} --codec.scale" in said
    card = tmp_path / "card"
    line = ["codec", "evaluate", "--data.source", "digits", "--autoencoder", str(out), "--images", "20"]
    assert run([*line, "--out", str(card)]) == 0
    assert "psnr_pixels_20" in capsys.readouterr().out
    assert run(["compare", str(card), str(card)]) == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["train", "--data.source", "digits", "--downsample", "16"], "the image height is 8; expected a"),
        (["train", "--data.source", "digits", "--downsample", "3"], "downsample is 3; expected a power"),
        (["train", "--data.source", "digits", "--kind", "vq"], "kind"),
        (["train", "no/such/folder"], "no/such/folder"),
        (["train", "--data.source", "digits", "--perceptual", "vgg"], "expected resnet-cifar:FILE"),
        (["train", "--data.source", "digits", "--minutes", "0"], "minutes is 0"),
        (["train", "--data.source", "digits", "--lr", "-1"], "--lr is -1"),
        (["evaluate", "--data.source", "digits", "--autoencoder", "nowhere"], "nowhere does not exist"),
        (["evaluate", "--data.source", "digits", "--autoencoder", "."], "has no config.json"),
        (["evaluate", "--data.source", "digits", "--data.cache", "x", "--autoencoder", "."], "data.cache is"),
        (["evaluate", "--autoencoder", "."], "codec evaluate needs data: give the path of images"),
        (["train"], "codec train needs data: give the path of images"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(line, said, tmp_path, capsys):
    assert run(["codec", *line, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_autoencoder_of_other_images(trained, tmp_path, capsys):
    _, folder = trained
    line = ["codec", "evaluate", "--data.source", "shapes", "--autoencoder", str(folder)]
    assert run([*line, "--out", str(tmp_path / "out")]) == 2
    assert "the images have 3 channels; the autoencoder" in capsys.readouterr().err
