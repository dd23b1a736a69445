"""Averages of any width after training: the maths, the snapshots of a run, and the models made of them."""

import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from causalfusion import cli
from causalfusion.config import TrainConfig
from causalfusion.errors import UserError
from causalfusion.estimate.memory import state_bytes
from causalfusion.estimate.optimizer import snapshots_of
from causalfusion.saved.folder import checkpoints_of, load_model, load_spec
from causalfusion.train.ema_snapshots import WidthAverages, read_snapshots
from causalfusion.train.post_hoc import Profile, combine, decay_of, exponent_of, inner_products
from causalfusion.train.reconstruct import reconstruct
from causalfusion.train.run import train

WIDTHS = {"ema_widths": [0.05, 0.1], "ema_snapshot_images": 32}


def shares(width: float, updates: int) -> np.ndarray:
    """The share of each update in an average, (updates,), by the recursion itself."""
    found = np.zeros(updates)
    for update in range(1, updates + 1):
        decay = decay_of(width, update)
        found *= decay
        found[update - 1] += 1 - decay
    return found


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25])
def test_an_average_has_the_width_that_was_asked_for(width):
    """The standard deviation of its shares over time; all sum to 1, as integrals of tau ** gamma."""
    found, times = shares(width, 4000), (np.arange(4000) + 0.5) / 4000
    exponent = exponent_of(width)
    edges = (np.arange(4001) / 4000) ** (exponent + 1)
    assert np.allclose(found, np.diff(edges), rtol=1e-9, atol=1e-15)
    assert np.sqrt(found @ times**2 - (found @ times) ** 2) == pytest.approx(width, rel=1e-4)


def test_inner_products_are_integrals():
    rows, columns = [Profile(0.05, 300), Profile(0.2, 900)], [Profile(0.1, 600), Profile(0.03, 900)]
    fine = [[_density(p) for p in profiles] for profiles in (rows, columns)]
    expected = [[float((a * b).sum() * _STEP) for b in fine[1]] for a in fine[0]]
    assert np.allclose(inner_products(rows, columns), expected, rtol=1e-4)


_STEP = 0.005


def _density(profile: Profile) -> np.ndarray:
    times, exponent = (np.arange(int(900 / _STEP)) + 0.5) * _STEP, exponent_of(profile.width)
    inside = (times / profile.updates) ** exponent * (exponent + 1) / profile.updates
    return np.where(times < profile.updates, inside, 0.0)


@pytest.mark.parametrize(("width", "bound"), [(0.03, 0.04), (0.07, 0.004), (0.15, 0.01), (0.25, 0.08)])
def test_the_fit_comes_near_to_a_width_that_was_not_tracked(width, bound):
    """Of 16 snapshots of two widths: also in the shares of single updates, not in the integrals alone."""
    stored = [Profile(w, 50 * k) for k in range(1, 17) for w in (0.05, 0.1)]
    coefficients, distance = combine(stored, Profile(width, 800))
    assert coefficients.sum() == pytest.approx(1, abs=1e-9) and bound / 4 < distance < bound
    made = np.zeros(800)
    for profile, coefficient in zip(stored, coefficients, strict=True):
        made[: profile.updates] += coefficient * shares(profile.width, profile.updates)
    wanted = shares(width, 800)
    assert np.linalg.norm(made - wanted) / np.linalg.norm(wanted) == pytest.approx(distance, rel=0.1)


def test_a_width_that_was_tracked_is_itself():
    stored = [Profile(w, 50 * k) for k in range(1, 9) for w in (0.05, 0.1)]
    for place in (14, 15):
        coefficients, distance = combine(stored, stored[place])
        assert np.allclose(coefficients, np.eye(16)[place], atol=1e-6) and distance < 1e-6


def test_averages_of_a_run_against_those_over_all_its_steps(tiny_run, tmp_path, monkeypatch):
    """Tracked widths at any snapshot, and others at the last, to float16 and the fit."""
    steps: list[dict[str, torch.Tensor]] = []
    real = WidthAverages.update

    def update(averages: WidthAverages, updates: int) -> None:
        real(averages, updates)
        named = averages.averages[0.05].parameters
        steps.append({name: p.detach().clone() for name, p in named.items()})

    monkeypatch.setattr(WidthAverages, "update", update)
    config = tiny_run(train={**WIDTHS, "images": 640, "evaluate_every": 0})
    train(config, device="cpu", show_progress=False)
    run = Path(config.out)
    found = read_snapshots(run)
    assert [s.images_seen for s in found] == list(range(32, 641, 32)) and len(steps) == 40
    assert [s.updates for s in found] == list(range(2, 41, 2)) and found[0].widths == [0.05, 0.1]
    for snapshot in (found[0], found[9], found[-1]):
        stored = load_file(snapshot.file)
        for width in (0.05, 0.1):
            assert error(stored, direct(steps[: snapshot.updates], width), f"{width}/") < 2.6e-4
    made = reconstruct(run, [0.03, 0.05, 0.07, 0.15], tmp_path / "made")
    for one, bound in zip(made, (1.5e-3, 2.6e-4, 2.6e-4, 2.6e-4), strict=True):
        assert one.folder == tmp_path / "made" / f"{one.width:g}" and one.images_seen == 640
        assert error(load_file(one.folder / "model.safetensors"), direct(steps, one.width)) < bound, one
    model, spec = load_model(made[0].folder)
    assert spec.images_seen == 640 and "relative width 0.03" in spec.origin
    assert (made[0].folder / "sample.toml").is_file() and not model.training
    assert load_spec(checkpoints_of(run)[-1]).model == spec.model


def direct(steps: list[dict[str, torch.Tensor]], width: float) -> dict[str, torch.Tensor]:
    """The average over all steps, float64."""
    of_steps = shares(width, len(steps)).tolist()
    return {
        name: torch.stack([share * s[name].double() for share, s in zip(of_steps, steps, strict=True)]).sum(0)
        for name in steps[0]
    }


def error(made: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], prefix: str = "") -> float:
    """The distance of all weights together, relative to their norm."""
    both = [(made[prefix + name].double(), value) for name, value in wanted.items()]
    far, norm = (sum(x.square().sum() for x in of) for of in ([a - b for a, b in both], [b for _, b in both]))
    return float((far / norm).sqrt())


def test_a_killed_run_comes_back_to_the_same_snapshots(tiny_run):
    """Killed after its second checkpoint, with later snapshots and a half-written one on the disk."""
    values = {**WIDTHS, "checkpoint_every": 3, "keep_checkpoints": 9}
    for name in ("whole", "killed"):
        train(tiny_run(name, train=values), device="cpu", show_progress=False)
    whole, killed = (Path(tiny_run(name).out) for name in ("whole", "killed"))
    for checkpoint in checkpoints_of(killed)[2:]:
        shutil.rmtree(checkpoint)
    later = [s for s in read_snapshots(killed) if s.images_seen > 96]
    assert checkpoints_of(killed)[-1].name == "000000000096" and len(later) == 2
    for snapshot in later:
        snapshot.file.write_bytes(b"half")
    host = re.sub(r"[^\w]", "-", socket.gethostname())[:40]
    (killed / "ema_snapshots" / f".partial-x.{host}.4194303.00000000").write_bytes(b"half")
    train(tiny_run("killed", train=values), device="cpu", show_progress=False)
    names = [sorted(p.name for p in (run / "ema_snapshots").iterdir()) for run in (whole, killed)]
    assert names[0] == names[1] and len(names[0]) == 5
    for name in names[0]:
        a, b = ((run / "ema_snapshots" / name).read_bytes() for run in (whole, killed))
        assert a == b, name
    for name in ("state/ema_widths.safetensors", "raw.safetensors", "model.safetensors"):
        a, b = ((checkpoints_of(run)[-1] / name).read_bytes() for run in (whole, killed))
        assert a == b, name


def test_snapshots_after_the_checkpoint_go_even_before_the_first_step(tiny_run):
    config = tiny_run(train={**WIDTHS, "images": 64})
    train(config, device="cpu", show_progress=False)
    run = Path(config.out)
    shutil.copy(
        run / "ema_snapshots" / "000000000064.safetensors", run / "ema_snapshots" / "000000000999.safetensors"
    )
    train(tiny_run(train={**WIDTHS, "images": 80}), device="cpu", show_progress=False)
    assert [s.images_seen for s in read_snapshots(run)] == [32, 64, 80]


def test_damaged_averages_of_a_checkpoint_are_refused(tiny_run):
    checkpoint = train(tiny_run(train={**WIDTHS, "images": 32}), device="cpu", show_progress=False)
    path = checkpoint / "state" / "ema_widths.safetensors"
    tensors = load_file(path)
    tensors.pop("0.05/blocks.0.attn.proj.bias")
    save_file(tensors, path)
    with pytest.raises(
        UserError, match=r"ema_widths\.safetensors lacks tensor 0\.05/.*delete the checkpoint"
    ):
        train(tiny_run(train={**WIDTHS, "images": 48}), device="cpu", show_progress=False)
    path.unlink()
    with pytest.raises(UserError, match=r"ema_widths\.safetensors cannot be read .*delete the checkpoint"):
        train(tiny_run(train={**WIDTHS, "images": 48}), device="cpu", show_progress=False)


def refusal(line: str, capsys) -> str:
    assert cli.run(line.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_wrong_requests_are_refused_in_one_line(tiny_run, tmp_path, capsys):
    config = tiny_run(train={**WIDTHS, "images": 48})
    train(config, device="cpu", show_progress=False)
    run, out = Path(config.out), tmp_path / "out"
    for width in ("0", "0.3", "-1", "nan"):
        assert "from 0.005 to 0.28" in refusal(f"ema {run} --width {width} --out {out}", capsys)
    assert "different widths" in refusal(f"ema {run} --width 0.1 0.1 --out {out}", capsys)
    assert "has no EMA snapshots" in refusal(f"ema {tmp_path} --width 0.1 --out {out}", capsys)
    assert "inside of the run" in refusal(f"ema {run} --width 0.1 --out {run}/ema_snapshots", capsys)
    last = read_snapshots(run)[-1].file
    content = last.read_bytes()
    last.write_bytes(content[:1000])
    assert f"{last.name} cannot be read" in refusal(f"ema {run} --width 0.1 --out {out}", capsys)
    stored = load_file(run / "ema_snapshots" / "000000000032.safetensors")
    stored.pop(next(iter(stored)))
    save_file(stored, last, {"about": '{"images_seen": 48, "updates": 3}'})
    assert "does not fit the model" in refusal(f"ema {run} --width 0.1 --out {out}", capsys)
    last.write_bytes(content)
    assert not out.exists()
    assert cli.run(f"ema {run} --width 0.02 --out {out}".split()) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(
        f"{out}: average of width 0.02 at 48 images, from 2 snapshots; its profile is off"
    )
    assert said[1].startswith("note: ") and load_model(out)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"ema_widths": [0.5], "ema_snapshot_images": 9},
            "train.ema_widths is 0.5; expected a relative width",
        ),
        ({"ema_widths": [0.1, 0.1], "ema_snapshot_images": 9}, "expected different widths"),
        ({"ema_widths": [0.1]}, "train.ema_snapshot_images is 0; expected images between snapshots"),
        ({"ema_snapshot_images": 9}, "train.ema_snapshot_images is 9; expected 0, without train.ema_widths"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values, said):
    with pytest.raises(UserError, match=said):
        TrainConfig(**values)


def test_the_cost_of_widths_is_told_before_training(tiny_run, capsys):
    config = tiny_run(train={**WIDTHS, "images": 80})
    checkpoint = train(config, device="cpu", show_progress=True)
    spec = load_spec(checkpoint)
    model, _ = load_model(checkpoint)
    number = sum(p.numel() for p in model.parameters())
    plain = replace(tiny_run(), model=spec.model)
    config = replace(config, model=spec.model)
    assert state_bytes(config, 1) - state_bytes(plain, 1) == 8 * number
    assert snapshots_of(config) == (3, 4 * number) and snapshots_of(plain) == (0, 0)
    sizes = [s.file.stat().st_size for s in read_snapshots(Path(config.out))]
    assert len(sizes) == 3 and all(4 * number < size < 4 * number + 20_000 for size in sizes)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("on disk: ")]
    assert len(said) == 1 and "every 32 images" in said[0] and "for 3" in said[0]
