"""Replaying what `transformers` recorded of small language models, with our own code, in both forms of their
configuration (shared/parity/neighbours/hf_decoders).

The format is that of the README beside the recordings: a folder for each model, with config.json,
config.legacy.json, model.safetensors and io.safetensors. All sizes are read from the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.generate.language import GrowingText, packed_text
from causalfusion.interop.language.convert import Conversion, plan_conversion
from causalfusion.interop.language.hf_folder import CONFIG, WEIGHTS, open_folder
from causalfusion.interop.recording import LEFT_OUT, Check, Recording, replay_file
from causalfusion.interop.systems.links import follow_back
from causalfusion.model.transformer import Transformer

RECORDING = "io.safetensors"
CONFIGS = (CONFIG, "config.legacy.json")
TOLERANCES = {"losses": 2e-6, "gradients": 5e-5}


class Replayed(NamedTuple):
    """A recorded model in our hands."""

    model: Transformer
    conversion: Conversion
    recording: Recording
    form: str
    """Name of its configuration in the report; empty for config.json."""

    def compare(self, tensor: str, ours: Tensor, quantity: str, how: str = "") -> None:
        self.recording.compare(tensor, ours, quantity, ", ".join(filter(None, (how, self.form))))


def replay_language(folder: Path, name: str) -> list[Check]:
    """Replay the model in a folder, or those in the folders in it, called `name` in the report. Raises
    UserError for a model that cannot be read."""
    if not (folder / RECORDING).is_file():
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
        return [c for path in inside for c in replay_language(path, f"{name}/{path.name}".lstrip("/"))]
    if not (folder / WEIGHTS).is_file():
        note = f"no {WEIGHTS} beside the recording: its model is not replayed"
        return [Check(name or folder.name, "", LEFT_OUT, 0.0, note)]
    return replay_file(folder / RECORDING, lambda r: _replay(r, folder), name or folder.name, TOLERANCES)


def _replay(recording: Recording, folder: Path) -> None:
    for config in CONFIGS:
        if (folder / config).is_file():
            replayed = _open(recording, folder, config)
            _compare_logits(replayed)
            _compare_loss(replayed)
            _compare_continuations(replayed)
    for tensor in ("greedy_gap", "padded/attention_mask"):  # facts about the recording
        if tensor in recording:
            recording.used.add(tensor)


def _open(recording: Recording, folder: Path, config: str) -> Replayed:
    conversion = plan_conversion(open_folder(folder, config))
    model = Transformer(conversion.model)
    model.load_state_dict(dict(zip(conversion.shapes, conversion.tensors(), strict=True)))
    return Replayed(model, conversion, recording, "" if config == CONFIG else config)


@torch.no_grad()
def _compare_logits(replayed: Replayed) -> None:
    model, recording = replayed.model, replayed.recording
    ids = recording["input_ids"]
    first: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        first.append(output)

    handle = model.blocks[0].register_forward_hook(keep)
    sequence = packed_text(ids.tolist(), ids.device)
    (last,) = model.hidden(sequence)
    handle.remove()
    replayed.compare("hidden/1", first[0], "predictions")
    replayed.compare("hidden/last", last, "predictions")
    replayed.compare("logits", model.text_logits(last), "predictions")
    if "padded/logits" in recording:
        lengths = recording["padded/attention_mask"].sum(1).tolist()
        rows = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
        padded = model(packed_text(rows, ids.device)).text
        shorter = min(range(len(rows)), key=lengths.__getitem__)
        replayed.compare("padded/logits", padded[shorter : shorter + 1, : lengths[shorter]], "predictions")


def _compare_loss(replayed: Replayed) -> None:
    ids, model = replayed.recording["input_ids"], replayed.model
    logits = model(packed_text(ids.tolist(), ids.device)).text
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    replayed.compare("loss", loss[None], "losses")
    replayed.compare("loss_fp64", loss[None], "losses")
    model.zero_grad()
    loss.backward()
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, gradient in follow_back(replayed.conversion.links, ours).items():
        replayed.compare(f"grad/{name}", gradient, "gradients")


def _compare_continuations(replayed: Replayed) -> None:
    """Greedy tokens by the cache, and by a pass over all of them, at each of which it is compared."""
    recording = replayed.recording
    if "greedy_ids" not in recording:
        return
    count = recording["greedy_ids"].shape[1]
    steps = list(_greedy(replayed.model, recording["prompt_ids"], count))
    found = torch.stack([chosen for chosen, _ in steps], dim=1)
    replayed.compare("greedy_ids", found, "token ids", "cached")
    whole = torch.cat([recording["prompt_ids"], found[:, :-1]], dim=1)
    with torch.no_grad():
        logits = replayed.model(packed_text(whole.tolist(), whole.device)).text[:, -count:]
    replayed.compare("greedy_ids", logits.argmax(2), "token ids", "uncached")
    cached = torch.stack([logits for _, logits in steps], dim=1)
    name = ", ".join(filter(None, ("cached against uncached logits", replayed.form)))
    recording.check(name, cached, logits, "predictions")


@torch.no_grad()
def _greedy(model: Transformer, prompt: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(tokens (B,), the logits (B, V) that they are the largest of)."""
    text = GrowingText(model, prompt.tolist(), count, prompt.device)
    for _ in range(count):
        logits = text.logits
        yield logits.argmax(1), logits
        text.append(logits.argmax(1))
