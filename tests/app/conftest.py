"""Models as the page opens them."""

from __future__ import annotations

from pathlib import Path

import pytest

from causalfusion.app.opened import Opened, open_model
from causalfusion.app.request import AppRequest


@pytest.fixture(scope="session")
def shapes() -> Opened:
    return open_model(AppRequest(device="cpu"))


@pytest.fixture(scope="session")
def digits(digits_run: Path) -> Opened:
    return open_model(AppRequest(model=digits_run, device="cpu"))
