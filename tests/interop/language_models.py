"""Small language models for tests: those that `transformers` recorded, and folders made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from causalfusion.interop.language.convert import open_source, plan_conversion, write_model

RECORDED = Path(__file__).resolve().parents[2].parent / "shared/parity/neighbours/hf_decoders"
needs_recordings = pytest.mark.skipif(not RECORDED.is_dir(), reason=f"{RECORDED} is absent")
NAMES = [f"{family}_{letter}" for family in ("gpt2", "llama", "mistral", "qwen2", "qwen3") for letter in "ab"]
CONFIGS = ("config.json", "config.legacy.json")
VOCABULARY = 128
END = "<|end|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def letters_tokenizer(size: int = VOCABULARY) -> str:
    """The tokenizer.json of a byte-level BPE of `size` ids: some bytes, no merges, an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: (not c.isascii(), c))[: size - 1]
    base = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    base.add_tokens([AddedToken(END, special=True, normalized=False)])
    return base.to_str()


def folder_of(name: str, folder: Path, config: str = "config.json", **changes: Any) -> Path:
    """A recorded model as a folder of `transformers`, with a tokenizer; `changes` to its configuration."""
    folder.mkdir(parents=True)
    values = json.loads((RECORDED / name / config).read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))
    shutil.copyfile(RECORDED / name / "model.safetensors", folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(letters_tokenizer())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def converted(folder: Path, out: Path) -> Path:
    """Our model folder of theirs."""
    source = open_source(str(folder))
    write_model(plan_conversion(source), source, out)
    return out


def recorded(name: str) -> dict[str, Tensor]:
    return load_file(RECORDED / name / "io.safetensors")


def change_weights(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Replace, add or (None) remove weights."""
    state = {**load_file(folder / "model.safetensors"), **changes}
    save_file({k: v for k, v in state.items() if v is not None}, folder / "model.safetensors")


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the largest value."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def spread(folder: Path, *, names: int = 2) -> None:
    """Divide the weights among several files, with an index, all in bfloat16."""
    state = {k: v.to(torch.bfloat16) for k, v in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    table: dict[str, str] = {}
    for number in range(names):
        part = {key: state[key] for key in sorted(state)[number::names]}
        file = f"model-{number + 1:05d}-of-{names:05d}.safetensors"
        save_file(part, folder / file)
        table |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
