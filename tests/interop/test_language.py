"""Language models of other libraries: what they compute is what was recorded of them, they come back bit for
bit, and what cannot be read is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import (
    CONFIGS,
    END,
    NAMES,
    change_weights,
    converted,
    folder_of,
    letters_tokenizer,
    needs_recordings,
    recorded,
    relative,
    spread,
)
from safetensors.torch import load_file
from torch import Tensor

from causalfusion import cli
from causalfusion.config import WriteConfig
from causalfusion.errors import UserError
from causalfusion.generate.language import LanguagePipeline
from causalfusion.generate.pipeline import Pipeline
from causalfusion.interop.language import convert
from causalfusion.interop.language.convert import (
    describe,
    export_model,
    open_source,
    plan_conversion,
)
from causalfusion.saved.folder import load_spec, packaged_models

pytestmark = needs_recordings
GREEDY = WriteConfig(max_tokens=20)


def pipeline_of(name: str, tmp_path: Path, config: str = "config.json", **changes: Any) -> LanguagePipeline:
    return LanguagePipeline.load(
        converted(folder_of(name, tmp_path / "theirs", config, **changes), tmp_path / "m")
    )


def without_end(pipeline: LanguagePipeline) -> LanguagePipeline:
    """It writes on, as the recordings do."""
    return LanguagePipeline(pipeline.model, pipeline.spec, pipeline.tokenizer)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_continuations_are_those_recorded(name: str, config: str, tmp_path: Path):
    pipeline, io = without_end(pipeline_of(name, tmp_path, config)), recorded(name)
    rows = io["input_ids"].tolist()
    assert relative(torch.stack(pipeline.logits(rows)), io["logits"]) <= 1e-5
    length = int(io["padded/attention_mask"][1].sum())
    padded = pipeline.logits([rows[0], rows[1][:length]])
    assert relative(padded[0], io["logits"][0]) <= 1e-5
    assert relative(padded[1], io["padded/logits"][0]) <= 1e-5
    prompts = io["prompt_ids"].tolist()
    assert pipeline.write(prompts, GREEDY) == io["greedy_ids"].tolist()
    # Rows of unequal lengths: each as if it were alone.
    uneven = [prompts[0][:4], prompts[1]]
    assert pipeline.write(uneven, GREEDY) == [
        *pipeline.write(uneven[:1], GREEDY),
        io["greedy_ids"][1].tolist(),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_it_comes_back_bit_for_bit_and_transformers_loads_it(name: str, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    theirs = folder_of(name, tmp_path / "theirs")
    export_model(converted(theirs, tmp_path / "m"), tmp_path / "back")
    before, after = (load_file(folder / "model.safetensors") for folder in (theirs, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(before[key].equal(after[key]) and before[key].dtype == after[key].dtype for key in before)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    io = recorded(name)
    with torch.no_grad():
        assert relative(model(io["input_ids"]).logits, io["logits"]) <= 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert tokenizer("ab" + END).input_ids == LanguagePipeline.load(tmp_path / "m").tokenizer.encode(
        "ab" + END
    )


ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12},
    "longrope": {
        "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "original_max_position_embeddings": 14,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
def test_every_stretch_of_the_frequencies_is_that_of_transformers(kind: str, tmp_path: Path):
    """Also where the text outgrows what the frequencies were made for: our cache is then made anew, so that
    each token is the one of an uncached pass."""
    transformers = pytest.importorskip("transformers")
    longest = 14 if kind == "dynamic" else 128
    changes = {"rope_parameters": ROPES[kind] | {"rope_theta": 10_000.0}, "max_position_embeddings": longest}
    pipeline = without_end(pipeline_of("llama_a", tmp_path, **changes))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    ids = recorded("llama_a")["input_ids"][:1]
    for length in (9, 24):
        with torch.no_grad():
            expected = model(ids[:, :length]).logits[0]
        assert relative(pipeline.logits(ids[:, :length].tolist())[0], expected) <= 1e-5
    (found,) = pipeline.write(ids[:, :9].tolist(), GREEDY)
    grown = ids[0, :9].tolist()
    for token in found:
        assert token == int(pipeline.logits([grown])[0][-1].argmax())
        grown.append(token)


def test_qwen_windows_begin_at_a_block(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    changes = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "layer_types": None}
    pipeline = pipeline_of("qwen2_a", tmp_path, "config.legacy.json", **changes)
    assert (pipeline.model.config.language.window, pipeline.model.config.language.window_from) == (5, 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "theirs", attn_implementation="eager"
    )
    ids = recorded("qwen2_a")["input_ids"]
    with torch.no_grad():
        assert relative(torch.stack(pipeline.logits(ids.tolist())), model(ids).logits) <= 1e-5


def test_shards_in_bfloat16_stay_so(tmp_path: Path):
    theirs = folder_of("llama_b", tmp_path / "theirs")
    spread(theirs)
    source = open_source(str(theirs))
    said = "\n".join(describe(plan_conversion(source), source))
    assert "reads 2 files" in said and "as bfloat16" in said and "of memory" in said
    ours = converted(theirs, tmp_path / "m")
    assert {value.dtype for value in load_file(ours / "model.safetensors").values()} == {torch.bfloat16}
    export_model(ours, tmp_path / "back")
    after = load_file(tmp_path / "back" / "model.safetensors")
    for shard in theirs.glob("model-*.safetensors"):
        for name, value in load_file(shard).items():
            assert after[name].equal(value)
    io, found = (
        recorded("llama_b"),
        LanguagePipeline.load(ours).logits(recorded("llama_b")["input_ids"].tolist()),
    )
    assert 1e-4 < relative(torch.stack(found), io["logits"]) < 0.1  # the rounding of bfloat16


def test_gpt2_without_prefix_and_with_mask_tables(tmp_path: Path):
    theirs = folder_of("gpt2_a", tmp_path / "theirs")
    state = load_file(theirs / "model.safetensors")
    changes: dict[str, Tensor | None] = dict.fromkeys(state)
    changes |= {name.removeprefix("transformer."): value for name, value in state.items()}
    changes["h.0.attn.bias"] = torch.ones(1, 1, 96, 96).tril()
    changes["h.0.attn.masked_bias"] = torch.tensor([-1e4])
    change_weights(theirs, changes)
    pipeline = LanguagePipeline.load(converted(theirs, tmp_path / "m"))
    io = recorded("gpt2_a")
    assert relative(torch.stack(pipeline.logits(io["input_ids"].tolist())), io["logits"]) <= 1e-5


def test_a_head_stored_beside_the_embedding_it_is_tied_to(tmp_path: Path):
    theirs = folder_of("llama_b", tmp_path / "theirs")
    embedding = load_file(theirs / "model.safetensors")["model.embed_tokens.weight"]
    change_weights(theirs, {"lm_head.weight": embedding.clone()})
    assert plan_conversion(open_source(str(theirs))).model.language.tied
    change_weights(theirs, {"lm_head.weight": embedding + 1})
    with pytest.raises(UserError, match=r"lm_head.weight is not the embedding, though tie_word_embeddings"):
        plan_conversion(open_source(str(theirs)))


def test_texts_end_where_the_model_ends_them_and_draws_depend_on_the_row_alone(tmp_path: Path):
    pipeline = pipeline_of("llama_a", tmp_path)
    prompts = ["abc", "a longer prompt"]
    end = pipeline.tokenizer.id_of(END)
    assert pipeline.end_ids == {end}
    (whole,) = without_end(pipeline).write([pipeline.tokenizer.encode("abc")], GREEDY)
    third = LanguagePipeline(pipeline.model, pipeline.spec, pipeline.tokenizer, frozenset({whole[2]}))
    assert third.write([pipeline.tokenizer.encode("abc")], GREEDY) == [whole[: whole.index(whole[2])]]
    drawn = WriteConfig(max_tokens=8, text_temperature=1.0, top_k=40, top_p=0.9)
    both = pipeline.complete(prompts, drawn, seed=3)
    assert pipeline.complete(prompts[1:], drawn, seed=3, row_indices=[1]) == both[1:]
    assert pipeline.complete(prompts, drawn, seed=4) != both
    room = pipeline.model.config.max_text_tokens
    assert len(without_end(pipeline).write([[1] * (room - 3)], GREEDY)[0]) == 3
    with pytest.raises(UserError, match=f"the text has {room} tokens; expected 1 to {room - 1}"):
        pipeline.write([[1] * room])
    with pytest.raises(UserError, match=r"the text has 0 tokens"):
        pipeline.complete([""])


def test_a_conversation_is_rendered_by_the_chat_template(tmp_path: Path):
    pipeline = pipeline_of("llama_a", tmp_path)
    messages = [{"role": "user", "content": "hi"}]
    assert pipeline.tokenizer.chat_text(messages) == "<user>hi<|end|><assistant>"
    ids = pipeline.tokenizer.encode_chat(messages)
    assert ids.count(pipeline.tokenizer.id_of(END)) == 1
    assert pipeline.chat(messages, GREEDY) == pipeline.tokenizer.decode(pipeline.write([ids], GREEDY)[0])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": (
        {"model_type": "falcon", "architectures": ["FalconForCausalLM"]},
        "its architecture is 'falcon'; those that can be read are llama, mistral, qwen2, qwen3, gpt2",
    ),
    "activation": ({"hidden_act": "relu"}, "hidden_act is 'relu'; expected silu"),
    "rope": ({"rope_parameters": {"rope_type": "spiral"}}, "its kind is 'spiral'; expected one of"),
    "partial rope": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; expected 1"),
    "width": ({"hidden_size": "48"}, "hidden_size is '48'; expected a whole number"),
    "depth": ({"num_hidden_layers": 3}, "lacks weight model.layers.2.*; expected those of llama"),
    "another depth": ({"num_hidden_layers": 1}, "has the unknown weight model.layers.1.*"),
    "mlp": ({"intermediate_size": 65}, r"blocks.0.mlp.gate.weight has shape \(64, 48\), expected \(65, 48\)"),
    "vocabulary": ({"vocab_size": 127}, r"text_embedding.weight has shape \(128, 48\), expected \(127, 48\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused_before_weights_are_read(what: str, tmp_path: Path):
    changes, message = WRONG[what]
    source = open_source(str(folder_of("llama_a", tmp_path / "theirs", **changes)))

    def never() -> Tensor:
        raise AssertionError("a weight was read")

    unread = {n: type(w)(w.shape, w.dtype, never) for n, w in source.weights.items()}
    with pytest.raises(UserError, match=message):
        plan_conversion(replace(source, weights=unread))


def test_missing_parts_are_named(tmp_path: Path):
    theirs = folder_of("llama_a", tmp_path / "a")
    spread(theirs, names=3)
    (theirs / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model-00002-of-00003.safetensors, one of 3 files"):
        open_source(str(theirs))
    theirs = folder_of("llama_a", tmp_path / "b")
    (theirs / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer.json; save it there"):
        converted(theirs, tmp_path / "m")
    (theirs / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds neither model.safetensors nor model.safetensors.index.json"):
        open_source(str(theirs))
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match=r"holds no config.json; expected a language model's folder"):
        open_source(str(tmp_path / "c"))
    assert not (tmp_path / "m").exists()


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path):
    theirs = folder_of("llama_a", tmp_path / "theirs")
    (theirs / "tokenizer.json").write_text(letters_tokenizer(129))
    with pytest.raises(UserError, match=r"the tokenizer has 129 ids, the model's vocabulary 128"):
        converted(theirs, tmp_path / "m")
    (theirs / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not a tokenizer.json of Hugging Face tokenizers"):
        converted(theirs, tmp_path / "m")
    (theirs / "tokenizer.json").write_text(letters_tokenizer())
    ours = converted(theirs, tmp_path / "m")
    (ours / "tokenizer.json").write_text(letters_tokenizer(100))
    with pytest.raises(UserError, match=r"another tokenizer.json than it was converted with"):
        LanguagePipeline.load(ours)


def test_too_little_disk_or_memory_is_said_first(tmp_path: Path, monkeypatch):
    theirs = folder_of("llama_a", tmp_path / "theirs")
    monkeypatch.setattr(convert, "available_memory", lambda: 1000.0)
    with pytest.raises(UserError, match=r"the largest weight needs .* GB of memory"):
        converted(theirs, tmp_path / "m")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"needs .* GB, its disk has .* GB left"):
        converted(theirs, tmp_path / "m")
    monkeypatch.undo()
    ours = converted(theirs, tmp_path / "m")
    monkeypatch.setattr("causalfusion.generate.language.available_memory", lambda: 1000.0)
    with pytest.raises(UserError, match=r"takes .* GB of memory"):
        LanguagePipeline.load(ours)


def test_values_that_are_not_finite_are_refused(tmp_path: Path):
    theirs = folder_of("llama_a", tmp_path / "theirs")
    change_weights(theirs, {"model.norm.weight": torch.full((48,), torch.nan)})
    with pytest.raises(UserError, match=r"model.norm.weight holds values that are not finite"):
        converted(theirs, tmp_path / "m")
    assert not (tmp_path / "m").exists() and not list(tmp_path.glob(".partial*"))


def test_a_model_of_images_is_not_one_and_the_other_way_round(tmp_path: Path):
    ours = converted(folder_of("llama_a", tmp_path / "theirs"), tmp_path / "m")
    assert load_spec(ours).model.text_only
    with pytest.raises(UserError, match=r"is a language model without images, which only completes texts"):
        Pipeline.load(ours)
    with pytest.raises(UserError, match=r"did not begin as a language model; use Pipeline"):
        LanguagePipeline.load("shapes")
    with pytest.raises(UserError, match=r"did not begin as a language model"):
        export_model(packaged_models()["shapes"], tmp_path / "back")


def test_the_commands_convert_complete_and_write_back(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder_of("llama_a", tmp_path / "theirs")
    assert cli.run(["convert", "llm", "theirs", "--out", "m"]) == 0
    said = capsys.readouterr().out
    assert "llama, 2 blocks of width 48, 4 heads of 12 (2 of keys), vocabulary 128" in said
    assert "reads 1 file and writes 0.00 GB as float32" in said
    pipeline = LanguagePipeline.load("m")
    (expected,) = pipeline.complete(["abc"], GREEDY)
    command = ["complete", "abc", "--model", "m", "--max-tokens", "20", "--device", "cpu"]
    assert cli.run(command) == 0
    told = json.loads((tmp_path / "completion" / "story.json").read_text())
    assert told["finished"] and told["elements"] == [
        {"from": "prompt", "text": "abc"}, {"from": "model", "text": expected},
    ]  # fmt: skip
    assert cli.run([*command, "--chat"]) == 0
    told = json.loads((tmp_path / "completion" / "story.json").read_text())
    answer = pipeline.chat([{"role": "user", "content": "abc"}], GREEDY)
    assert told["chat"] and told["elements"][-1]["text"] == answer != expected
    assert cli.run(["doctor", "--model", "m", "--device", "cpu"]) == 0
    assert "text, cached against masked" in capsys.readouterr().out
    for _ in range(2):  # in place of the first one, the second time
        assert cli.run(["convert", "hf", "m", "--out", "back"]) == 0
    assert (tmp_path / "back" / "model.safetensors").stat().st_size > 0
    capsys.readouterr()
    for wrong, message in (
        (["sample", "--model", "m"], "is a language model without images"),
        (["convert", "bundle", "--model", "m", "--out", "b"], "is a language model without images"),
        ([*command, "more", "--chat"], "expected an odd number"),
        ([*command, "--diffusion-steps", "7"], "--diffusion-steps is for models with images"),
        (["complete", "picture.png", "--model", "m"], "it takes no picture.png"),
        (["complete", "abc", "--model", "shapes", "--chat"], "--chat is for language models"),
        (["convert", "llm", "nowhere/none/x", "--out", "n"], "is neither a folder nor a file here"),
    ):
        assert cli.run(wrong) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
