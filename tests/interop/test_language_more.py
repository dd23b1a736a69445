"""Language models: rows of unequal lengths at the end of a model's room, what files of weights leave out, and
what a published or written folder holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from language_models import (
    change_weights,
    converted,
    folder_of,
    letters_tokenizer,
    needs_recordings,
    recorded,
    relative,
)
from safetensors.torch import load_file

from causalfusion import cli
from causalfusion.codec.chat import render_chat
from causalfusion.config import LoraConfig, WriteConfig
from causalfusion.errors import UserError
from causalfusion.generate.language import LanguagePipeline
from causalfusion.interop.language.convert import export_model, open_source, plan_conversion, write_model
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import load_spec, load_weights, save_model

pytestmark = needs_recordings


def converted_model(name: str, folder: Path) -> Path:
    return converted(folder_of(name, folder / "theirs"), folder / "model")


def test_a_row_without_room_does_not_end_longer_ones(tmp_path: Path):
    """GPT-2 has a table of positions: a row that is full has no further one, while others are written on."""
    loaded = LanguagePipeline.load(converted_model("gpt2_a", tmp_path))
    pipeline = LanguagePipeline(loaded.model, loaded.spec, loaded.tokenizer)  # it writes on, without an end
    config, room = WriteConfig(max_tokens=12), loaded.model.config.max_text_tokens
    rows = [[1] * (room - 3), [2, 3, 4, 5]]
    together = pipeline.write(rows, config)
    assert list(map(len, together)) == [3, 12]
    assert together == [pipeline.write([row], config)[0] for row in rows]
    assert pipeline.write([]) == pipeline.complete([]) == []


@pytest.mark.parametrize("name", ["llama_b", "gpt2_a"])
def test_a_file_may_hold_the_head_in_place_of_the_embedding_it_is_tied_to(name: str, tmp_path: Path):
    """`safetensors.torch.save_model` keeps one of two names of the same weights, the alphabet's first."""
    theirs = folder_of(name, tmp_path / "theirs")
    state = load_file(theirs / "model.safetensors")
    (embedding,) = (key for key in state if key.endswith((".embed_tokens.weight", ".wte.weight")))
    change_weights(theirs, {"lm_head.weight": state[embedding], embedding: None})
    source, io = open_source(str(theirs)), recorded(name)
    write_model(plan_conversion(source), source, tmp_path / "model")
    logits = torch.stack(LanguagePipeline.load(tmp_path / "model").logits(io["input_ids"].tolist()))
    assert relative(logits, io["logits"]) <= 1e-5
    change_weights(theirs, {"lm_head.weight": None})
    with pytest.raises(UserError, match=f"lacks weight {embedding}; expected those of"):
        plan_conversion(open_source(str(theirs)))


def test_a_language_model_is_published_with_all_that_it_needs(tmp_path: Path, capsys):
    """Its tokenizer has no markers, as that of a model which draws has."""
    model, out = converted_model("llama_b", tmp_path), tmp_path / "page"
    assert cli.run(["publish", str(model), "--license", "mit", "--out", str(out)]) == 0
    assert load_file(out / "model.safetensors").keys() == load_file(model / "model.safetensors").keys()
    before, after = LanguagePipeline.load(model), LanguagePipeline.load(out)
    config, said = WriteConfig(max_tokens=5), [{"role": "user", "content": "hi"}]
    assert before.chat(said, config) == after.chat(said, config) and before.end_ids == after.end_ids
    page = (out / "README.md").read_text()
    assert "pipeline_tag: text-generation" in page and "LanguagePipeline.load" in page
    (model / "tokenizer.json").write_text(letters_tokenizer(100))
    assert cli.run(["publish", str(model), "--out", str(tmp_path / "other")]) == 2
    assert "holds another tokenizer.json than it was converted with" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_low_rank_additions_that_are_left_out_are_told_as_such(tmp_path: Path):
    """They change the text, which is written as it was before them: no weights of images."""
    folder = converted_model("llama_b", tmp_path)
    spec, weights = load_spec(folder), load_weights(folder)
    spec = replace(spec, model=replace(spec.model, lora=LoraConfig(rank=2)))
    added = {name: v for name, v in Transformer(spec.model).state_dict().items() if name not in weights}
    save_model(folder, spec, weights | added)
    _, *notes = export_model(folder, tmp_path / "back")
    assert len(notes) == 1 and f"{len(added)} weights of low-rank additions are left out" in notes[0]
    assert "causalfusion convert merge" in notes[0]


def test_complete_goes_on_with_the_weights_that_are_asked_for_and_refuses_what_it_has_no_use_for(
    tmp_path: Path, capsys
):
    folder = converted_model("llama_b", tmp_path)
    line = ["complete", "abc", "--model", str(folder), "--max-tokens", "5", "--out", str(tmp_path / "out")]
    for unused in (["--elements", "2"], ["--candidates", "3"], ["--adapters", "x"], ["--quantize", "int8"]):
        assert cli.run([*line, *unused]) == 2
        expected = f"{unused[0]} is for models with images; {folder} is a language model\n"
        assert capsys.readouterr().err.endswith(expected)
    assert cli.run([*line, "--weights", "raw"]) == 2
    assert "it holds no raw weights" in capsys.readouterr().err
    others = {name: value.flip(0) for name, value in load_weights(folder).items()}
    save_model(folder, load_spec(folder), None, raw=others)
    said = []
    for weights in ("ema", "raw"):
        assert cli.run([*line, "--weights", weights]) == 0
        said.append(capsys.readouterr().out.splitlines()[0])
    assert said[0] != said[1]


@pytest.mark.parametrize("template", ["{{ tools | length }}", "{{ messages[0].content + 1 }}", "{{ 1 / 0 }}"])
def test_a_chat_template_that_fails_is_one_line(template: str):
    with pytest.raises(UserError, match="the model's chat template fails on these messages: ") as raised:
        render_chat(template, [{"role": "user", "content": "hi"}], {})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("file", "content", "answer"),
    [
        ("tokenizer_config.json", b'{"a": ', "tokenizer_config.json is not valid JSON"),
        ("tokenizer_config.json", b"[1]", "tokenizer_config.json holds a JSON list, expected an object"),
        ("tokenizer_config.json", b"\xff", "tokenizer_config.json is not valid JSON"),
        ("chat_template.jinja", b"\xff\xfe{{x", "chat_template.jinja is not UTF-8"),
        ("config.json", b'{"model_type": ["llama"]}', r"its architecture is \['llama'\]"),
    ],
)
def test_a_damaged_file_beside_the_weights_is_one_line(
    file: str, content: bytes, answer: str, tmp_path: Path
):
    theirs = folder_of("llama_b", tmp_path / "theirs")
    (theirs / file).write_bytes(content)
    with pytest.raises(UserError, match=answer) as raised:
        source = open_source(str(theirs))
        write_model(plan_conversion(source), source, tmp_path / "model")
    assert "\n" not in str(raised.value) and not (tmp_path / "model").exists()
