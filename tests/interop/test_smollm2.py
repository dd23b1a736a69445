"""A real language model: SmolLM2-135M-Instruct as GGUF, from a PyPI package that is installed on demand,
against what was recorded of it and against `transformers` reading the same file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from causalfusion.config import WriteConfig
from causalfusion.generate.language import LanguagePipeline

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT.parent / "shared/parity/neighbours/smollm2/io.safetensors"
sys.path.insert(0, str(ROOT))

from benchmarks import language  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return language.install(tmp_path_factory.mktemp("packages"))
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pipeline(file: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguagePipeline:
    return LanguagePipeline.load(language.convert(file, tmp_path_factory.mktemp("smollm2")))


@pytest.mark.skipif(not RECORDED.is_file(), reason=f"{RECORDED} is absent")
def test_it_is_what_was_recorded_of_it(pipeline: LanguagePipeline):
    with safe_open(RECORDED, "pt") as recording:
        io = {name: recording.get_tensor(name) for name in recording.keys()}  # noqa: SIM118
    chat = pipeline.tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    plain = pipeline.tokenizer.encode("Water is made of two elements: hydrogen and")
    endless = LanguagePipeline(pipeline.model, pipeline.spec, pipeline.tokenizer)
    for name, ids in (("chat", chat), ("plain", plain)):
        assert ids == io[f"{name}/input_ids"].tolist()
        (logits,) = pipeline.logits([ids])
        assert float((logits[-1] - io[f"{name}/last_logits"]).abs().max()) <= 5e-4
        largest = logits[-1].topk(10)
        assert largest.indices.tolist() == io[f"{name}/top10_ids"].tolist()
        chosen = logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        torch.testing.assert_close(chosen, io[f"{name}/token_logprobs"], rtol=1e-5, atol=5e-4)
        assert endless.write([ids], WriteConfig(max_tokens=20)) == [io[f"{name}/greedy_ids"].tolist()]
    assert pipeline.tokenizer.decode(pipeline.write([chat])[0]) == "The capital of France is Paris."


def test_it_is_what_transformers_makes_of_the_file(file: Path, tmp_path: Path):
    pytest.importorskip("transformers")
    language.convert(file, tmp_path)
    sides: dict[str, dict[str, Any]] = {s: language.run_side(s, file, tmp_path) for s in language.SIDES}
    ours, theirs = sides["ours"], sides["transformers"]
    assert ours["prompts"] == theirs["prompts"]
    assert ours["texts"] == theirs["texts"] and all(len(text) == 64 for text in ours["texts"])
    assert language.largest_error(tmp_path) <= 1e-5
