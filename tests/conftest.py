"""What tests of several folders share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import save_file

from causalfusion.cli import run
from causalfusion.config.serialize import to_dict
from causalfusion.model.tables import WORD_TABLES, class_table_of
from causalfusion.pictures.charts import save_loss_map
from causalfusion.saved.adapter_files import CONFIG_FILE, FACTS_FILE, WEIGHTS_FILE, AdapterFacts
from causalfusion.saved.folder import latest_model, load_weights
from causalfusion.weight_files import fingerprint_of
from quick import quicken

settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")  # a busy machine is slow, and no test fails for it


@pytest.fixture(scope="session", autouse=True)
def quick_runs() -> Iterator[None]:
    """`real_charts` brings the charts back."""
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        yield


@pytest.fixture
def real_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causalfusion.train.reports.save_loss_map", save_loss_map)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two small layers on 64 digits. Not to be changed."""
    out = tmp_path_factory.mktemp("digits") / "run"
    small = ["--model.hidden-size", "16", "--model.depth", "2", "--train.evaluate-every", "0"]
    assert run(["train", "--config", "digits", "--train.images", "64", *small, "--out", str(out)]) == 0
    return out


class MakesAdapter(Protocol):
    def __call__(self, folder: Path, model: Path, *, seed: int = 0, **facts: Any) -> Path: ...


@pytest.fixture(scope="session")
def make_adapter() -> MakesAdapter:
    return _make_adapter


def _make_adapter(folder: Path, model: Path, *, seed: int = 0, **facts: Any) -> Path:
    """An adapter of a model, as fine-tuning writes it, with random numbers: low-rank additions to a layer, or
    rows of the `word` in its facts; and rows of the `classes` there."""
    weights, noise = load_weights(latest_model(model)), torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    if facts.get("word"):
        width = weights["text_embedding.weight"].shape[1]
        drawn = torch.randn(2, width, generator=noise)
        tables = [name.removesuffix(".weight") for name in WORD_TABLES]
        tensors = {f"{name}.{facts['word']}": drawn[row].clone() for row, name in enumerate(tables)}
        facts["kind"] = "text-inversion"
    else:
        layer = "blocks.0.attn.qkv"
        outputs, inputs = weights[f"{layer}.weight"].shape
        a, b = (torch.randn(*shape, generator=noise) / 8 for shape in ((2, inputs), (outputs, 2)))
        tensors = {
            f"base_model.model.{layer}.lora_{name}.weight": value
            for name, value in zip("AB", (a, b), strict=True)
        }
        plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "bias": "none"}
        (folder / CONFIG_FILE).write_text(json.dumps(plain | {"base_model_name_or_path": str(model)}))
    table = class_table_of(weights)
    if facts.get("classes") and table is not None:
        rows = len(facts["classes"]), weights[table].shape[1]
        tensors["class_rows"] = torch.randn(*rows, generator=noise)
    save_file(tensors, folder / WEIGHTS_FILE)
    known = AdapterFacts(base=str(model), fingerprint=fingerprint_of(weights))
    (folder / FACTS_FILE).write_text(json.dumps(to_dict(known) | facts))
    return folder
