"""Language models in folders and hub repositories in the format of `transformers`: config.json, weights in
one or several .safetensors, tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from causalfusion.config.serialize import read_object
from causalfusion.errors import UserError
from causalfusion.interop.language.source import LanguageSource, Stored
from causalfusion.weight_files import DTYPES

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
BESIDE = (
    CONFIG,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""Files that are kept as they are, to be written back."""


def open_folder(folder: Path, config_file: str = CONFIG) -> LanguageSource:
    """Raises UserError for a folder that holds no language model, or lacks a shard of it."""
    if not (folder / config_file).is_file():
        raise UserError(
            f"{folder} holds no {CONFIG}; expected a language model's folder, a hub id, or a .gguf file"
        )
    config = read_object(folder / config_file, "language model")
    shards = _shards(folder)
    tokenizer = folder / TOKENIZER
    return LanguageSource(
        str(folder),
        config,
        open_weights(shards),
        len(shards),
        tokenizer.read_bytes() if tokenizer.is_file() else None,
        {name: (folder / name).read_bytes() for name in BESIDE if (folder / name).is_file()},
    )


def _shards(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        table = read_object(folder / INDEX, "language model").get("weight_map")
        if not isinstance(table, dict) or not table:
            raise UserError(f"{folder / INDEX} has no weight_map; it is damaged")
        names = sorted({str(name) for name in table.values()})
        missing = [name for name in names if not (folder / Path(name).name).is_file()]
        if missing:
            raise UserError(
                f"{folder} lacks {missing[0]}, one of {len(names)} files of weights that {INDEX} names; "
                "download it again"
            )
        return [folder / Path(name).name for name in names]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    raise UserError(
        f"{folder} holds neither {WEIGHTS} nor {INDEX}; save the model as safetensors: "
        "AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)"
    )


def open_weights(shards: list[Path]) -> Mapping[str, Stored]:
    found: dict[str, Stored] = {}
    for path in shards:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    part = file.get_slice(name)
                    dtype = part.get_dtype()
                    # Old checkpoints hold mask tables of bools, which are left out by name.
                    kind = getattr(torch, DTYPES[dtype]) if dtype in DTYPES else torch.uint8
                    found[name] = Stored(tuple(part.get_shape()), kind, _reader(path, name))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}); the file is damaged or cut short") from error
    return found


def _reader(path: Path, name: str):
    def read() -> Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    return read


def download(name: str) -> Path:
    """The folder of a hub repository, in the local cache. Raises UserError."""
    from huggingface_hub import HfApi

    hub = HfApi()
    patterns = [WEIGHTS, INDEX, "model-*.safetensors", TOKENIZER, *BESIDE]
    try:
        # A single request first: a download would retry for minutes without a network.
        hub.model_info(name, timeout=20)
        return Path(hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # no network, no such repository, no access
        try:
            return Path(hub.snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        except Exception:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{name!r} is neither a folder nor a file here, and the hub does not give it ({reason}); "
                "expected a language model's folder, a hub id such as owner/name, or a .gguf file"
            ) from None
