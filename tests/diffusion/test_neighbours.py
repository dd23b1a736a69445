"""Losses and samplers of neighbouring systems, replayed from the recorded outputs of their networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from causalfusion.config import DiffusionConfig, PredictionType, SampleConfig
from causalfusion.diffusion.ddpm import DDPM
from causalfusion.diffusion.flow import RectifiedFlow
from causalfusion.diffusion.levels import draw_unit_levels
from causalfusion.diffusion.schedule import NoiseSchedule, respacing_timesteps
from causalfusion.generate.guidance import Guidance

RECORDED = Path(__file__).resolve().parents[2].parent / "shared" / "parity" / "neighbours"
pytestmark = [
    pytest.mark.skipif(not RECORDED.exists(), reason=f"no recordings at {RECORDED}"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers'
]


class Recording:
    """Tensors of a file, by name, and its metadata."""

    def __init__(self, name: str) -> None:
        self.file = safe_open(RECORDED / f"{name}.safetensors", "pt")
        self.metadata: dict[str, str] = self.file.metadata()

    def __getitem__(self, name: str) -> Tensor:
        return self.file.get_tensor(name)


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """To a tolerance relative to the largest expected value, as the recordings' READMEs give them."""
    error = float((actual - expected).abs().max() / expected.abs().max())
    assert error <= tolerance, error


def last(latents: Tensor) -> Tensor:
    """Channels last, as tokens have their numbers."""
    return latents.movedim(-3, -1)


# --- DDPM with learned variances: DiT, Large-DiT, MAR -------------------------------------------------

LEARNED = DDPM(DiffusionConfig(variance="learned_range"))
MAR = DDPM(DiffusionConfig(beta_schedule="cosine", variance="learned_range"))


@pytest.mark.parametrize("name", ["dit/A", "dit/B", "large_dit/A", "large_dit/B"])
def test_mean_and_variance_terms_of_dit(name: str) -> None:
    r = Recording(f"{name}.train")
    clean, noise = last(r["case0/x0"]).flatten(1, 2), last(r["case0/noise"]).flatten(1, 2)
    tokens = LEARNED.noise(clean, noise, r["case0/t"])
    close(tokens.noised, last(r["case0/xt"]).flatten(1, 2), 1e-6)
    prediction = last(r["case0/model_out"]).flatten(1, 2)
    both = LEARNED.errors(prediction, tokens).mean(dim=(1, 2))
    mean_alone = (prediction[..., : clean.shape[-1]] - noise).square().mean(dim=(1, 2))
    close(mean_alone, r["case0/mse"], 2e-6)
    close(both - mean_alone, r["case0/vb"], 2e-5)
    close(both, r["case0/loss_per_sample"], 2e-5)


@pytest.mark.parametrize("name", ["dit/A", "dit/B"])
def test_dits_sampling_with_its_own_variances(name: str) -> None:
    r = Recording(f"{name}.sample")
    sampler = LEARNED.sampler(SampleConfig(respacing=r.metadata["respacing"]), len(r["t_model"]))
    assert sampler.timesteps == r["t_model"].tolist()
    x = last(r["z"])
    for k in range(len(sampler.timesteps)):
        following = sampler.step(k, x, last(r["cfg3/out_seq"][k]), last(r["noise_seq"][k]))
        close(following, last(r["cfg3/x_seq"][k]), 1e-5)
        x = last(r["cfg3/x_seq"][k])


@pytest.mark.parametrize("name", ["dit/A", "dit/B"])
def test_guidance_on_three_channels_is_dits(name: str) -> None:
    r = Recording(f"{name}.forward")
    scale = float(r.metadata["cfg_scale"])
    guided, everywhere = last(r["cfg/out3"]).chunk(2)[0], last(r["cfg/out_all"]).chunk(2)[0]
    # With all channels guided at another scale, u and c follow from both recordings where they differ.
    channels = guided.shape[-1] // 2
    torch.testing.assert_close(guided[..., :3], everywhere[..., :3])
    conditional = torch.cat([guided[..., 3:channels], guided[..., channels:]], dim=-1)
    unconditional = last(r["cfg/out3"]).chunk(2)[1]
    unconditional = torch.cat([unconditional[..., 3:channels], unconditional[..., channels:]], dim=-1)
    numbers = torch.arange(conditional.shape[-1]) < 0
    assert torch.equal(Guidance(scale, numbers=numbers).combine(conditional, unconditional), conditional)
    of_all = torch.arange(conditional.shape[-1]) < channels - 3
    close(
        Guidance(scale, numbers=of_all).combine(conditional, unconditional)[..., : channels - 3],
        everywhere[..., 3:channels], 1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["mar/A", "mar/B"])
def test_mars_loss(name: str) -> None:
    r, process = Recording(f"{name}.head"), MAR
    tokens = process.noise(r["x0"][:, None], r["noise"][:, None], r["t"])
    close(tokens.noised[:, 0], r["x_t"], 1e-6)
    both = process.errors(r["net_out"][:, None], tokens)[:, 0].mean(-1)
    close(both, r["mse"] + r["vb"], 2e-5)
    mask = r["mask"]
    close((both * mask).sum() / mask.sum(), r["loss"][0], 1e-5)


def test_mars_sampling() -> None:
    r, process = Recording("mar/A.sample"), MAR
    case = json.loads(r.metadata["cases"])[0]
    config = SampleConfig(respacing=case["steps"], temperature=case["temperature"])
    for iteration in (0, 3):
        there = f"case0/iter{iteration}/"
        outputs, x = r[there + "net_out_steps"], r[there + "noise_init"]
        sampler = process.sampler(config, len(outputs))
        assert sampler.timesteps == r["case0/t_model"].tolist()
        numbers = torch.arange(outputs.shape[-1]) < x.shape[-1]
        guidance = Guidance(float(r["case0/cfg_iter"][iteration]), numbers=numbers)
        for k in range(len(outputs)):
            prediction = guidance.combine(*outputs[k].chunk(2))
            close(sampler.step(k, x, prediction, r[there + "noise_steps"][k]), r[there + "x_steps"][k], 2e-6)
            x = r[there + "x_steps"][k]


def test_mars_chain_under_every_respacing() -> None:
    full = NoiseSchedule.from_config(DiffusionConfig(beta_schedule="cosine"))
    r = Recording("mar/schedules")
    names = [key for key in r.file.keys() if not key.startswith("mask_len")]  # noqa: SIM118
    for name in names:
        spec, table = name.split("/")
        kept = respacing_timesteps(1000, "" if spec == "full" else spec.replace("_", ","))
        ours = getattr(full.select(kept), table)
        np.testing.assert_allclose(ours, r[name].numpy(), rtol=1e-9, atol=1e-12, err_msg=name)
    assert len(names) > 40


# --- DDPM with a cosine chain: LatentLM ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["latentlm/A", "latentlm/B"])
def test_latentlms_targets_and_loss(name: str) -> None:
    r = Recording(f"{name}.train")
    settings = json.loads(r.metadata["diffusion"])
    process = DDPM(DiffusionConfig(beta_schedule="cosine", prediction_type=settings["prediction_type"]))

    def rows(name: str) -> Tensor:
        """(copies, tokens, numbers): a level per token."""
        tensor = r[name]
        return tensor if tensor.ndim == 3 else last(tensor).flatten(1, 2)

    clean = rows("case0/x").repeat_interleave(settings["batch_mul"], dim=0)
    tokens = process.noise(clean, rows("case0/noise"), r["case0/timesteps"])
    close(tokens.noised, rows("case0/x_noisy"), 1e-6)
    close(process.errors(rows("case0/out"), tokens).mean(), r["case0/loss"][0], 2e-6)


@pytest.mark.parametrize(("name", "case"), [("A", 0), ("A", 1), ("B", 2)])
def test_latentlms_solver(name: str, case: int) -> None:
    """DPM-Solver++ from recorded outputs, restarted for every token."""
    r = Recording(f"latentlm/{name}.sample")
    kind: PredictionType = json.loads(r.metadata["diffusion"])["prediction_type"]
    process = DDPM(DiffusionConfig(beta_schedule="cosine", prediction_type=kind))
    outputs, states = r[f"case{case}/model_out"], r[f"case{case}/x_steps"]
    for token in range(len(outputs)):
        sampler = process.sampler(SampleConfig(sampler="dpm++"), outputs.shape[1])
        assert sampler.timesteps == r[f"case{case}/timesteps"].tolist()
        x = r[f"case{case}/z"][token]
        for k in range(outputs.shape[1]):
            x = sampler.step(k, x, outputs[token, k], None)
            # Their ᾱ is a float32 product, which tells at the noisiest levels.
            close(x, states[token, k], 2e-4)


# --- flows: SiT and FiTv2, whose time and velocity run the other way ----------------------------------

FLOW = RectifiedFlow(DiffusionConfig(path="rectified_flow", prediction_type="velocity"))


@pytest.mark.parametrize("name", ["A", "B"])
def test_sits_path_and_loss(name: str) -> None:
    r = Recording(f"sit/{name}.train")
    tokens = FLOW.noise(r["case0/x1"], r["case0/noise"], 1 - r["case0/t"])
    close(tokens.noised, r["case0/xt"], 1e-6)
    close(-tokens.target, r["case0/ut"], 1e-6)
    close(FLOW.errors(-r["case0/pred"], tokens).mean(dim=(1, 2, 3)), r["case0/loss_per_sample"], 2e-6)


@pytest.mark.parametrize("weighting", ["none", "velocity", "likelihood"])
def test_sits_weights_of_a_predicted_noise(weighting: str) -> None:
    r = Recording("sit/A.train")
    settings: dict[str, object] = {}
    if weighting == "velocity":
        settings["error_in"] = "velocity"
    if weighting == "likelihood":
        settings["loss_weight"] = "likelihood"
    process = RectifiedFlow(
        DiffusionConfig(
            path="rectified_flow", prediction_type="epsilon", least_level=5e-4, **settings,  # type: ignore[arg-type]
        )
    )  # fmt: skip
    levels = 1 - r["w/Linear/noise/t"]
    tokens = process.noise(r["w/x1"], r["w/noise"], levels)
    close(tokens.noised, r["w/Linear/noise/xt"], 1e-6)
    errors = process.errors(r["w/Linear/noise/pred"], tokens).mean(dim=(1, 2, 3))
    close(errors * process.weight(levels), r[f"w/Linear/noise/loss/{weighting}"], 1e-5)


@pytest.mark.parametrize("name", ["A", "B"])
def test_sits_euler_and_heun(name: str) -> None:
    r = Recording(f"sit/{name}.sample")
    velocities, states = r["ode_euler/v_seq"], r["ode_euler/x_seq"]
    sampler = FLOW.sampler(SampleConfig(sampler="euler"), len(velocities))
    np.testing.assert_allclose(1 - np.array(sampler.shares), r["ode/times"][:-1].double(), atol=1e-6)
    for k in range(len(velocities)):
        close(sampler.step(k, states[k], -velocities[k], None), states[k + 1], 2e-6)
    told = FLOW.sampler(SampleConfig(sampler="heun"), len(velocities)).shares
    np.testing.assert_allclose(1 - np.array(told), r["ode_heun2/t_model"].double(), atol=1e-6)


def test_fits_path_loss_and_levels() -> None:
    r = Recording("fitv2/A.train")
    for case, kind in enumerate(json.loads(r.metadata["snr"])):
        drawn = r[f"case{case}/u_normal"] if kind == "lognorm" else r[f"case{case}/u_uniform"]
        expected = torch.sigmoid(drawn) if kind == "lognorm" else drawn
        close(expected, r[f"case{case}/t"], 1e-6)
    config = replace(FLOW.config, level_distribution="logit_normal")
    drawn = torch.randn(5, generator=torch.Generator().manual_seed(0))
    ours = draw_unit_levels(config, (5,), torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours, torch.sigmoid(drawn))  # the logistic function is symmetric in time
    tokens = FLOW.noise(r["case0/x1"], r["case0/noise"], 1 - r["case0/t"])
    close(tokens.noised, r["case0/xt"], 1e-6)
    mask = r["case0/mask"][:, :, None]
    errors = (FLOW.errors(-r["case0/pred"], tokens) * mask).mean(dim=(1, 2)) * r["case0/ratio"]
    close(errors, r["case0/loss_per_sample"], 2e-6)


def test_fits_euler() -> None:
    r = Recording("fitv2/A.sample")
    velocities, states = r["cfg3/v_seq"], r["cfg3/x_seq"]
    sampler = FLOW.sampler(SampleConfig(sampler="euler"), len(velocities))
    for k in range(len(velocities)):
        close(sampler.step(k, states[k], -velocities[k], None), states[k + 1], 2e-6)


def test_the_sde_takes_the_times_of_fit() -> None:
    r = Recording("fitv2/A.sample")
    shares = FLOW.sampler(SampleConfig(sampler="sde"), len(r["times"])).shares
    told = r["sde/t_model"][::2].double()  # they call the network twice
    np.testing.assert_allclose(1 - np.array(shares), told, atol=1e-6)
