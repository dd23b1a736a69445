"""`train.precision auto`: what is faster on the machine, and for a run that has begun what it began with."""

from __future__ import annotations

import pytest
import torch

from causalfusion.config.recipes import load_config
from causalfusion.estimate import command, devices
from causalfusion.machine.runtime import compute_dtype
from causalfusion.train import opening
from causalfusion.train.resume import stored_settings
from causalfusion.train.run import train


@pytest.mark.parametrize(("faster", "precision"), [(False, "float32"), (True, "bfloat16")])
def test_auto_is_what_is_faster_and_stays_so(tiny_run, monkeypatch, capsys, faster, precision):
    config = tiny_run(train={"precision": "auto", "images": 32})
    monkeypatch.setattr(opening, "faster_in_bfloat16", lambda device: faster)
    checkpoint = train(config, device="cpu")
    assert f"train.precision auto: {precision}" in capsys.readouterr().out
    assert stored_settings(checkpoint)["train"]["precision"] == precision
    # Elsewhere the other one is faster; the run goes on as it began, and says nothing.
    monkeypatch.setattr(opening, "faster_in_bfloat16", lambda device: not faster)
    longer = tiny_run(train={"precision": "auto", "images": 48})
    checkpoint = train(longer, device="cpu")
    assert "precision" not in capsys.readouterr().out
    assert stored_settings(checkpoint)["train"]["precision"] == precision


def test_a_run_that_was_begun_with_a_precision_goes_on_with_auto(tiny_run, monkeypatch):
    train(tiny_run(train={"precision": "float32", "images": 32}), device="cpu", show_progress=False)
    monkeypatch.setattr(opening, "faster_in_bfloat16", lambda device: True)
    again = train(tiny_run(train={"precision": "auto", "images": 48}), device="cpu", show_progress=False)
    assert stored_settings(again)["train"]["precision"] == "float32"


def test_the_recipes_for_gpus_and_cpus_mean_bfloat16_on_a_gpu(monkeypatch):
    for recipe, kept in (("imagenet256", "bfloat16"), ("shapes", "auto"), ("cifar10", "auto")):
        overrides = {"data": {"path": "x"}} if recipe == "cifar10" else {}
        if recipe == "imagenet256":
            overrides = {"data": {"path": "x"}, "codec": {"autoencoder": "kl16.ckpt"}}
        assert load_config(recipe, **overrides).train.precision == kept
    config = load_config("shapes")
    assert command._settled(config, on_gpu=True).train.precision == "bfloat16"
    monkeypatch.setattr(command, "faster_in_bfloat16", lambda device: False)
    assert command._settled(config, on_gpu=False).train.precision == "float32"
    with pytest.raises(ValueError, match="precision is auto"):
        compute_dtype("auto")


def test_a_cpu_without_units_for_bfloat16_is_not_measured(monkeypatch):
    monkeypatch.setattr(devices, "computes_bfloat16", lambda: False)
    monkeypatch.setattr(devices, "measure_gemm_rate", lambda *a, **k: pytest.fail("measured"))
    assert not devices.faster_in_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize("units", [True, False])
def test_bfloat16_that_a_gpu_only_emulates_is_not_faster(monkeypatch, units):
    """Without units for it, torch says that it is supported, unless told to leave emulation out."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: units or including_emulation
    )
    assert devices.faster_in_bfloat16(torch.device("cuda")) == units
