"""What tests of several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from causalfusion.cli import run

settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")  # a busy machine is slow, and no test fails for it


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two small layers on 64 digits. Not to be changed."""
    out = tmp_path_factory.mktemp("digits") / "run"
    small = ["--model.hidden-size", "16", "--model.depth", "2", "--train.evaluate-every", "0"]
    assert run(["train", "--config", "digits", "--train.images", "64", *small, "--out", str(out)]) == 0
    return out
