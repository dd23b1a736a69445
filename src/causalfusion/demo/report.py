"""The demo's `report.html`: texts and tables around its pictures."""

from __future__ import annotations

import os
import platform
import shlex
from pathlib import Path
from typing import Any

import torch

from causalfusion import __version__
from causalfusion.config import RunConfig
from causalfusion.diffusion.process import make_process
from causalfusion.model.transformer import Transformer, count_parameters
from causalfusion.saved.folder import ModelSpec
from causalfusion.show.report import Fact, Report, Section, render

INTRODUCTION = (
    "Two families of models generate images. Diffusion models start from noise and clean up the whole "
    "image at once, in many small diffusion steps. Autoregressive (AR) models write an image piece by "
    "piece, each piece in view of the finished ones. A causal diffusion transformer does both: the image "
    "is cut into tokens, the tokens are divided into AR steps, and the tokens of each AR step are "
    "denoised together in view of the tokens that are finished. The number of AR steps is chosen when an "
    "image is generated.",
    "This page was written by one command. It trained a small model from scratch on the 8x8-pixel "
    "handwritten digits that come with scikit-learn, then drew everything below with it. Each token is a "
    "patch of 2x2 pixels, so that an image has 16.",
)
SAMPLES = (
    "The same model generates with any number of AR steps S. With S = 1 all 16 tokens are "
    "denoised at once: plain diffusion. With S = 8 there are eight rounds of two tokens each. Each column "
    "shows digits of the class that the model was asked for. They are the first five of each class, not "
    "the best ones.",
    "Fraction of the samples that a classifier, trained on real digits only, assigns to the requested class:",
)
PROCESS = (
    "Read it column by column, from top to bottom. In each column four of the 16 tokens, at random places "
    "(orange), go from noise to clean pixels. Then they are finished, and the next column starts four more, "
    "which see the finished ones but cannot change them. Grey tokens have not been started.",
)
EDITS = (
    "The model was never trained to edit. As it can continue from any set of finished tokens, it is enough "
    "to keep some tokens of a real image and to regenerate the others (grey, within the orange line) under "
    "another class. Each row starts from a real digit that the model has not seen in training. The new "
    "classes of a row are all different; each was chosen, before anything was generated, as the one with "
    "the training digit most similar to the kept pixels.",
    "Kept pixels do not change at all, so they may contradict the new class. Fraction of the edits that the "
    "classifier still assigns to the new class:",
)
TEXT = (
    "This and the next two pictures show the small model that comes with the package, which was trained on "
    "scenes of one to three coloured shapes with captions. Text and image are one sequence: first the "
    "words, each of which sees those before it, then the image's AR steps, which see the words.",
    "An oracle recognises the objects in every image from its pixels; a parser reads every caption that the "
    "model writes. The table is for unseen scenes with one object, and for scenes with one object whose "
    "pair of shape and colour (a purple circle, a red square, ...) never occurred in training. Scenes with "
    "two and three objects are harder, as the model card says.",
)
CAPTIONS = (
    "The same model in the other direction: the image comes first, and the words after it see it. These are "
    "the first scenes of the test split, not the best ones.",
)
TEXT_EDITS = (
    "The grey part is regenerated for a prompt that describes the whole image; the kept part is context. "
    "The model was never trained to edit.",
)
LOSS = (
    "The mean squared error of the model's prediction. The curve is jagged because each train step draws "
    "noise levels and AR steps at random. The points are the loss of the averaged weights on held-out "
    "digits, always with the same draws. It weights all AR steps alike; the training loss gives early ones "
    "up to twice the weight, which is why its curve is higher.",
)
LOSS_MAP = (
    "Where prediction is hard and where it is easy, on held-out digits. Left: the more finished tokens are "
    "in view, the easier the others are to denoise, which is what AR steps are good for. Right: the loss by "
    "noise level. The model predicts a mixture of noise and image (v): mostly the noise where there is "
    "little of it, mostly the image where there is much.",
)


def write_demo_report(
    out: Path, config: RunConfig, spec: ModelSpec, figures: dict[str, Any], *, quick: bool
) -> Path:
    """Write `report.html` into `out`, where the pictures are; its path."""
    path = out / "report.html"
    path.write_text(render(_report(out, config, spec, figures, quick)), encoding="utf-8")
    return path


def _report(out: Path, config: RunConfig, spec: ModelSpec, figures: dict[str, Any], quick: bool) -> Report:
    introduction = INTRODUCTION
    if quick:
        introduction += (
            "THIS WAS A QUICK RUN, which only shows that everything works: its model is barely trained, "
            "so its pictures and figures mean nothing.",
        )
    by_steps = figures["accuracy_by_ar_steps"]
    headline = [
        Fact("of the samples classified as the requested class", f"{figures['sample_accuracy']:.1%}"),
        Fact("of unseen real digits classified correctly", f"{figures['judge_accuracy']:.1%}"),
        Fact("training time", _duration(figures["training_seconds"])),
        Fact("parameters", f"{_parameters(spec):,}"),
    ]
    sample_table = [
        ["AR steps S", *(str(s) for s in by_steps), "all", "real digits, unseen"],
        [
            "classified as the requested class",
            *(f"{a:.1%}" for a in by_steps.values()),
            f"{figures['sample_accuracy']:.1%}",
            f"{figures['judge_accuracy']:.1%}",
        ],
    ]
    names = figures["edit_accuracy"]
    edit_table = [
        ["regenerated", *names],
        ["classified as the new class", *(f"{a:.0%}" for a in names.values())],
    ]
    sections = [
        Section("Samples, by class and number of AR steps", SAMPLES, out / "samples.png", sample_table),
        Section("Does it only repeat its training images?", [_diversity(figures)]),
        Section("How an image is generated", PROCESS, out / "process.png"),
        Section("Zero-shot edits", EDITS, out / "edits.png", edit_table),
        Section("From text to images", TEXT, out / "prompts.png", _text_table(figures)),
        Section("From images to text", CAPTIONS, out / "captions.png"),
        Section("Text-guided edits", TEXT_EDITS, out / "text-edits.png"),
        Section("Training", LOSS, out / "loss.png"),
        Section("Where the loss is", LOSS_MAP, out / "loss_map.png"),
    ]
    return Report(
        title="Causal diffusion on handwritten digits",
        introduction=introduction,
        headline=headline,
        sections=sections,
        fact_tables=_fact_tables(config, spec, figures),
        commands=reproduction_commands(out, quick),
        footer=f"Written by causalfusion {__version__}. The method is that of arXiv 2412.12095.",
    )


def _text_table(figures: dict[str, Any]) -> list[list[str]]:
    rows = [
        ["one object", "images that show exactly what the prompt says", "captions that are true", "scenes"]
    ]
    for name, suffix in (("unseen scenes", ""), ("pairs not seen in training", "_new_pairs")):
        drawn, said = figures[f"text_to_image{suffix}"], figures[f"caption_truth{suffix}"]
        rows.append([name, f"{drawn:.0%}", f"{said:.0%}", str(figures["text_scenes"])])
    return rows


def _diversity(figures: dict[str, Any]) -> str:
    generated, real = figures["nearest_distance_samples"], figures["nearest_distance_held_out"]
    return (
        f"The mean distance from a sample to the most similar training image is {generated:.1f} "
        "(Euclidean, in grey levels 0 to 16 over 64 pixels); from a held-out real digit it is "
        f"{real:.1f}. Copies of training images would be at distance 0: the samples are new digits, as far "
        "from the training images as held-out real digits are, or a little farther."
    )


def _fact_tables(config: RunConfig, spec: ModelSpec, figures: dict[str, Any]) -> dict[str, list[Fact]]:
    model, train, plan = spec.model, config.train, config.factorization
    sample = make_process(spec.diffusion).settled(config.sample)
    rate = train.images / max(figures["training_seconds"], 1e-9)
    guidance = f"{sample.guidance_scale:g}"
    return {
        "Model": [
            Fact("parameters", f"{_parameters(spec):,}"),
            Fact("hidden size, depth, heads", f"{model.hidden_size}, {model.depth}, {model.num_heads}"),
            Fact("tokens", f"{model.num_tokens} of {model.token_dim} numbers"),
            Fact("class tokens", str(model.num_class_tokens)),
            Fact("predicts", spec.diffusion.prediction_type),
        ],
        "Training": [
            Fact("images seen", f"{train.images:,}"),
            Fact("batch size", str(train.batch_size)),
            Fact("learning rate", f"{train.lr:g}, {train.lr_schedule}"),
            Fact("number of AR steps", f"{plan.distribution}, {plan.decay:g}"),
            Fact("average of the weights", f"{train.ema_decay:g}"),
            Fact("time", _duration(figures["training_seconds"])),
            Fact("speed", f"{rate:,.0f} images/s"),
        ],
        "Generation": [
            Fact("sampler", f"{sample.sampler}, {sample.variance}"),
            Fact("diffusion steps per AR step", ", ".join(map(str, sample.diffusion_steps))),
            Fact("guidance scale", guidance),
            Fact("samples judged", str(figures["samples"])),
            Fact("edits judged", str(figures["edits"])),
            Fact("speed", f"{figures['samples_per_second']:,.0f} images/s"),
        ],
        "Made with": [
            Fact("causalfusion", __version__),
            Fact("Python", platform.python_version()),
            Fact("PyTorch", torch.__version__),
            Fact("CPU cores, threads", f"{os.cpu_count()}, {torch.get_num_threads()}"),
            Fact("whole command", _duration(figures["seconds"])),
        ],
    }


def reproduction_commands(out: Path, quick: bool) -> list[str]:
    place = shlex.quote(str(out))
    return [
        f"causalfusion demo --out {place}" + (" --quick" if quick else ""),
        "",
        "# more images of this model: 20 times the digit 3, in four AR steps",
        f"causalfusion sample --model {place} --classes 3 --images 20 --num-ar-steps 4 --guidance-scale 1.5",
    ]


def _parameters(spec: ModelSpec) -> int:
    return count_parameters(Transformer(spec.model))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
