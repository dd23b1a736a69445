"""A hub of our own, and an environment in which the hub's client knows no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from local_hub import WRITER, LocalHub

from causalfusion.saved import hub as hub_module
from causalfusion.saved import hub_adapter


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    server = LocalHub()
    server.point_to(server.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_URL_HOSTS", frozenset({"127.0.0.1"}))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    hub_module.fetched_once.cache_clear()
    hub_adapter.adapter_fetched_once.cache_clear()
    yield server
    hub_module.fetched_once.cache_clear()
    hub_adapter.adapter_fetched_once.cache_clear()
    server.close()
