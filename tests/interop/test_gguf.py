"""Language models in GGUF files: written here with the package gguf, in llama.cpp's names and layouts, and
read back; tokenizers of both kinds against the ones that they are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_models import RECORDED, TEMPLATE, needs_recordings, recorded, relative
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

from causalfusion.codec.language_tokenizer import make_language_tokenizer
from causalfusion.errors import UserError
from causalfusion.generate.language import LanguagePipeline
from causalfusion.interop.language.convert import open_source, plan_conversion, write_model
from causalfusion.interop.language.gguf_tokenizer import gguf_tokenizer, tokenizer_settings

gguf = pytest.importorskip("gguf")
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "ln_1": "attn_norm",
    "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}  # fmt: skip
ENDS = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "wte": "token_embd",
        "wpe": "position_embd", "ln_f": "output_norm"}  # fmt: skip
TEXTS = ["hello world", "  two spaces", "it's 2024!", "naïve — 日本 🤗", "a\n\n\tb", "x<end>y"]


def gguf_name(name: str) -> str:
    stem, _, part = name.removeprefix("model.").removeprefix("transformer.").rpartition(".")
    if stem.startswith(("layers.", "h.")):
        _, number, rest = stem.split(".", 2)
        return f"blk.{number}.{NAMES[rest]}.{part}"
    return f"{ENDS[stem]}.{part}"


def neighbours(x: Tensor, heads: int) -> Tensor:
    """As llama.cpp's converter orders the rows of queries and keys."""
    shape = x.shape
    return x.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).transpose(1, 2).reshape(shape)


def write_gguf(name: str, path: Path, kind: str, type_: Any = None, **changes: Any) -> Path:
    """A recorded model as llama.cpp's converter writes it, its matrices as `type_`."""
    config = json.loads((RECORDED / name / "config.json").read_text())
    writer = gguf.GGUFWriter(path, kind)
    theirs = {
        "n_embd": "embedding_length", "hidden_size": "embedding_length", "n_layer": "block_count",
        "num_hidden_layers": "block_count", "n_head": "attention.head_count",
        "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
        "intermediate_size": "feed_forward_length", "max_position_embeddings": "context_length",
        "n_positions": "context_length", "head_dim": "attention.key_length",
        "sliding_window": "attention.sliding_window",
    }  # fmt: skip
    values = {f"{kind}.{theirs[key]}": config[key] for key in theirs if config.get(key)}
    if kind == "gpt2":
        values["gpt2.feed_forward_length"] = config["n_inner"] or 4 * config["n_embd"]
    for key, value in (values | {k: v for k, v in changes.items() if isinstance(v, int)}).items():
        writer.add_uint32(key, value)
    for key in ("rms_norm_eps", "layer_norm_epsilon"):
        if key in config:
            where = "layer_norm_rms_epsilon" if key == "rms_norm_eps" else "layer_norm_epsilon"
            writer.add_float32(f"{kind}.attention.{where}", config[key])
    if "rope_parameters" in config:
        writer.add_float32(f"{kind}.rope.freq_base", config["rope_parameters"]["rope_theta"])
    for key, value in tokenizer_values(config["vocab_size"]).items():
        {list: writer.add_array, str: writer.add_string, int: writer.add_uint32}[type(value)](key, value)
    for key, value in load_file(RECORDED / name / "model.safetensors").items():
        if kind == "gpt2" and key.endswith("weight") and ".c_" in key:
            value = value.T
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if kind == "llama" and part in key:
                value = neighbours(value, config[heads])
        numbers = value.contiguous().numpy()
        if type_ is not None and numbers.ndim == 2:
            writer.add_tensor(gguf_name(key), gguf.quantize(numbers, type_), raw_dtype=type_)
        else:
            writer.add_tensor(gguf_name(key), numbers)
    for key, value in changes.items():
        if isinstance(value, np.ndarray):
            writer.add_tensor(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_values(size: int) -> dict[str, Any]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: (not c.isascii(), c))[: size - 3]
    letters += ["he", "ll"]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*letters, "<end>"], "tokenizer.ggml.token_type": [1] * len(letters) + [3],
        "tokenizer.ggml.merges": ["h e", "l l"], "tokenizer.ggml.eos_token_id": len(letters),
        "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip


def load(path: Path, out: Path) -> LanguagePipeline:
    source = open_source(str(path))
    write_model(plan_conversion(source), source, out)
    return LanguagePipeline.load(out)


@needs_recordings
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama_a", "llama"), ("mistral_b", "llama"), ("qwen2_a", "qwen2"), ("qwen2_b", "qwen2"),
        ("qwen3_a", "qwen3"), ("gpt2_a", "gpt2"), ("gpt2_b", "gpt2"),
    ],
)  # fmt: skip
def test_logits_are_those_recorded(name: str, kind: str, tmp_path: Path):
    pipeline = load(write_gguf(name, tmp_path / "m.gguf", kind), tmp_path / "m")
    io = recorded(name)
    assert relative(torch.stack(pipeline.logits(io["input_ids"].tolist())), io["logits"]) <= 1e-5
    end = pipeline.tokenizer.id_of("<end>")
    assert end is not None and pipeline.end_ids == {end}
    assert pipeline.tokenizer.encode("hell<end>")[-1] == end
    assert pipeline.tokenizer.chat_text([{"role": "user", "content": "x"}]) == "<user>x<|end|><assistant>"


@needs_recordings
def test_llama_3_scaling_comes_as_divisors_of_the_frequencies(tmp_path: Path):
    """llama.cpp stores, for factor 8, low 1, high 4, original 16, what each frequency is divided by."""
    size = 14
    frequencies = 500_000.0 ** -(np.arange(0, size, 2) / size)
    turns = 16 * frequencies / (2 * np.pi)
    smooth = np.clip((turns - 1) / 3, 0, 1)
    divisors = (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)
    path = write_gguf("llama_b", tmp_path / "m.gguf", "llama", **{"rope_freqs.weight": divisors})
    io = recorded("llama_b")
    found = load(path, tmp_path / "m").logits(io["input_ids"].tolist())
    assert relative(torch.stack(found), io["logits"]) <= 1e-5


@needs_recordings
@pytest.mark.parametrize(("type_", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_halves_stay_halves(type_: str, dtype: torch.dtype, tmp_path: Path):
    load(
        write_gguf("qwen2_a", tmp_path / "m.gguf", "qwen2", gguf.GGMLQuantizationType[type_]), tmp_path / "m"
    )
    ours = load_file(tmp_path / "m" / "model.safetensors")
    theirs = load_file(RECORDED / "qwen2_a" / "model.safetensors")
    up = theirs["model.layers.0.mlp.up_proj.weight"]
    assert ours["blocks.0.mlp.fc1.weight"].equal(up.to(dtype))
    queries = theirs["model.layers.1.self_attn.q_proj.weight"]
    assert ours["blocks.1.attn.qkv.weight"][:48].equal(queries.to(dtype))
    assert ours["norm_out.weight"].equal(theirs["model.norm.weight"])


@needs_recordings
def test_what_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"does not exist; expected a .gguf file"):
        open_source(str(tmp_path / "none.gguf"))
    (tmp_path / "text.gguf").write_text("hello " * 99)
    with pytest.raises(UserError, match="is not a GGUF file"):
        open_source(str(tmp_path / "text.gguf"))
    whole = write_gguf("qwen2_a", tmp_path / "a.gguf", "qwen2").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is not a GGUF file"):
        open_source(str(tmp_path / "cut.gguf"))
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        UserError, match="architecture is 'mamba'; those that can be read from GGUF are llama"
    ):
        open_source(str(tmp_path / "other.gguf"))
    path = write_gguf("llama_a", tmp_path / "p.gguf", "llama", **{"split.count": 3})
    with pytest.raises(UserError, match="is one of 3 parts; merge them"):
        open_source(str(path))
    path = write_gguf("llama_a", tmp_path / "r.gguf", "llama", **{"llama.rope.dimension_count": 6})
    with pytest.raises(UserError, match="6 of 12 numbers of a head turn"):
        open_source(str(path))


@needs_recordings
def test_a_type_that_the_package_does_not_read_is_named(tmp_path: Path, monkeypatch):
    path = write_gguf("llama_a", tmp_path / "m.gguf", "llama", gguf.GGMLQuantizationType.F16)

    def unknown(data: Any, kind: Any) -> Any:
        raise NotImplementedError("no dequantization")

    monkeypatch.setattr(gguf, "dequantize", unknown)
    with pytest.raises(UserError, match=r"is stored as F(16|32), which the package gguf does not read"):
        open_source(str(path))


def sentence_piece() -> tuple[dict[str, Any], Tokenizer]:
    """The values of a GGUF file, and the tokenizer whose tokens and scores they are."""
    from tokenizers import decoders, normalizers

    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    base = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    base.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    base.decoder = decoders.Sequence(strip)
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False)
    base.train_from_iterator(["hello world, it is a two word world"] * 5 + ["a red circle, hello"], trainer)
    vocabulary = base.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    values = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(place) for place in range(len(tokens))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip
    return values, base


def test_a_sentencepiece_vocabulary_gives_back_the_tokenizer_it_is_of():
    values, base = sentence_piece()
    json_, settings = gguf_tokenizer(values, "here"), tokenizer_settings(values)
    found = make_language_tokenizer(json_, settings, "", 400, "here")
    for text in [*TEXTS, "hello world, a red circle"]:
        expected = base.encode(text, add_special_tokens=False).ids
        assert found.encode(text, begin=False) == expected
        assert found.encode(text) == [1, *expected]
        assert found.decode(found.encode(text)) == text


@needs_recordings
@pytest.mark.parametrize("key", ["llama.attention.head_count", "llama.attention.head_count_kv"])
@pytest.mark.parametrize(
    ("count", "answer"), [(0, "is 0; expected a whole number of"), (7, "do not fit its")]
)
def test_numbers_of_heads_that_do_not_fit_are_one_line(key: str, count: int, answer: str, tmp_path: Path):
    path = write_gguf("llama_a", tmp_path / "m.gguf", "llama", **{key: count})
    with pytest.raises(UserError, match=answer) as raised:
        open_source(str(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"])
def test_byte_level_vocabularies_split_words_in_their_own_way(pre: str):
    """Merges that would join digits, or a word and its suffix, act only where the words allow them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    joined = ["12", "123", "1234", "'s", "aB"]
    values = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*letters, *joined, "<end>"],
        "tokenizer.ggml.token_type": [1] * (len(letters) + len(joined)) + [3],
        "tokenizer.ggml.merges": ["1 2", "12 3", "123 4", "' s", "a B"], "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.bos_token_id": 261,
    }  # fmt: skip
    json_ = gguf_tokenizer(values, "here")
    found = make_language_tokenizer(json_, {}, "", 400, "here")
    pieces = [found.decode([token], special=True) for token in found.encode("1234's aB")]
    digits = {"gpt-2": ["1234"], "llama-bpe": ["123", "4"]}.get(pre, list("1234"))
    word = ["a", "B"] if pre == "tekken" else ["aB"]
    assert pieces == [*digits, "'s", " ", *word]
    for text in TEXTS:
        assert found.decode(found.encode(text), special=True) == text
    assert tokenizer_settings(values)["add_bos_token"] == (pre == "llama-bpe")


def test_unknown_tokenizers_are_refused():
    values = tokenizer_values(100)
    with pytest.raises(UserError, match="splits text into words as 'mystery', which is not known"):
        gguf_tokenizer(values | {"tokenizer.ggml.pre": "mystery"}, "here")
    with pytest.raises(UserError, match="its tokenizer is of kind 'bert'"):
        gguf_tokenizer(values | {"tokenizer.ggml.model": "bert"}, "here")
