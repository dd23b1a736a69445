"""Our code against tensors recorded from the reference implementation, and the replay against itself:
a wrong implementation, a changed recording and a damaged one must all be noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.errors import UserError
from causalfusion.interop.recording import Check, format_checks
from causalfusion.interop.reference import replay_reference
from causalfusion.interop.reference_autoencoder import generated_weights
from causalfusion.model import feed_forward

OWN = Path(__file__).with_name("data")
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "parity"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent")


def failed(checks: list[Check]) -> set[str]:
    return {c.quantity for c in checks if not c.ok}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of our own recordings, to change."""
    return Path(shutil.copytree(OWN, tmp_path / "recordings"))


def change(path: Path, tensors: dict[str, Tensor | None], metadata: dict[str, str] | None = None) -> None:
    """Replace, add or (None) remove tensors of a file."""
    with safe_open(path, "pt") as file:
        old = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        text = file.metadata()
    kept = {key: value for key, value in {**old, **tensors}.items() if value is not None}
    save_file(kept, path, metadata={**text, **(metadata or {})})


def read(path: Path, tensor: str) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(tensor)


def test_our_part_of_the_recordings_is_met():
    checks = replay_reference(OWN)
    assert not failed(checks), format_checks(checks)
    quantities = {c.quantity for c in checks}
    assert quantities >= {"masks", "predictions", "caches", "losses", "gradients", "sampling trajectories"}
    assert len(checks) >= 25


@needs_shared
@pytest.mark.parametrize("kind", ["A", "B", "C", "schedules"])
def test_the_recordings_are_met(tmp_path: Path, kind: str):
    names = [f"{kind}.*"] if len(kind) == 1 else ["A.weights.safetensors", f"{kind}.safetensors"]
    for path in (path for name in names for path in SHARED.glob(name)):
        shutil.copy(path, tmp_path)
    checks = replay_reference(tmp_path)
    assert not failed(checks), format_checks(checks)
    assert len(checks) >= (39 if kind == "schedules" else 100)


def test_another_layer_norm_epsilon_is_noticed(monkeypatch: pytest.MonkeyPatch):
    original = nn.LayerNorm.__init__

    def wrong(self: nn.LayerNorm, shape: int, eps: float = 1e-5, elementwise_affine: bool = True) -> None:
        original(self, shape, elementwise_affine=elementwise_affine)
        self.eps = 1e-6

    monkeypatch.setattr(nn.LayerNorm, "__init__", wrong)
    found = failed(replay_reference(OWN))
    assert found >= {"predictions", "caches", "losses", "sampling trajectories"}
    assert "masks" not in found


def test_erf_gelu_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feed_forward.FeedForward, "forward", lambda mlp, x: mlp.fc2(F.gelu(mlp.fc1(x))))
    assert failed(replay_reference(OWN)) >= {"predictions", "sampling trajectories"}


@pytest.mark.parametrize("leak", ["own clean tokens", "condition sees clean", "clean sees earlier only"])
def test_a_wrong_mask_is_noticed(monkeypatch: pytest.MonkeyPatch, leak: str):
    def wrong(q_clean: Tensor, q_step: Tensor, k_clean: Tensor, k_step: Tensor) -> Tensor:
        same, earlier = k_step == q_step, k_step < q_step
        own = ~k_clean & ~q_clean & same
        if leak == "own clean tokens":
            return k_clean & (earlier | same) | own
        if leak == "condition sees clean":
            return k_clean & (earlier | q_clean & (same | (q_step == 0))) | own
        return k_clean & (earlier | q_clean & same & (q_step == 0)) | own

    monkeypatch.setattr("causalfusion.mask.may_attend", wrong)
    assert failed(replay_reference(OWN)) >= {"masks", "predictions"}


def test_a_changed_weight_is_noticed(folder: Path):
    name = "blocks.2.mlp.fc1.bias"
    weight = read(folder / "B.weights.safetensors", name)
    change(folder / "B.weights.safetensors", {name: weight + 1e-3})
    assert failed(replay_reference(folder)) >= {"predictions", "losses", "gradients", "sampling trajectories"}


@pytest.mark.parametrize(
    ("file", "tensor", "quantity"),
    [
        ("train", "case1/eps_pred", "predictions"),
        ("train", "case1/grad/cond_pos_embed", "gradients"),
        ("train", "case1/loss", "losses"),
        ("infer", "ar/tokens_shuffled", "sampling trajectories"),
        ("sample", "kv_cond/v", "caches"),
    ],
)
def test_nan_never_passes(folder: Path, file: str, tensor: str, quantity: str):
    path = folder / f"B.{file}.safetensors"
    value = read(path, tensor).clone()
    value.view(-1)[-1] = torch.nan
    change(path, {tensor: value})
    assert failed(replay_reference(folder)) == {quantity}


def test_a_flipped_bit_of_the_mask_or_order_is_noticed(folder: Path):
    path = folder / "B.train.safetensors"
    mask, order = read(path, "case1/attn_mask").clone(), read(path, "case1/ids_shuffle").clone()
    mask[-1, 0] = 1 - mask[-1, 0]
    order[0, :2] = order[0, :2].flip(0)
    change(path, {"case1/attn_mask": mask, "case1/ids_shuffle": order})
    assert failed(replay_reference(folder)) == {"masks", "orders"}


def test_what_the_replay_does_not_know_is_not_passed_over(folder: Path):
    change(folder / "B.train.safetensors", {"case1/new_quantity": torch.zeros(1)})
    change(folder / "B.infer.safetensors", {"eps_of_another_kind": torch.zeros(1)})
    checks = replay_reference(folder)
    assert {(c.file, c.tensor) for c in checks if not c.ok} == {
        ("B.train", "case1/new_quantity"),
        ("B.infer", "eps_of_another_kind"),
    }
    assert "new_quantity" in format_checks(checks)


def test_contradictory_shapes_do_not_look_like_a_pass(folder: Path):
    path = folder / "B.sample.safetensors"
    change(path, {"z": read(path, "z")[:, :-1].contiguous()})
    assert "not replayed" in failed(replay_reference(folder))


@pytest.mark.parametrize(
    ("file", "tensor", "message"),
    [
        ("weights", "final_layer.1.bias", "lacks weight final_layer"),
        ("train", "case1/noise", "lacks the tensor case1/noise"),
        ("sample", "z", "lacks the tensor z"),
    ],
)
def test_a_missing_input_is_named(folder: Path, file: str, tensor: str, message: str):
    change(folder / f"B.{file}.safetensors", {tensor: None})
    with pytest.raises(UserError, match=message):
        replay_reference(folder)


def test_settings_that_contradict_the_weights_are_refused(folder: Path):
    path = folder / "B.weights.safetensors"
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    for name, value in (("num_heads", 4), ("input_size", 7), ("mlp_ratio", 3.0), ("num_classes", 7)):
        change(path, {}, {"config": json.dumps({**config, name: value})})
        with pytest.raises(UserError):
            replay_reference(folder)


def test_damaged_and_empty_folders_are_refused(folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \*\.weights\.safetensors"):
        replay_reference(tmp_path / "empty")
    path = folder / "B.infer.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        replay_reference(folder)


@needs_shared
def test_a_sign_below_rounding_excuses_no_wrong_optimizer(tmp_path: Path):
    """B's recorded loop holds one first gradient, 2e-7 of its tensor's largest, with the other sign."""
    for kind in ("weights", "loop"):
        shutil.copy(SHARED / f"B.{kind}.safetensors", tmp_path)
    path = tmp_path / "B.loop.safetensors"
    path.chmod(0o644)
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["optimiser"])
    for name, value in (("lr", 1.01e-3), ("betas", [0.9, 0.96]), ("ema_decay", [0.8, 0.9, 0.9999])):
        change(path, {}, {"optimiser": json.dumps({**settings, name: value})})
        checks = replay_reference(tmp_path)
        assert failed(checks) & {"parameters after steps", "EMA after steps"}, name
        assert not any(c.note for c in checks)


@needs_shared
def test_the_generated_autoencoder_weights_are_the_recorded_ones():
    """The first values that the recording's README gives, which depend on every name's rank."""
    with safe_open(SHARED / "autoencoder" / "vae.safetensors", "pt") as file:
        shapes = json.loads(file.metadata()["keys"])
    small = {
        name: shape if len(shape) == 1 else [*shape[:1], 1, *shape[2:]] for name, shape in shapes.items()
    }
    small["decoder.mid.attn_1.k.weight"] = shapes["decoder.mid.attn_1.k.weight"]
    weights = generated_weights(small)
    bias = torch.tensor([-0.0409561, 0.0830699, -0.0064481, 0.0385559])
    kernel = torch.tensor([0.0522308, 0.0039092, -0.0206751, -0.0359502])
    torch.testing.assert_close(weights["decoder.conv_in.bias"][:4], bias, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        weights["decoder.mid.attn_1.k.weight"].flatten()[:4], kernel, atol=1e-6, rtol=0
    )
