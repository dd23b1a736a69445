"""Adapters on disk: what fine-tuning adds to a model, in a folder of its own.

Low-rank additions are stored as peft stores its LoRA: `adapter_config.json`, and `adapter_model.safetensors`
with `base_model.model.<layer>.lora_A.weight` (r, I) and `.lora_B.weight` (O, r), r rank, I inputs, O outputs.
A new word's rows are `<table>.<word>`, those of new classes `class_rows`. `causalfusion.json` says of which
model's weights it is; an adapter without it, of peft's, is taken for any model that it fits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from causalfusion.config import NUM_MARKERS, FinetuneConfig
from causalfusion.config.serialize import read_object, read_record, to_dict
from causalfusion.errors import UserError, printable
from causalfusion.model.tables import WORD_TABLES, class_table_of
from causalfusion.saved.adapter_files import CONFIG_FILE, FACTS_FILE, FOLDER, WEIGHTS_FILE, AdapterFacts
from causalfusion.saved.folder import ModelSpec, checkpoints_of
from causalfusion.saved.hub import HubName, name_of_path
from causalfusion.saved.hub_adapter import adapter_fetched_once
from causalfusion.weight_files import read_weights, save_file

MAX_ALPHA = 1_000_000
_PREFIX, _CLASS_ROWS = "base_model.model.", "class_rows"
_TARGETS = r".*blocks\.\d+\.(attn|mlp)\.(qkv|proj|gate|fc1|fc2)"
"""Layers with low-rank additions, as a pattern for peft."""


class LowRank(NamedTuple):
    """scale B A, for a layer's weight (O, I)."""

    a: Tensor
    """(r, I)"""
    b: Tensor
    """(O, r)"""
    scale: float


@dataclass(frozen=True)
class Adapter:
    place: Path
    facts: AdapterFacts | None
    """None: peft's own, of which nothing is known."""
    additions: dict[str, LowRank]
    """By the name of the layer."""
    class_rows: Tensor | None = None
    """(n, D) rows of the new classes in the table of classes."""
    word_rows: dict[str, Tensor] = field(default_factory=dict)
    """(D,) the new word's row in each table that has one."""
    name: str = ""
    """What users know it by: its name on the hub, or that of its run or folder."""

    @property
    def told(self) -> str:
        """Its name on the hub, or its path: what messages call it by."""
        return self.name if "/" in self.name else str(self.place)


def write_adapter(
    folder: Path, finetune: FinetuneConfig, spec: ModelSpec, weights: Mapping[str, Tensor]
) -> None:
    """Write the adapter that a run trains, taken from the weights of its whole model. Not atomic."""
    facts = AdapterFacts(
        kind="lora" if finetune.adapter == "lora" else "text-inversion",
        base=finetune.base,
        fingerprint=finetune.fingerprint,
        word=finetune.word,
        classes=finetune.new_classes if finetune.adapter == "lora" else [],
        images_seen=spec.images_seen,
    )
    tensors = {}
    for name, value in weights.items():
        layer, _, last = name.rpartition(".")
        if last in ("lora_a", "lora_b"):
            tensors[f"{_PREFIX}{layer}.lora_{last[-1].upper()}.weight"] = value
        elif finetune.word and name in WORD_TABLES:
            tensors[f"{name.removesuffix('.weight')}.{finetune.word}"] = value[-NUM_MARKERS - 1]
    table = class_table_of(weights)
    if facts.classes and table is not None:
        tensors[_CLASS_ROWS] = weights[table][len(finetune.classes) : -1]
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.clone() for name, value in tensors.items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / FACTS_FILE).write_text(json.dumps(to_dict(facts), indent=2) + "\n")
    if facts.kind == "lora":
        lora = spec.model.lora
        settings = {
            "peft_type": "LORA",
            "base_model_name_or_path": finetune.base,
            "r": lora.rank,
            "lora_alpha": lora.alpha or lora.rank,
            "target_modules": _TARGETS,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "task_type": None,
        }
        (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")


def find_adapter(path: Path, fetch: Callable[[HubName], Path] = adapter_fetched_once) -> Path:
    """The adapter's folder that a path means: itself, or that of a run, or of its last checkpoint, or the one
    of this name on the hub, which `fetch` gets. What is on disk takes precedence. Raises UserError if there
    is none."""
    checkpoints = [checkpoint / FOLDER for checkpoint in checkpoints_of(path)[-1:]]
    for folder in (path, *checkpoints, path / FOLDER):
        if (folder / WEIGHTS_FILE).is_file():
            return folder
    name = name_of_path(path)
    if name is not None:
        return fetch(name)
    what = f"{path} holds no adapter" if path.exists() else f"there is no {path}"
    raise UserError(
        f"{what}: expected a folder with {WEIGHTS_FILE}, a run of causalfusion finetune --adapter lora, or a "
        "name on the hub (user/heart)"
    )


def read_adapter(path: Path, fetch: Callable[[HubName], Path] = adapter_fetched_once) -> Adapter:
    """The adapter of a folder, a run, or a name on the hub, which `fetch` gets. Raises UserError where there
    is none, or none that is understood."""
    folder = find_adapter(path, fetch)
    facts = None
    if (folder / FACTS_FILE).is_file():
        facts = read_record(AdapterFacts, folder / FACTS_FILE, "adapter")
    tensors = read_weights(folder / WEIGHTS_FILE)
    rows, tables = tensors.pop(_CLASS_ROWS, None), {}
    if facts is not None and facts.word:
        for table in WORD_TABLES:
            value = tensors.pop(f"{table.removesuffix('.weight')}.{facts.word}", None)
            if value is not None:
                tables[table] = value.float()
    additions = _additions(folder, tensors) if tensors else {}
    _require_whole(folder / WEIGHTS_FILE, facts, additions, rows, tables)
    rows = None if rows is None else rows.float()
    return Adapter(folder, facts, additions, rows, tables, _name_of(path))


def _name_of(path: Path) -> str:
    """What an adapter is called by in records: its name on the hub, or the last part of its path that says
    more than that it is an adapter."""
    on_hub = name_of_path(path)
    if on_hub is not None:
        return str(on_hub)
    path = path.resolve()
    return path.parent.name if path.name == FOLDER else path.name


def _require_whole(
    file: Path,
    facts: AdapterFacts | None,
    additions: Mapping[str, LowRank],
    rows: Tensor | None,
    tables: Mapping[str, Tensor],
) -> None:
    """Raises UserError for an adapter without what it is there for, with which a model would draw as if it
    had none."""
    lacks = ""
    if facts is not None and facts.word:
        lacks = "" if tables else f"rows of the word {facts.word}"
    elif not additions:
        lacks = "low-rank additions"
    elif facts is not None and facts.classes and rows is None:
        lacks = "rows of its classes"
    if lacks:
        raise UserError(f"{file} lacks the {lacks}; it is damaged, or of another adapter")


def _additions(folder: Path, tensors: dict[str, Tensor]) -> dict[str, LowRank]:
    """The low-rank additions among peft's tensors. Raises UserError for what is none."""
    settings = read_object(folder / CONFIG_FILE, "adapter")
    _require_plain(settings, folder)
    found: dict[str, LowRank] = {}
    for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
        layer = name.removesuffix(".lora_A.weight")
        a, b = tensors.pop(name).float(), tensors.pop(f"{layer}.lora_B.weight", None)
        if b is None or a.ndim != 2 or b.ndim != 2 or not b.shape[1] == len(a) > 0:
            raise UserError(f"{folder / WEIGHTS_FILE}: {name} has no lora_B that fits it; it is damaged")
        found[layer.removeprefix(_PREFIX)] = LowRank(a, b.float(), settings["lora_alpha"] / len(a))
    if tensors:
        raise UserError(
            f"{folder / WEIGHTS_FILE} has {sorted(tensors)[0]}; expected low-rank additions to linear layers"
        )
    return found


def _require_plain(settings: dict[str, Any], folder: Path) -> None:
    """Raises UserError for kinds of adapters, and variants of LoRA, that are not computed here."""
    odd = [name for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if settings.get(name)]
    if settings.get("peft_type") != "LORA" or odd or settings.get("bias", "none") != "none":
        what = odd[0] if odd else f"{settings.get('peft_type')}, bias {settings.get('bias', 'none')}"
        raise UserError(f"{folder} is an adapter with {what}; expected plain LoRA")
    alpha = settings.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= MAX_ALPHA:
        told = printable(repr(alpha))
        told = told if len(told) < 24 else f"{told[:12]}..."
        raise UserError(f"{folder / CONFIG_FILE}: lora_alpha is {told}; expected a number up to {MAX_ALPHA}")


def copy_adapter(checkpoint: Path, run: Path) -> Path | None:
    """The adapter of a checkpoint, copied into its run's folder, whole at any time; None if it has none."""
    source, place = checkpoint / FOLDER, run / FOLDER
    if not source.is_dir():
        return None
    temporary = run / f".partial-{FOLDER}"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)
    return place
