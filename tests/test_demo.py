from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from causalfusion.cli import app
from causalfusion.config.serialize import to_dict
from causalfusion.demo.report import reproduction_commands
from causalfusion.demo.run import SplitDigits, best_fitting_classes, demo_config, training_seconds
from causalfusion.train.resume import MAY_CHANGE


def flat(values: dict, prefix: str = "") -> dict:
    result: dict = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


def test_a_full_run_can_go_on_from_a_quick_one() -> None:
    quick, full = (flat(to_dict(demo_config(Path("x"), quick=quick))) for quick in (True, False))
    changed = [name for name in full if quick[name] != full[name]]
    assert "train.images" in changed
    assert all(name in MAY_CHANGE or name.split(".")[0] in MAY_CHANGE for name in changed)
    assert quick["train.images"] % quick["train.batch_size"] == 0


def test_held_out_digits_are_not_among_those_trained_on() -> None:
    digits = SplitDigits.load(demo_config(Path("x"), quick=False))
    assert len(digits.train_images) + len(digits.held_out_images) == 1797
    seen = {image.numpy().tobytes() for image in digits.train_images}
    assert not any(image.numpy().tobytes() in seen for image in digits.held_out_images)


def test_examples_take_the_classes_in_turn() -> None:
    labels = torch.tensor([3, 1, 0, 2, 4, 5, 6, 7, 8, 9, 3, 1, 0, 2, 4, 5, 6, 7, 9])  # a single 8
    images = torch.arange(len(labels)).float().view(-1, 1, 1, 1)
    chosen, classes = SplitDigits(images, labels, images, labels).examples(2)
    assert classes.tolist() == [*range(10), *range(10)]
    assert chosen.flatten().tolist() == [2, 1, 3, 0, *range(4, 10), 12, 11, 13, 10, 14, 15, 16, 17, 8, 18]


def test_new_classes_fit_what_is_kept_and_are_not_the_excluded_ones() -> None:
    digits = SplitDigits.load(demo_config(Path("x"), quick=False))
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    images, labels = digits.train_images[:40].clone(), digits.train_labels[:40]
    images[:, :, :4] = 0.3  # what is masked must not count
    nothing = torch.zeros(40, 10, dtype=torch.bool)
    assert torch.equal(best_fitting_classes(images, mask, digits, nothing), labels)
    excluded = torch.rand(40, 10, generator=torch.Generator().manual_seed(0)) < 0.8
    excluded[:, 4] = False
    excluded.scatter_(1, labels[:, None], True)
    excluded[labels == 4, 5] = False
    chosen = best_fitting_classes(images, mask, digits, excluded)
    assert not excluded.gather(1, chosen[:, None]).any()


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("out", ["runs/demo", "runs/my demo"])
def test_the_commands_in_the_report_are_ones_that_the_program_knows(out: str, quick: bool) -> None:
    lines = [shlex.split(line, comments=True) for line in reproduction_commands(Path(out), quick)]
    for program, *tokens in filter(None, lines):
        assert program == "causalfusion" and out in tokens
        app.parse_args(tokens, exit_on_error=False, print_error=False)  # raises on what it does not know


def test_training_time_adds_up_over_the_sittings(tmp_path: Path) -> None:
    records = [
        {"kind": "train", "images_seen": 100, "loss": 1.0, "images_per_second": 50.0},
        {"kind": "evaluation", "images_seen": 100, "mean": 1.0, "by_timestep": [], "by_progress": {}},
        {"kind": "train", "images_seen": 400, "loss": 1.0, "images_per_second": 100.0},
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert training_seconds(log) == pytest.approx(2 + 3)
