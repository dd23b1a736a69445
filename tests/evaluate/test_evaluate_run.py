"""`evaluate` and `compare`: interrupted, extended, shared by processes, the same figures."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import forked
from causalfusion import cli
from causalfusion.config import CodecConfig, ModelConfig, SampleConfig
from causalfusion.errors import UserError
from causalfusion.evaluate.cards.card import Card, load_card
from causalfusion.evaluate.presets import load_evaluation
from causalfusion.evaluate.request import EvaluateRequest
from causalfusion.evaluate.run import evaluate
from causalfusion.evaluate.samples.sample_set import SampleSet, parts_of
from causalfusion.files import in_use
from causalfusion.generate.pipeline import Pipeline
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import ModelSpec, load_model, save_model

SETTINGS = SampleConfig(num_ar_steps=2, diffusion_steps=[2])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model of 8x8 digits with random weights."""
    folder = tmp_path_factory.mktemp("model")
    config = ModelConfig(
        hidden_size=32, depth=1, num_heads=2, num_class_tokens=2, num_classes=10, token_dim=4, grid_height=4,
        grid_width=4,
    )  # fmt: skip
    codec = CodecConfig(
        patch_size=2, image_height=8, image_width=8, image_channels=1, latent_channels=1, downsample=1
    )
    torch.manual_seed(0)
    network = Transformer(config)
    weights = {name: value + 0.1 * torch.randn(value.shape) for name, value in network.state_dict().items()}
    save_model(folder, ModelSpec(model=config, codec=codec, class_names=list("0123456789")), weights)
    (folder / "sample.toml").write_text("seed = 7\nnum_ar_steps = 2\ndiffusion_steps = [2]\n")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def request_of(model, cache, tmp_path):
    def make(out: str = "out", **changes) -> EvaluateRequest:
        values = {
            "model": model, "reference": "digits", "features": ["pixels:4"], "images": 60, "batch_size": 16,
            "measures": ["frechet", "precision_recall"], "cache": cache, "settings": SETTINGS,
            "device": "cpu", "show_progress": False, "out": tmp_path / out, **changes,
        }  # fmt: skip
        return EvaluateRequest(**values)

    return make


def evaluated(request: EvaluateRequest) -> Card:
    card = evaluate(request)
    assert card is not None
    return card


def values(card: Card) -> dict[str, float]:
    return {name: figure.value for name, figure in card.figures.items()}


def test_a_card_says_all_that_figures_depend_on(request_of, model):
    request = request_of()
    card = evaluated(request)
    assert list(card.figures) == ["frechet_pixels4_60", "precision_pixels4_60", "recall_pixels4_60"]
    assert load_card(request.out) == card
    samples = card.samples
    assert samples["count"] == 60 and samples["weights"] == "ema" and samples["seed"] == 0
    assert samples["labels"] == "balanced: image i has class i mod 10"
    digest = subprocess.run(["sha256sum", str(model / "model.safetensors")], capture_output=True, text=True)
    assert samples["checkpoint_sha256"] == digest.stdout.split()[0]
    assert samples["sample"]["diffusion_steps"] == [2] and samples["sample"]["order"] == "random"
    assert card.references[0]["count"] == 1797 and card.features[0]["name"] == "pixels:4"
    assert {"date", "device", "versions", "seconds", "processes"} <= card.run.keys()
    assert Image.open(request.out / "grid.png").width > 8 * 90
    images = SampleSet(request.out / "samples")
    pixels = np.concatenate([batch.pixels for batch in images.batches(60)])
    pipeline = Pipeline.load(model)
    again = pipeline.codec.to_uint8(pipeline.generate([7, 8], SETTINGS, image_indices=[27, 28]))
    assert abs(pixels[27:29].astype(int) - again).max() <= 1


def test_a_grown_set_keeps_what_it_has(request_of):
    small, large = request_of(), request_of("large", images=100, batch_size=64)
    evaluated(small)
    times = {path: path.stat().st_mtime_ns for *_, path in parts_of(small.out / "samples")}
    grown = evaluated(replace(small, images=100))
    assert times.items() <= {p: p.stat().st_mtime_ns for *_, p in parts_of(small.out / "samples")}.items()
    assert values(grown) == pytest.approx(values(evaluated(large)), rel=1e-2)
    again = evaluated(replace(small, images=60))
    assert again.samples["count"] == 60, "a part of a set may be measured"


def test_other_settings_in_the_same_folder_are_refused(request_of):
    request = request_of(images=16)
    evaluated(request)
    for change, message in (
        ({"seed": 1}, "seed 0, and 1 is asked for"),
        (
            {"settings": replace(SETTINGS, guidance_scale=2.0)},
            "guidance_scale 1.0, and 2.0 is asked for",
        ),
        ({"classes": ["3"]}, "labels balanced: .* and given: 3 is asked for"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(replace(request, **change))


def test_what_is_read_measures_like_what_was_generated(request_of, model, tmp_path, capsys):
    """A sample set, the PNGs of `sample`, its .npz: the same figures, and the classes are known."""
    made = evaluated(request_of(features=["digits"], measures=["frechet", "class_accuracy"]))
    options = ["--images", "60", "--num-ar-steps", "2", "--diffusion-steps", "2", "--seed", "0"]
    out = str(tmp_path / "sampled")
    outputs = ["--output", "png", "grid", "npz"]
    assert cli.run(["sample", "--model", str(model), "--out", out, *options, *outputs]) == 0
    for samples in (str(tmp_path / "out"), out, f"{out}/samples.npz"):
        asked = {"features": ["digits"], "images": None, "measures": ["frechet", "class_accuracy"]}
        asked["settings"] = SampleConfig()
        read = evaluated(request_of("read", model=None, samples=samples, **asked))
        assert values(read) == pytest.approx(values(made), rel=1e-2)
        assert read.samples["count"] == 60
    assert read.samples.get("sample") is None, "an .npz does not say how it was made"


def test_a_reference_that_changed_is_measured_anew(request_of, tmp_path):
    """Its features are kept: never for other pictures under the same names."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)

    def write(folder: Path, images: np.ndarray) -> str:
        folder.mkdir(exist_ok=True)
        for i, one in enumerate(images):
            Image.fromarray(one).save(folder / f"{i:02d}.bmp")  # all of one size, whatever they show
        return str(folder)

    samples, real = write(tmp_path / "samples", pixels // 2), write(tmp_path / "real", pixels)

    def figure() -> float:
        asked = {"samples": samples, "reference": real, "images": None, "settings": SampleConfig()}
        card = evaluated(request_of(model=None, measures=["frechet"], **asked))
        return next(iter(values(card).values()))

    before = figure()
    assert figure() == before
    write(tmp_path / "real", pixels // 4)
    assert abs(figure() - before) > 0.01 * before
    write(tmp_path / "real", pixels)
    assert figure() == pytest.approx(before)


def test_options_that_would_change_nothing_are_refused(request_of, tmp_path):
    """Images that are read do not depend on how others are made."""
    for change, option in (
        ({"seed": 3}, "--seed"), ({"weights": "raw"}, "--weights"),
        ({"settings": SETTINGS}, "--num-ar-steps, --diffusion-steps"),
    ):  # fmt: skip
        asked = {"settings": SampleConfig()} | change
        with pytest.raises(UserError, match=f"{option} would change nothing"):
            request_of(model=None, samples="digits", **asked)


def test_two_evaluations_do_not_share_a_folder(request_of, tmp_path):
    with in_use(tmp_path / "out", "the evaluation"), pytest.raises(UserError, match="is in use by process"):
        evaluate(request_of())
    assert not (tmp_path / "out" / "samples").exists()


def test_given_classes_stand_in_turn(request_of, tmp_path):
    (tmp_path / "classes.txt").write_text("3\n1\n3\n")
    card = evaluated(request_of(images=32, classes_file=tmp_path / "classes.txt"))
    assert card.samples["labels"] == "given: 3, 1, 3"
    assert card.warnings == ["the classes are not balanced: 0 to 21 samples of each"]
    labels = [b.labels for b in SampleSet(tmp_path / "out" / "samples").batches(32) if b.labels is not None]
    assert np.concatenate(labels)[:4].tolist() == [3, 1, 3, 3]


def test_classes_in_turn_are_balanced(request_of):
    """32 samples of ten classes: three or four of each."""
    assert not [line for line in evaluated(request_of(images=32)).warnings if "balanced" in line]


def test_several_features_and_what_is_left_out(request_of):
    card = evaluated(request_of(features=["pixels:4", "digits"], measures=None, images=40))
    assert "class_accuracy_digits_40" in card.figures and "kernel_pixels4_40" in card.figures
    assert card.left_out["class_accuracy (pixels:4)"] == "the features pixels:4 have no classes"
    assert "spatial_frechet (digits)" in card.left_out
    assert any("40 samples for features of D = 64" in line for line in card.warnings)
    assert [reference["features"] for reference in card.references] == ["pixels:4", "digits"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"reference": None, "cache": None},
            "frechet cannot be measured: there is no reference; leave it out",
        ),
        (
            {"reference": None, "cache": None, "measures": None},
            "nothing to measure: there is no reference, and the features pixels:4 have no classes; expected",
        ),
        ({"measures": None, "images": 1}, "nothing to measure: there are 1 samples; it takes at least 2"),
        ({"measures": ["class_accuracy"]}, "the features pixels:4 have no classes"),
        ({"features": ["pixels:16"]}, "8x8"),
        ({"reference": "/nope"}, "/nope does not exist"),
        ({"reference": "shapes:test"}, "shapes cannot be drawn on 8 pixels"),
        ({"images": 1}, "there are 1 samples; it takes at least 2"),
        ({"classes": ["11"]}, "class 11 is out of range"),
        ({"settings": SampleConfig(num_ar_steps=17)}, "at most 16"),
    ],
)
def test_mistakes_are_refused_before_any_image_is_made(request_of, change, message):
    with pytest.raises(UserError, match=message):
        evaluate(request_of(**change))
    folder = request_of().out / "samples"
    assert not folder.exists() or not parts_of(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": "x"}, "--samples and --model are both given"),
        ({"images": 0}, "--images is 0; expected at least 1"),
        ({"image_size": 8}, "--image-size is for samples that are read"),
        ({"candidates": 2}, "--candidates is 2; expected --prompts-file with it"),
        ({"measures": []}, r"--measures is \[\]; expected one or more"),
        ({"features": ["digits", "digits"]}, "each once"),
        ({"classes": ["1"], "classes_file": Path("x")}, "--classes and --classes-file"),
    ],
)
def test_requests_that_contradict_themselves(request_of, change, message):
    with pytest.raises(UserError, match=message):
        request_of(**change)


def command(*more: str, model: Path, cache: Path, out: Path, images: int = 60) -> list[str]:
    return [
        "evaluate", f"--model={model}", "--reference=digits", "--features=pixels:4", "--measures", "frechet",
        "precision_recall", f"--images={images}", "--batch-size=16", f"--cache={cache}", f"--out={out}",
        "--device=cpu", *more,
    ]  # fmt: skip


def test_the_command_line_the_models_own_settings_and_compare(model, cache, tmp_path, capsys):
    assert cli.run(command(model=model, cache=cache, out=tmp_path / "own")) == 0
    printed = capsys.readouterr().out
    assert "60 images of" in printed and "frechet_pixels4_60" in printed and "own/card.json" in printed
    card = load_card(tmp_path / "own")
    assert card.samples["seed"] == 7 and card.samples["sample"]["num_ar_steps"] == 2, "from sample.toml"
    steps = ["--num-ar-steps", "4", "--seed", "0"]
    assert cli.run(command(*steps, model=model, cache=cache, out=tmp_path / "four")) == 0
    capsys.readouterr()
    assert cli.run(["compare", str(tmp_path / "own"), str(tmp_path / "four" / "card.json")]) == 0
    printed = capsys.readouterr().out
    assert "frechet_pixels4_60" in printed and "sample.num_ar_steps" in printed and "four" in printed
    assert cli.run(["compare", "--markdown", str(tmp_path / "own"), str(tmp_path / "four")]) == 0
    assert capsys.readouterr().out.startswith("| figure | own | four | best |")
    assert cli.run(["compare", str(tmp_path / "own")]) == 2
    assert "expected two or more" in capsys.readouterr().err


def request_of_preset(name: str, request: EvaluateRequest) -> EvaluateRequest:
    """A request with the preset's settings in place of its own."""
    values = load_evaluation(name)
    own = {key: value for key, value in values.items() if key in vars(request)}
    sampling = {key: value for key, value in values.items() if key not in own}
    return replace(request, preset=name, settings=replace(request.settings, **sampling), **own)


def test_a_preset_decides_all_and_says_what_was_changed(model, cache, tmp_path, capsys, monkeypatch):
    seen: list[EvaluateRequest] = []
    monkeypatch.setattr("causalfusion.evaluate.run.evaluate", seen.append)
    tokens = ["evaluate", "--model", str(model), "--reference", "digits", "--preset", "paper-ablation"]
    assert cli.run([*tokens, "--num-ar-steps", "4"]) == 0
    (tmp_path / "mine.toml").write_text('preset = "paper-system"\nseed = 3\n')
    assert cli.run(["evaluate", "--config", str(tmp_path / "mine.toml")]) == 0
    ablation, system = seen
    assert (ablation.images, ablation.settings.diffusion_steps, ablation.seed) == (10_000, [250], 0)
    assert ablation.settings.num_ar_steps == 4 and list(ablation.extractors) == ["inception"]
    assert (system.images, system.preset, system.seed) == (50_000, "paper-system", 3)
    assert request_of_preset("paper-system", EvaluateRequest(seed=3)) == replace(
        system, features=["inception"], measures=system.measures, classes=()
    )
    assert cli.run([*tokens[:-1], "paper"]) == 2
    assert "preset 'paper' is unknown" in capsys.readouterr().err


def test_changes_of_a_preset_are_on_the_card(request_of):
    request = request_of_preset("paper-system", request_of())
    request = replace(
        request, images=20, features=["pixels:4"], measures=["frechet"],
        settings=replace(SETTINGS, sampler="ddpm", eta=0.0),
    )  # fmt: skip
    assert evaluated(request).preset == {
        "name": "paper-system",
        "changed": {
            "images": 20, "features": ["pixels:4"], "measures": ["frechet"], "num_ar_steps": 2,
            "diffusion_steps": [2],
        },
    }  # fmt: skip


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.mark.slow
def test_two_processes_find_the_same_figures(model, cache, tmp_path, request_of):
    """Reference included: it is not in the cache."""
    alone = evaluated(request_of())
    options = ["--num-ar-steps=2", "--diffusion-steps=2", "--seed=0"]
    tokens = command(*options, model=model, cache=tmp_path / "cache", out=tmp_path / "two")
    done = subprocess.run(
        [*TORCHRUN, "-m", "causalfusion.cli", *tokens], env=ENVIRONMENT, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    two = load_card(tmp_path / "two")
    assert two.run["processes"] == 2 and alone.run["processes"] == 1
    assert values(two) == pytest.approx(values(alone), rel=1e-6)
    assert two.samples["hash"] == alone.samples["hash"]
    assert two.references[0]["mean_norm"] == pytest.approx(alone.references[0]["mean_norm"], rel=1e-9)
    assert not list((tmp_path / "two").glob(".features-*"))


def test_killed_and_continued(model, cache, tmp_path, request_of):
    """SIGKILL between two parts; the same command makes the others, and the figures of a run that was left
    alone."""
    out = tmp_path / "killed"
    options = ["--num-ar-steps=16", "--diffusion-steps=5", "--seed=0"]
    tokens = command(*options, model=model, cache=cache, out=out, images=96)
    process = forked.start(forked.command, tokens, tmp_path / "errors", {})
    deadline = time.monotonic() + 120
    while not ((out / "samples").is_dir() and parts_of(out / "samples")):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    before = {path: path.stat().st_mtime_ns for *_, path in parts_of(out / "samples")}
    assert 0 < len(before) < 6 and not (out / "card.json").exists()
    settings = SampleConfig(num_ar_steps=16, diffusion_steps=[5])
    continued = evaluated(request_of("killed", settings=settings, images=96))
    assert before.items() <= {p: p.stat().st_mtime_ns for *_, p in parts_of(out / "samples")}.items()
    alone = evaluated(request_of("alone", settings=settings, images=96))
    assert values(continued) == values(alone) and continued.samples["hash"] == alone.samples["hash"]


def test_at_another_size(request_of, model):
    """The samples have the size, the reference is cropped to it, and a card says so."""
    card = evaluated(request_of(size="8x4"))
    assert card.samples["image_shape"] == card.references[0]["image_shape"] == [4, 8, 1]
    assert card.samples["size"] == "8x4"
    wide = Pipeline.load(model).at(4, 8)
    expected = wide.codec.to_uint8(wide.generate(list(range(10)), SETTINGS, image_indices=range(10)))
    found = next(SampleSet(request_of().out / "samples").batches(10)).pixels
    assert np.abs(found.astype(int) - expected).max() <= 1
    with pytest.raises(UserError, match="size 8x4, and 4x8 is asked for"):
        evaluate(request_of(size="4x8"))
    with pytest.raises(UserError, match="size 8x4, and nothing is asked for"):
        evaluate(request_of())
    with pytest.raises(UserError, match="the reference digits has images of 8x8, the samples are 12x4"):
        evaluate(request_of("wider", size="12x4"))
    with pytest.raises(UserError, match=r"--size is '4xx'; expected WIDTHxHEIGHT"):
        request_of(size="4xx")
    with pytest.raises(UserError, match="--samples and --size are both given"):
        request_of(model=None, samples="digits", size="8x4")


def test_classes_without_names_are_counted(model, request_of, tmp_path):
    """A classifier of other classes tells nothing of them, as Inception of a converted model's 1000."""
    network, spec = load_model(model)
    config = replace(spec.model, num_classes=7)
    weights = {
        name: value[:8] if value.shape[:1] == (11,) else value for name, value in network.state_dict().items()
    }
    save_model(tmp_path / "seven", replace(spec, model=config, class_names=[]), weights)
    card = evaluated(request_of(model=tmp_path / "seven", features=["digits"], images=20, measures=None))
    assert card.left_out["class_accuracy (digits)"] == "digits knows 10 classes, the samples 7"
