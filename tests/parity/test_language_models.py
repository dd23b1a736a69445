"""The replay of recorded language models: it is met, and notices a wrong model or a changed recording."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from causalfusion.interop.recording import LEFT_OUT
from causalfusion.interop.reference import replay_reference

SHARED = Path(__file__).resolve().parents[2].parent / "shared/parity/neighbours"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent")
KINDS = ("token ids", "predictions", "losses", "gradients")


def test_every_recorded_tensor_of_every_model_is_met():
    checks = replay_reference(SHARED / "hf_decoders")
    assert [c for c in checks if not c.ok] == []
    models = {path.name for path in (SHARED / "hf_decoders").iterdir() if path.is_dir()}
    assert {c.file for c in checks} == {f"{name}/io" for name in models}
    for name in models:
        for kind in KINDS:
            assert sum(c.file == f"{name}/io" and c.quantity == kind for c in checks) >= 2, (name, kind)
    assert sum("config.legacy.json" in c.tensor for c in checks) == len(checks) / 2


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama_b", {"rope_theta": 1_000_000.0}),
        ("mistral_b", {"sliding_window": 8}),
        ("mistral_a", {"sliding_window": 23}),
        ("qwen3_a", {"rms_norm_eps": 1e-5}),
        ("gpt2_a", {"activation_function": "gelu"}),
    ],
)
def test_a_wrong_setting_is_noticed(name: str, change: dict[str, object], tmp_path: Path):
    """Even a window that hides one token of one row, and GELU in its other form."""
    folder = Path(shutil.copytree(SHARED / "hf_decoders" / name, tmp_path / name))
    path = folder / "config.legacy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    failed = [c for c in replay_reference(folder) if not c.ok]
    assert failed and all("config.legacy.json" in c.tensor for c in failed)
    assert {"predictions"} <= {c.quantity for c in failed}


def test_a_changed_and_an_unknown_tensor_are_noticed(tmp_path: Path):
    folder = Path(shutil.copytree(SHARED / "hf_decoders" / "llama_a", tmp_path / "m"))
    io = load_file(folder / "io.safetensors")
    io["greedy_ids"][1, -1] += 1
    io["more"] = torch.zeros(2)
    save_file(io, folder / "io.safetensors")
    failed = {(c.tensor, c.quantity) for c in replay_reference(folder) if not c.ok}
    ways = ("cached", "uncached", "cached, config.legacy.json", "uncached, config.legacy.json")
    assert failed == {*((f"greedy_ids ({way})", "token ids") for way in ways), ("more", "not replayed")}


def test_a_recording_without_its_model_is_said_to_be_left_out():
    (check,) = replay_reference(SHARED / "smollm2")
    assert check.quantity == LEFT_OUT and "no model.safetensors beside the recording" in check.note
