from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from causalfusion.config import DiffusionConfig
from causalfusion.diffusion.schedule import NoiseSchedule, respacing_timesteps
from causalfusion.errors import UserError

RECORDED = Path(__file__).resolve().parents[2].parent / "shared" / "parity" / "schedules.safetensors"
SCHEDULE = NoiseSchedule.from_config(DiffusionConfig())


@pytest.mark.parametrize("spec", ["full", "10", "25", "250"])
def test_every_table_equals_the_recorded_one(spec: str) -> None:
    if not RECORDED.exists():
        pytest.skip(f"no recordings at {RECORDED}")
    recorded = load_file(RECORDED)
    levels = respacing_timesteps(1000, "" if spec == "full" else spec)
    schedule = SCHEDULE.select(levels)
    names = [key.split("/")[1] for key in recorded if key.startswith(spec + "/")]
    assert len(names) >= 3
    for name in names:
        expected = recorded[f"{spec}/{name}"]
        if name == "model_log_variance_fixed_large":
            actual = schedule.log_variance("fixed_large")
        else:
            actual = getattr(schedule, name)
        np.testing.assert_array_equal(actual, expected, err_msg=name)


def test_betas_are_linear_and_include_both_ends() -> None:
    schedule = NoiseSchedule.from_config(DiffusionConfig(num_timesteps=4, beta_start=0.1, beta_end=0.4))
    np.testing.assert_allclose(schedule.betas, [0.1, 0.2, 0.3, 0.4], rtol=1e-15)
    np.testing.assert_allclose(schedule.alphas_cumprod, [0.9, 0.72, 0.504, 0.3024], rtol=1e-15)


@given(st.integers(2, 60), st.data())
def test_respacing_keeps_the_signal_levels_and_composes(total: int, data: st.DataObject) -> None:
    schedule = NoiseSchedule.from_config(DiffusionConfig(num_timesteps=total))
    first = schedule.respace(data.draw(st.integers(1, total)))
    second = first.respace(data.draw(st.integers(1, first.num_timesteps)))
    for respaced in (first, second):
        np.testing.assert_allclose(
            respaced.alphas_cumprod, schedule.alphas_cumprod[respaced.timestep_map], rtol=1e-13
        )
        assert respaced.timestep_map[-1] == total - 1  # sampling starts at the noisiest timestep
        assert (np.diff(respaced.timestep_map) > 0).all()
        if respaced.num_timesteps > 1:
            assert respaced.timestep_map[0] == 0


def test_one_step_starts_from_the_noisiest_timestep_and_has_finite_tables() -> None:
    one = SCHEDULE.respace(1)
    assert one.timestep_map.tolist() == [999]
    assert one.posterior_mean_coef1.tolist() == [1.0]  # the mean is the predicted clean data itself
    assert one.posterior_mean_coef2.tolist() == [0.0]
    assert np.isfinite(one.log_variance("fixed_small")).all()
    assert np.isfinite(one.log_variance("fixed_large")).all()


def test_respacing_strings_of_the_reference() -> None:
    assert respacing_timesteps(1000, "10") == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert respacing_timesteps(1000, "1") == [0]
    assert respacing_timesteps(1000, "") == list(range(1000))
    assert respacing_timesteps(1000, "ddim25") == list(range(0, 1000, 40))
    assert respacing_timesteps(10, 4) == [0, 3, 6, 9]
    # Sections of 4, 3 and 3 timesteps: the remainder goes to the first ones.
    assert respacing_timesteps(10, "2,3,1") == [0, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("spec", [0, 1001, "1001", "ddim333", "ten", "10,,2", "400,601", "ddim", "ddim0"])
def test_impossible_respacings_are_refused(spec: int | str) -> None:
    with pytest.raises(UserError):
        respacing_timesteps(1000, spec)


def test_a_schedule_without_signal_at_the_end_is_refused() -> None:
    with pytest.raises(UserError, match="beta_end"):
        NoiseSchedule.from_config(DiffusionConfig(beta_end=0.9))
