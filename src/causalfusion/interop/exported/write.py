"""Writing a model's programs: exported with lengths that stay free, compared with the eager passes at other
lengths, and described in `export.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from causalfusion import __version__
from causalfusion.config import ModelConfig
from causalfusion.errors import UserError
from causalfusion.files import write_whole
from causalfusion.generate.pipeline import Pipeline
from causalfusion.interop.exported.arguments import letters, ranges_of, some_inputs
from causalfusion.interop.exported.block import OneBlock
from causalfusion.interop.exported.heads import AppendForNext, Ask, Begin, ConditionOfNext, Head, Reread
from causalfusion.interop.exported.load import DESCRIPTION, FORMAT
from causalfusion.interop.exported.programs import Append, Condition, Program, Step, Uncached
from causalfusion.saved.folder import save_model
from causalfusion.saved.replace import replace_folder

TOLERANCE = 1e-5
"""Largest difference from the eager pass, relative to its largest number where that is above 1."""
Extra = Literal["uncached", "block"]
TRIED = ({"B": 1, "T": 1, "t": 1, "n": 1, "V": 1, "m": 1}, {"B": 4, "T": 9, "t": 6, "n": 5, "V": 4, "m": 6})
"""Lengths at which a program is compared, none of them that of its export."""
EXPORTED = {"B": 3, "T": 7, "t": 5, "n": 3, "V": 2, "m": 4}


@dataclass(frozen=True)
class Written:
    """A program in the folder."""

    name: str
    size: int
    """Bytes of its file."""
    difference: float
    """Largest difference from the eager pass, over the lengths that were tried."""


def refuse(config: ModelConfig) -> None:
    """Raises UserError, with the option's name and the reason, for a model that cannot be exported."""
    why, text = "", config.language
    longest = config.max_text_tokens + config.max_images
    if config.text_only:
        why = "it is a language model without images, and what is exported is the denoising of images"
    elif text.window:
        why = (
            f"its text attends within a window of {text.window} places (language.window), and a program is "
            "given one mask for all layers"
        )
    elif config.vocab_size and text.scaling.depends_on_length and longest > text.scaling.trained_length:
        why = (
            f"its rotary frequencies ({text.scaling.kind}, language.scaling) are others where what is read "
            f"at once has more than {text.scaling.trained_length} places, it has room for {longest}, and a "
            "program reads a part at a time"
        )
    elif config.own_image_weights:
        why = (
            "image tokens have weights of their own (image_weights own), and the tokens are sorted by kind "
            "in every layer, which depends on the lengths"
        )
    if why:
        raise UserError(f"this model cannot be exported: {why}")


def programs_of(pipeline: Pipeline, extras: Sequence[Extra] = ()) -> list[Program]:
    """The programs that sampling needs, and the extras. Raises UserError for what cannot be exported."""
    model, config = pipeline.model, pipeline.model.config
    refuse(config)
    noised = config.vocab_size > 0 and pipeline.spec.text.image_context == "noised"
    if config.context == "bidirectional":
        kinds: list[type[Program]] = [Begin, Reread, Head]
    elif config.per_token and config.head.ask == "previous":
        kinds = [ConditionOfNext, AppendForNext, Head]
    else:
        kinds = [Condition] if config.num_condition_tokens or config.vocab_size else []
        kinds += [Append, Ask, Head] if config.per_token else [Append, Step]
    if "uncached" in extras:
        if config.per_token:
            raise UserError(
                "--also uncached: a model with a per-token head (head.kind per_token) denoises outside of "
                "the transformer; its program step has no cache"
            )
        kinds.append(Uncached)
    kinds += [OneBlock] if "block" in extras else []
    return [kind(model, noised_context=noised) for kind in kinds]


def write_programs(pipeline: Pipeline, out: Path, extras: Sequence[Extra] = ()) -> list[Written]:
    """The folder of a model's programs, in place of one that is there, with its settings, tokenizer,
    autoencoder and recommended sampling. Raises UserError for a model that cannot be exported, and where a
    program differs from the eager pass."""
    if pipeline.quantize != "none":
        raise UserError(f"the weights are {pipeline.quantize}; load the model without quantize to export it")
    programs, written = programs_of(pipeline, extras), list[Written]()

    def write(folder: Path) -> None:
        save_model(
            folder, pipeline.spec, None, tokenizer=pipeline.tokenizer,
            autoencoder=pipeline.codec.autoencoder, sampling=pipeline.sampling,
        )  # fmt: skip
        for program in programs:
            exported = export_program(program)
            difference = compare(program, exported)
            file = folder / f"{program.name}.pt2"
            torch.export.save(exported, file)
            written.append(Written(program.name, file.stat().st_size, difference))
        write_whole(folder / DESCRIPTION, json.dumps(describe(pipeline, programs, written), indent=2) + "\n")

    replace_folder(out, write)
    return written


def lengths_within(config: ModelConfig, lengths: Mapping[str, int]) -> dict[str, int]:
    """These lengths, as far as the model has room."""
    return {letter: min(lengths[letter], most) for letter, (_, most) in ranges_of(config).items()}


@torch.no_grad()
def export_program(program: Program) -> ExportedProgram:
    """The program with every length free that is a letter."""
    ranges = ranges_of(program.config)
    dims = {
        letter: Dim(f"length_{letter}" if letter != "B" else "batch", min=ranges[letter][0], max=most)
        for letter, (_, most) in ranges.items()
        if ranges[letter][0] < most
    }
    inputs = some_inputs(program.inputs, program.config, lengths_within(program.config, EXPORTED))
    free = {
        one.name: {place: dims[size] for place, size in enumerate(one.shape) if size in dims}
        for one in program.inputs
    }
    return torch.export.export(program, (), inputs, dynamic_shapes=free, strict=False)


@torch.no_grad()
def compare(program: Program, exported: ExportedProgram) -> float:
    """The largest difference between the two at lengths other than those of the export. Raises UserError
    above the tolerance."""
    run, largest = exported.module(), 0.0
    for number, lengths in enumerate(TRIED):
        lengths = lengths_within(program.config, lengths)
        inputs = some_inputs(program.inputs, program.config, lengths, seed=number + 1)
        for ours, theirs in zip(_several(program(**inputs)), _several(run(**inputs)), strict=True):
            found = (ours - theirs).abs().max().item() / max(1.0, ours.abs().max().item())
            largest = max(largest, found)
            if ours.shape != theirs.shape or not found <= TOLERANCE:
                raise UserError(
                    f"the exported program {program.name} differs by {found:.1e} from the model at lengths "
                    f"{lengths}; nothing was written"
                )
    return largest


def _several(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def describe(pipeline: Pipeline, programs: Sequence[Program], written: Sequence[Written]) -> dict[str, Any]:
    """The content of export.json."""
    ranges = ranges_of(pipeline.model.config)
    told = []
    for program, file in zip(programs, written, strict=True):
        used = letters([*program.inputs, *program.outputs])
        told.append(
            {
                "name": program.name,
                "file": f"{program.name}.pt2",
                "what": program.summary,
                "inputs": [one.as_json() for one in program.inputs],
                "outputs": [one.as_json() for one in program.outputs],
                "lengths": {letter: list(ranges[letter]) for letter in used},
                "largest_difference_from_eager": file.difference,
            }
        )
    return {
        "format": FORMAT,
        "causalfusion": __version__,
        "torch": torch.__version__,
        "images_seen": pipeline.spec.images_seen,
        "grid": [pipeline.model.config.grid_height, pipeline.model.config.grid_width],
        "context": "keys and values of the context stand one behind another along T, at least one; a token "
        "that is not seen stands for none",
        "programs": told,
    }
