"""`causalfusion demo`: trains a small model, then draws and measures its output, and writes a report.

The data are the handwritten digits in scikit-learn, so nothing is downloaded; text and images are shown with
the packaged model. The demo only uses public parts: `train`, `Pipeline.generate`, `Pipeline.edit`,
`Pipeline.caption`, the pictures and the charts.

Shape letters: B images, C, H, W channels and pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causalfusion.config import RunConfig, SampleConfig
from causalfusion.config.recipes import load_config
from causalfusion.data import open_source
from causalfusion.data.loader import load_indices, split_holdout
from causalfusion.demo.report import write_demo_report
from causalfusion.demo.text import draw_text_images
from causalfusion.errors import UserError
from causalfusion.evaluate.digits_judge import DigitsJudge, nearest_distance
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.regions import region_mask
from causalfusion.pictures.charts import save_loss_map
from causalfusion.pictures.compose import Edit, below, beside, edit_sheet, framed, to_image_grid
from causalfusion.show.charts import save_loss_curve
from causalfusion.show.process import ProcessRecorder
from causalfusion.train.log import read_log
from causalfusion.train.run import train

AR_STEPS = (1, 2, 4, 8)
EDITS = {"center": "centre", "top": "top half", "bottom": "bottom half", "outside": "outside"}
"""Names of the regions in the pictures."""
CLASSES = 10
MIN_JUDGE_ACCURACY, MIN_SAMPLE_ACCURACY = 0.97, 0.90
EDIT_GUIDANCE_SCALE = 3.0
"""Larger than for samples, as the kept part pulls towards the old class."""
_EDITS_SEED, _PROCESS_SEED = 1, 2
_EDITS_SHOWN = [0, 1, 3, 4, 7, 8]


@dataclass(frozen=True)
class SplitDigits:
    """Real digits (B, 1, 8, 8) in [-1, 1] with labels (B,): the training set and the held-out set."""

    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor

    @classmethod
    def load(cls, config: RunConfig) -> SplitDigits:
        source = open_source(config.data)
        train_indices, held_out = split_holdout(len(source), config.data.holdout)
        seen, unseen = (load_indices(source, indices, config.data) for indices in (train_indices, held_out))
        return cls(seen.images, seen.labels, unseen.images, unseen.labels)

    def examples(self, per_class: int) -> tuple[Tensor, Tensor]:
        """The first `per_class` held-out digits of each class, in the order 0, 1, ..., 9, 0, 1, ..."""
        by_class = [(self.held_out_labels == c).nonzero().flatten()[:per_class] for c in range(CLASSES)]
        chosen = torch.stack([rows[k % len(rows)] for k in range(per_class) for rows in by_class])
        return self.held_out_images[chosen], self.held_out_labels[chosen]


def run_demo(out: Path = Path("runs/demo"), *, quick: bool = False) -> dict[str, Any]:
    """Train (or resume), draw, judge, and write the report. Returns the figures in the report.

    `quick` only shows that everything works, with a short training and few samples, whatever their quality.
    Raises UserError if the finished model's samples, or the judge, are worse than expected.
    """
    with _one_thread():
        return _run(out, quick)


def _run(out: Path, quick: bool) -> dict[str, Any]:
    begin = time.monotonic()
    config = demo_config(out, quick=quick)
    folder = train(config)
    print("training is finished; drawing samples, edits and pictures", flush=True)
    pipeline, digits = Pipeline.load(folder), SplitDigits.load(config)
    judge = DigitsJudge.trained_on(digits.train_images, digits.train_labels)
    figures: dict[str, Any] = {
        "judge_accuracy": judge.accuracy(digits.held_out_images, digits.held_out_labels),
        "training_seconds": training_seconds(out / "log.jsonl"),
        **_draw_samples(pipeline, config.sample, digits, judge, 2 if quick else 20, out),
        **_draw_edits(pipeline, config.sample, digits, judge, 1 if quick else 10, out),
    }
    _draw_process(pipeline, config.sample, out)
    print("drawing text and images, with the packaged model", flush=True)
    figures |= draw_text_images(out, count=10 if quick else 100)
    save_loss_curve(out / "log.jsonl", out / "loss.png")
    save_loss_map(
        [r for r in read_log(out / "log.jsonl") if r["kind"] == "evaluation"][-1], out / "loss_map.png"
    )
    figures["seconds"] = time.monotonic() - begin
    report = write_demo_report(out, config, pipeline.spec, figures, quick=quick)
    _print_summary(figures, report)
    if not quick:
        _check(figures, report)
    return figures


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one CPU core. A model this small gains 1.5x from two cores on an idle machine, and loses 5x
    or more if another process uses one of them, as threads then wait for each other after every operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def demo_config(out: Path, *, quick: bool) -> RunConfig:
    """The recipe `digits`; with `quick`, a fortieth of its images, from which a full run can continue."""
    config = replace(load_config("digits"), out=str(out))
    if not quick:
        return config
    images = config.train.images // 40 // config.train.batch_size * config.train.batch_size
    short = replace(config.train, images=images, evaluate_every=40, log_every=5, evaluate_images=128)
    return replace(config, train=short, sample=replace(config.sample, diffusion_steps=[10]))


def training_seconds(log_path: Path) -> float:
    """Time spent in train steps, in seconds, over all sessions of a run."""
    seconds, before = 0.0, 0
    for record in read_log(log_path):
        if record["kind"] == "train":
            seconds += (record["images_seen"] - before) / record["images_per_second"]
            before = record["images_seen"]
    return seconds


# --- the pictures ---------------------------------------------------------------------------------------


def _draw_samples(
    pipeline: Pipeline,
    sample: SampleConfig,
    digits: SplitDigits,
    judge: DigitsJudge,
    per_class: int,
    out: Path,
) -> dict[str, Any]:
    """Draw samples.png, with the first five samples of each class for every S; figures over all samples."""
    labels = torch.arange(CLASSES * per_class) % CLASSES
    names = [str(c) for c in range(CLASSES)]
    blocks, accuracy, everything = [], {}, []
    begin = time.monotonic()
    for steps in AR_STEPS:
        images = pipeline.generate(labels.tolist(), replace(sample, num_ar_steps=steps), seed=steps).cpu()
        accuracy[steps] = judge.accuracy(images, labels)
        everything.append(images)
        heading = "S = 1 AR step: plain diffusion" if steps == 1 else f"S = {steps} AR steps"
        shown = with_border(images[: 5 * CLASSES])
        blocks.append(to_image_grid(shown, CLASSES, scale=5, column_labels=names, title=heading))
    seconds = time.monotonic() - begin
    framed(below([beside(blocks[:2]), beside(blocks[2:])])).save(out / "samples.png")
    images = torch.cat(everything)
    return {
        "accuracy_by_ar_steps": accuracy,
        "sample_accuracy": sum(accuracy.values()) / len(accuracy),
        "samples": len(images),
        "samples_per_second": len(images) / seconds,
        "nearest_distance_samples": nearest_distance(images, digits.train_images),
        "nearest_distance_held_out": nearest_distance(digits.held_out_images, digits.train_images),
    }


def _draw_edits(
    pipeline: Pipeline,
    sample: SampleConfig,
    digits: SplitDigits,
    judge: DigitsJudge,
    per_class: int,
    out: Path,
) -> dict[str, Any]:
    """Draw edits.png, with held-out digits, each edited in every region under a different class; figures over
    all edits."""
    originals, labels = digits.examples(per_class)
    config = replace(sample, num_ar_steps=2, guidance_scale=EDIT_GUIDANCE_SCALE)
    taken = torch.nn.functional.one_hot(labels, CLASSES).bool()
    edits, accuracy = [], {}
    for region, name in EDITS.items():
        mask = region_mask(region, *originals.shape[2:])
        new = best_fitting_classes(originals, mask, digits, taken)
        taken |= torch.nn.functional.one_hot(new, CLASSES).bool()
        edited = pipeline.edit(originals, mask, new.tolist(), config, seed=_EDITS_SEED).cpu()
        accuracy[name] = judge.accuracy(edited, new)
        shown = with_border(edited[_EDITS_SHOWN])
        edits.append(Edit(name, with_border(mask, False), shown, _names(new[_EDITS_SHOWN])))
    shown = with_border(originals[_EDITS_SHOWN])
    edit_sheet(shown, _names(labels[_EDITS_SHOWN]), edits, scale=8).save(out / "edits.png")
    return {"edit_accuracy": accuracy, "edits": len(originals) * len(EDITS)}


def best_fitting_classes(images: Tensor, mask: Tensor, digits: SplitDigits, excluded: Tensor) -> Tensor:
    """(B,) class for each image, except its `excluded` ones (B, classes) bool, with the training digit that
    is most similar to the image where `mask` (H, W) is False."""
    kept = (~mask).flatten()
    distance = torch.cdist(images.flatten(1)[:, kept], digits.train_images.flatten(1)[:, kept])
    by_class = [distance[:, digits.train_labels == c].min(1).values for c in range(CLASSES)]
    return torch.stack(by_class, dim=1).masked_fill(excluded, torch.inf).argmin(1)


def _draw_process(pipeline: Pipeline, sample: SampleConfig, out: Path) -> None:
    """Draw process.png: one image, generated in four AR steps."""
    model = pipeline.model.config
    recorder = ProcessRecorder(model.num_tokens, model.token_dim)
    pipeline.generate([3], replace(sample, num_ar_steps=4), seed=_PROCESS_SEED, watch=recorder)
    title = "How a 3 is generated: AR steps across, diffusion steps down"
    decode = pipeline.codec.decode_tokens
    recorder.draw(decode, model.grid_height, model.grid_width, scale=12, title=title).save(
        out / "process.png"
    )


def with_border(images: Tensor, value: float = -1.0) -> Tensor:
    """Images (B, C, H, W), or a mask (H, W), with a border of one pixel: digits reach their image's edge."""
    return torch.nn.functional.pad(images, (1, 1, 1, 1), value=value)


def _names(labels: Tensor) -> list[str]:
    return [str(label) for label in labels.tolist()]


# --- the verdict ----------------------------------------------------------------------------------------


def _print_summary(figures: dict[str, Any], report: Path) -> None:
    by_steps = ", ".join(f"S = {s}: {a:.1%}" for s, a in figures["accuracy_by_ar_steps"].items())
    print(f"held-out real digits classified correctly: {figures['judge_accuracy']:.1%}")
    print(f"samples classified as the requested class: {figures['sample_accuracy']:.1%} ({by_steps})")
    for which, suffix in (("unseen scenes", ""), ("pairs not seen in training", "_new_pairs")):
        drawn, said = figures[f"text_to_image{suffix}"], figures[f"caption_truth{suffix}"]
        print(
            f"text and images, one object, {which}: {drawn:.0%} of the images are exactly as prompted, "
            f"{said:.0%} of the captions are true"
        )
    print(f"report: {report} (after {figures['seconds']:.0f} s)", flush=True)


def _check(figures: dict[str, Any], report: Path) -> None:
    for what, value, least in (
        ("held-out digits classified correctly:", figures["judge_accuracy"], MIN_JUDGE_ACCURACY),
        ("samples classified as the requested class:", figures["sample_accuracy"], MIN_SAMPLE_ACCURACY),
    ):
        if value < least:
            raise UserError(
                f"{what} {value:.1%}; expected at least {least:.0%}: "
                f"something is wrong with this run, see {report}"
            )
