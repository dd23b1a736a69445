"""Other systems' recordings are met by our code, whatever their sizes, and a wrong one is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from causalfusion.diffusion import sde
from causalfusion.errors import UserError
from causalfusion.interop.recording import LEFT_OUT, Check, format_checks
from causalfusion.interop.reference import replay_reference
from causalfusion.interop.systems.fit import read_fit
from causalfusion.interop.systems.latentlm import read_latentlm
from causalfusion.interop.systems.links import follow_back
from causalfusion.interop.systems.replay_model import RecordedSystem
from causalfusion.model.transformer import Transformer

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "parity" / "neighbours"
pytestmark = [
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers'
]
CHECKS = {"dit": 120, "large_dit": 130, "sit": 300, "fitv2": 1000, "mar": 370, "latentlm": 210}
"""Fewest checks of each system's recordings."""


def failed(checks: list[Check]) -> set[str]:
    return {c.quantity for c in checks if not c.ok}


def part(folder: str, tmp_path: Path, *names: str) -> Path:
    """A folder, with a name that says nothing, of some recordings."""
    target = tmp_path / "recordings"
    target.mkdir(exist_ok=True)
    for name in names:
        for path in (SHARED / folder).glob(name):
            shutil.copy(path, target)
    return target


def change(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    with safe_open(path, "pt") as file:
        old = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        text = file.metadata() or {}
    save_file({**old, **tensors}, path, metadata={**text, **(metadata or {})})


def read(path: Path, tensor: str) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(tensor)


@pytest.mark.parametrize("system", CHECKS)
def test_the_recordings_of_a_system_are_met(system: str) -> None:
    checks = replay_reference(SHARED / system)
    assert not failed(checks), format_checks(checks)
    assert sum(c.quantity != LEFT_OUT for c in checks) >= CHECKS[system]
    left_out = {c.file for c in checks if c.quantity == LEFT_OUT}
    assert not left_out


def test_an_unknown_tensor_and_a_changed_one_are_noticed(tmp_path: Path) -> None:
    folder = part("dit", tmp_path, "B.weights.*", "B.sample.*")
    change(folder / "B.sample.safetensors", {"surprise": torch.ones(1)})
    found = [c for c in replay_reference(folder) if not c.ok]
    assert [(c.tensor, c.quantity) for c in found] == [("surprise", "not replayed")]
    save_file({"x": torch.ones(1)}, folder / "B.surprise.safetensors")
    assert "B.surprise" in {c.file for c in replay_reference(folder) if not c.ok}
    wrong = read(folder / "B.sample.safetensors", "ddim/x_seq") * 1.001
    change(folder / "B.sample.safetensors", {"ddim/x_seq": wrong})
    assert "sampling trajectories" in failed(replay_reference(folder))


@pytest.mark.parametrize("system", ["dit", "sit"])
def test_the_name_of_a_folder_does_not_matter(system: str, tmp_path: Path) -> None:
    """DiT's and SiT's weights have the same names; what was recorded of them tells them apart."""
    for kind in ("forward", "train", "sample"):
        target = tmp_path / kind
        target.mkdir()
        for name in ("A.weights", f"A.{kind}"):
            shutil.copy(SHARED / system / f"{name}.safetensors", target)
        assert not failed(replay_reference(target))


def test_a_folder_of_folders_reports_what_it_leaves_out(tmp_path: Path) -> None:
    for name in ("dit", "hf_decoders", "smollm2"):
        (tmp_path / name).mkdir()
    for name in ("A.weights", "A.forward"):
        shutil.copy(SHARED / "dit" / f"{name}.safetensors", tmp_path / "dit")
    (tmp_path / "hf_decoders" / "one").mkdir()
    save_file({"logits": torch.ones(1)}, tmp_path / "hf_decoders" / "one" / "io.safetensors")
    save_file({"logits": torch.ones(1)}, tmp_path / "smollm2" / "io.safetensors")
    checks = replay_reference(tmp_path)
    assert [c.file for c in checks if c.quantity == LEFT_OUT] == ["hf_decoders/one", "smollm2"]
    assert {c.file for c in checks if c.quantity != LEFT_OUT} == {"dit/A.forward"}
    text = format_checks(checks)
    assert "hf_decoders/one: no model.safetensors beside the recording" in text and "FAILED" not in text


def test_settings_come_from_the_metadata(tmp_path: Path) -> None:
    """Another scale, number of steps or temperature in the metadata must change what is expected."""
    folder = part("dit", tmp_path, "A.weights.*", "A.sample.*")
    change(folder / "A.sample.safetensors", {}, {"cfg_scale": "2.5"})
    assert "sampling trajectories" in failed(replay_reference(folder))
    change(folder / "A.sample.safetensors", {}, {"cfg_scale": "1.5", "respacing": "11"})
    with pytest.raises(UserError, match="10 states are recorded, but 11 timesteps"):
        replay_reference(folder)


def test_the_temperature_and_the_iterations_of_masked_generation(tmp_path: Path) -> None:
    folder = part("mar", tmp_path, "B.weights.*", "B.sample.*")
    path = folder / "B.sample.safetensors"
    with safe_open(path, "pt") as file:
        cases = json.loads(file.metadata()["cases"])
    cases[2]["temperature"] = 1.0
    change(path, {}, {"cases": json.dumps(cases)})
    found = [c for c in replay_reference(folder) if not c.ok]
    assert found and all(c.tensor.startswith("case2/") for c in found)


def test_another_noise_of_an_sde_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = part("sit", tmp_path, "B.weights.*", "B.sample.*")
    original = sde.noise_rate
    monkeypatch.setattr(sde, "noise_rate", lambda *args: 1.01 * original(*args))
    found = {c.tensor.split("/")[0] for c in replay_reference(folder) if not c.ok}
    assert {name for name in found if name.startswith("sde_")} >= {"sde_sigma_mean", "sde_heun_sigma_mean"}
    assert not any(name.startswith(("ode", "drift")) for name in found)


def test_unreadable_metadata_and_a_damaged_file_are_one_clear_line(tmp_path: Path) -> None:
    folder = part("mar", tmp_path, "B.weights.*", "B.train.*")
    change(folder / "B.train.safetensors", {}, {"cases": "[1"})
    with pytest.raises(UserError, match="metadata cases is not valid JSON"):
        replay_reference(folder)
    weights = folder / "B.weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged or cut short"):
        replay_reference(folder)


def test_weights_go_back_to_their_authors_layout_bit_for_bit() -> None:
    for name in ("A", "B"):
        path = SHARED / "fitv2" / f"{name}.weights.safetensors"
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            settings = json.loads(file.metadata()["config"])
        released = read_fit(state, settings, str(path))
        ours = released.weights(state, str(path))
        back = follow_back(released.links, ours)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], state[key]) for key in state)


def test_a_flattened_baseline_has_positions_of_a_row() -> None:
    """LatentLM's DiT with flatten_input: no patch, and a table that is not two-dimensional."""
    path = SHARED / "latentlm" / "A.dit_weights.safetensors"
    with safe_open(path, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        settings = json.loads(file.metadata()["config"])
    state["x_embedder.weight"] = state.pop("x_embedder.proj.weight")[:, :, 0, 0]
    del state["x_embedder.proj.bias"]
    state["pos_embed"] = torch.randn(state["pos_embed"].shape, generator=torch.Generator().manual_seed(0))
    released = read_latentlm(state, settings, "state")
    system = RecordedSystem(released, state, "state", settings)
    model = system.model()
    assert isinstance(model, Transformer) and torch.equal(model.image_position, state["pos_embed"][0])
    out = system.predict(model, torch.zeros(1, 8, 6, 6), torch.tensor([5]), torch.tensor([1]))
    assert out.shape == (1, 36, 8) and bool(out.isfinite().all())
