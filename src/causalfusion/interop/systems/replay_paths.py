"""Replaying what SiT's recordings hold of its paths: coefficients, weighted losses, drifts, for the network
read as a prediction of the velocity, the noise or the score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from causalfusion.config import DiffusionConfig, SampleConfig
from causalfusion.diffusion.flow import Flow
from causalfusion.diffusion.process import make_process
from causalfusion.diffusion.sde import noise_rate, score_factors
from causalfusion.interop.recording import Recording
from causalfusion.interop.systems.replay_model import RecordedSystem
from causalfusion.model.transformer import Transformer

PATHS = {"Linear": "rectified_flow", "GVP": "gvp", "VP": "vp"}
_PREDICTIONS = {"velocity": "velocity", "noise": "epsilon", "score": "score"}
_NOISE = {
    "sigma": "sigma",
    "linear": "linear",
    "decreasing": "decreasing",
    "constant": "constant",
    "increasing-decreasing": "increasing_decreasing",
    "SBDM": "sbdm",
}
_NORM = 1.5
"""The recorded noises of SDEs, as in the README."""
_VELOCITY, _SCORE, _STATE = 2.0, 2.0, 3.0
"""At which conversions were recorded."""


def path_of(name: str, **settings: Any) -> Flow:
    """A path of theirs, with least squares and weights that are exact almost to its ends."""
    settings = {"prediction_type": "velocity", "least_level": 1e-6, **settings}
    process = make_process(DiffusionConfig(path=PATHS[name], timestep_from="noise", **settings))  # type: ignore[arg-type]
    assert isinstance(process, Flow), "all paths are flows"
    return process


@torch.no_grad()
def compare_paths(r: Recording, system: RecordedSystem, model: Transformer) -> None:
    """The tensors `coef/PATH/...` and `w/PATH/PREDICTION/...`."""
    for name in PATHS:
        if r.below(f"coef/{name}/"):
            _compare_coefficients(r, name)
        for kind in _PREDICTIONS:
            if r.below(f"w/{name}/{kind}/"):
                _compare_losses(r, system, model, name, kind)
    if "w/u" in r and "t_interval" in r.metadata:
        for key, (low, high) in r.json("t_interval").items():
            r.compare(f"w/{key}/t", r["w/u"] * (high - low) + low, "path coefficients")


def _compare_coefficients(r: Recording, name: str) -> None:
    there, process = f"coef/{name}/", path_of(name)
    levels = (1 - r[there + "t"].double()).tolist()
    own = SampleConfig(sampler="sde", sde_noise="sbdm")
    columns: dict[str, list[float]] = {key: [] for key in _COEFFICIENTS}
    for level in levels:
        signal, scale, signal_slope, noise_slope = process.at(level)
        of_state, of_prediction = process.factors([level])[0]
        score_of_state, score_of_clean = score_factors(process, level)
        clean = of_state * _STATE - of_prediction * _VELOCITY
        tweedie = (_STATE + scale**2 * _SCORE) / signal
        slope_of_state, slope_of_clean = process.slope_factors(level)
        # Their time runs the other way.
        values = (
            signal,
            scale,
            -signal_slope,
            -noise_slope,
            noise_rate(own, process, level),
            signal_slope / signal,
            score_of_state * _STATE + score_of_clean * clean,
            -(slope_of_state * _STATE + slope_of_clean * tweedie),
        )
        for key, value in zip(_COEFFICIENTS, values, strict=True):
            columns[key].append(value)
    for key, column in columns.items():
        r.compare(there + key, torch.tensor(column), "path coefficients")
    for theirs, ours in _NOISE.items():
        config = SampleConfig(sampler="sde", sde_noise=ours, sde_norm=_NORM)  # type: ignore[arg-type]
        rates = torch.tensor([noise_rate(config, process, level) for level in levels])
        r.compare(f"{there}diffusion/{theirs}", rates, "path coefficients")


_COEFFICIENTS = (
    "alpha",
    "sigma",
    "d_alpha",
    "d_sigma",
    "drift_var",
    "drift_mean_at_x1",
    "score_from_velocity",
    "velocity_from_score",
)


def _compare_losses(r: Recording, system: RecordedSystem, model: Transformer, name: str, kind: str) -> None:
    there, t = f"w/{name}/{kind}/", r[f"w/{name}/{kind}/t"]
    levels, clean, noise = 1 - t, r["w/x1"], r["w/noise"]
    sign = -1.0 if kind == "velocity" else 1.0
    plain = path_of(name, prediction_type=_PREDICTIONS[kind]).noise(clean, noise, levels)
    r.compare(there + "xt", plain.noised, "noised tokens")
    if kind == "velocity":
        r.compare(there + "ut", -plain.target, "noised tokens")
    output = system.sign * system.latents(system.predict(model, r[there + "xt"], t, r["w/y"]))
    r.compare(there + "pred", output, "predictions")
    for weighting in r.below(there + "loss/"):
        # Theirs of the score is the noise's, unless it is weighted.
        error_in = {"none": "epsilon" if kind == "score" else "prediction", "velocity": "velocity"}
        weight = "likelihood" if weighting == "likelihood" else "none"
        process = path_of(
            name,
            prediction_type=_PREDICTIONS[kind],
            loss_weight=weight,
            error_in=error_in.get(weighting, "prediction"),
        )
        tokens = process.noise(clean, noise, levels)
        errors = process.errors(sign * output, tokens).mean((1, 2, 3)) * process.weight(levels)
        r.compare(f"{there}loss/{weighting}", errors, "weighted losses")


@torch.no_grad()
def compare_drift(r: Recording, system: RecordedSystem, model: Transformer) -> None:
    """The tensors `drift/PATH/PREDICTION/drift` and `score`, without guidance."""
    if "drift/x" not in r:
        return
    x, t = r["drift/x"], r["drift/t"]
    output = system.sign * system.latents(system.predict(model, x, t, r["drift/y"]))
    for name in PATHS:
        for kind, ours in _PREDICTIONS.items():
            there = f"drift/{name}/{kind}/"
            if not r.below(there):
                continue
            process = path_of(name, prediction_type=ours)
            sign = -1.0 if kind == "velocity" else 1.0
            rows = [
                _drift_and_score(process, level, state, sign * prediction)
                for level, state, prediction in zip(
                    (1 - t.double()).tolist(), x.double(), output.double(), strict=True
                )
            ]
            r.compare(there + "drift", torch.stack([row[0] for row in rows]), "sampling trajectories")
            r.compare(there + "score", torch.stack([row[1] for row in rows]), "sampling trajectories")


def _drift_and_score(process: Flow, level: float, state: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity towards the data, and the score, that a prediction means."""
    of_state, of_prediction = process.factors([level])[0]
    clean = of_state * state + of_prediction * prediction
    slope_of_state, slope_of_clean = process.slope_factors(level)
    score_of_state, score_of_clean = score_factors(process, level)
    return (
        -(slope_of_state * state + slope_of_clean * clean),
        score_of_state * state + score_of_clean * clean,
    )
