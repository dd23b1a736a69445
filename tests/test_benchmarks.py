"""The benchmark's command line, and its comparison of the two paths."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not installed", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks.graft import SHOWN, side_by_side  # noqa: E402
from benchmarks.measure import Comparison, Timing  # noqa: E402
from benchmarks.parts import _record  # noqa: E402
from benchmarks.reference import QUICK, Sampling, TrainingStep  # noqa: E402

from causalfusion.model.arithmetic import Flops  # noqa: E402


def test_help_needs_no_torch() -> None:
    script = (
        "import runpy, sys\nsys.argv = ['benchmarks', '--help']\ntry:\n"
        "    runpy.run_module('benchmarks', run_name='__main__')\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False" and "--workload" in done.stdout, done.stderr


@pytest.mark.parametrize("workload", [TrainingStep, Sampling])
def test_both_paths_give_the_same_numbers(workload: type[TrainingStep] | type[Sampling]) -> None:
    naive, ours = (workload(QUICK, torch.float32, naive)(0) for naive in (True, False))
    assert np.abs(naive - ours).max() <= 1e-5 * np.abs(naive).max()


def test_images_are_compared_number_by_number() -> None:
    """Two images that change places have one mean square."""
    images = np.stack([np.zeros((4, 3)), np.ones((4, 3))])
    timings = {"naive": Timing([[1.0]], [images]), "ours": Timing([[1.0]], [images[::-1]])}
    record = _record(Comparison("sample", "float32", Flops(2.0, 1.0), 10.0, timings))
    assert record["timings"]["ours"]["differs_by"] == 1.0
    assert record["timings"]["ours"]["needed_share_median"] == pytest.approx(0.1)


def test_each_part_of_the_grafts_picture_has_its_title() -> None:
    """The same picture with another title differs above the drawings of that model alone."""
    tiles = [Image.new("RGB", (96, 96), (9, 9, 9))] * (2 * len(SHOWN))
    one, other = (
        np.asarray(side_by_side({"with words": tiles, second: tiles}, 2)) for second in ("without", "x")
    )
    rows, columns = (one != other).any(-1).nonzero()
    first_drawing = int((one == 9).all(-1).any(1).argmax())
    assert one.shape == other.shape and len(rows) and rows.max() < first_drawing
    assert columns.min() > one.shape[1] // 2
