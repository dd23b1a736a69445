"""A model or run as a folder to publish: complete in itself, with a page that tells what is known of it.

No path of this machine goes along: of data, runs and models only the last part of their names is told.
"""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from causalfusion.config import RunConfig
from causalfusion.config.finetuning import TaskName
from causalfusion.config.serialize import flat, read_object, to_dict, toml_value
from causalfusion.errors import UserError
from causalfusion.evaluate.cards.card import FILE_NAME as CARD_FILE
from causalfusion.evaluate.cards.card import Card, load_card, uncertainty
from causalfusion.evaluate.measures.figure import format_value
from causalfusion.evaluate.run import GRID_FILE
from causalfusion.files import sha256_of, write_whole
from causalfusion.interop.bundle import COPIED, bundle_model, require_elsewhere
from causalfusion.interop.language.folder import copy_language_model
from causalfusion.saved.adapter_files import FOLDER as ADAPTER_FOLDER
from causalfusion.saved.folder import (
    CLASSIFIER_FILE,
    latest_model,
    load_spec,
    load_tokenizer,
    load_weights,
    packaged_models,
    replace_model,
)
from causalfusion.saved.hub import hub_name, name_of_path, parse_hub_name
from causalfusion.saved.hub_upload import upload_model
from causalfusion.saved.model_card import CardFacts, CardFigure, makers_notes, model_card
from causalfusion.saved.started import autoencoder_place
from causalfusion.train.resume import settings_of_run, stored_settings
from causalfusion.weight_files import read_shapes

RECIPE_FILE = "training.toml"
_PATHS = (
    "data.path", "data.cache", "data.class_words", "codec.autoencoder", "train.init", "text.tokenizer",
    "distill.teacher", "align.encoder", "align.cache",
)  # fmt: skip
_NOT_TOLD = ("out", "distill.teacher_hash", "align.encoder_hash", *_PATHS)
_OF_PRIOR = ("finetune.prior_preservation", "finetune.prior_images")
_OF_ADAPTER = (
    "finetune.task", "finetune.adapter", "finetune.rank", "finetune.alpha", "finetune.word", "finetune.like",
)  # fmt: skip
_FROM_DATA = (
    "model.num_classes", "model.token_dim", "model.vocab_size", "model.grid_height", "model.grid_width",
    "codec.image_height", "codec.image_width", "codec.image_channels", "codec.latent_channels",
    "codec.downsample", "codec.max_area", "align.feature_dim",
)  # fmt: skip
"""Settings that a run fills in from its data."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is published of a model besides its weights."""

    license: str = ""
    autoencoder: str = ""
    """The autoencoder's place, if it is neither in the model's folder nor where it was in training."""
    cards: Sequence[Path] = ()
    """Result cards besides those in the run."""
    pictures: Sequence[Path] = ()
    """Pictures besides the run's latest samples."""


def write_publication(model: Path, out: Path, name: str, asked: Publication) -> list[str]:
    """Write the folder to publish of a model that users will load by `name`; lines about what is in it, and
    what is not. Raises UserError."""
    source = latest_model(model)
    run = source.parents[1] if source.parent.name == "checkpoints" else None
    cards, left_out = _cards(source, run, asked.cards)
    require_pictures(asked.pictures)
    notes = _write_model(source, out, asked.autoencoder)
    if left_out:
        notes.append(f"{left_out} result cards in {run} are of other weights, and left out")
    if (source / ADAPTER_FOLDER).is_dir():
        notes.append("this is the whole model; the adapter that the run trained is published by --adapter")
    facts = CardFacts(
        parameters=_count_parameters(source),
        license=asked.license,
        figures=[figure for _, card in cards for figure in _figures_of(card)],
        data=_data_facts(source),
        recipe=_write_recipe(source, out),
        task=_task_of(source),
        pictures=copy_pictures(run, cards, asked.pictures, out),
        own_text=own_text(source),
    )
    for number, (_, card) in enumerate(cards):
        write_whole(out / "figures" / f"{number:02d}.json", _without_paths(card).to_json())
    write_whole(out / "README.md", model_card(name, load_spec(out), facts))
    notes.append(f"{len(facts.figures)} figures, {len(facts.pictures)} pictures" + _named(facts.recipe))
    if not asked.license:
        notes.append("no licence is given, so others may not use it; add --license NAME, such as apache-2.0")
    return notes


def publish_model(model: Path, to: str, out: Path, asked: Publication, *, private: bool) -> list[str]:
    """Write the folder `out` and upload it to a repository of the hub. Raises UserError."""
    name = hub_name(to)
    notes = write_publication(model, out, to, asked)
    return [*notes, upload_model(out, name, private=private)]


def _named(recipe: str) -> str:
    return f", settings of its training in {recipe}" if recipe else ""


def _write_model(source: Path, out: Path, autoencoder: str) -> list[str]:
    """Write the model's folder, with an autoencoder that others could not find."""
    require_elsewhere(out, source)
    spec = load_spec(source)
    place = autoencoder or spec.codec.autoencoder
    on_hub = parse_hub_name(place) is not None and not _is_here(source, place)
    if spec.model.text_only:
        copy_language_model(source, out, spec)
        return []
    if on_hub and not autoencoder:
        weights, tokenizer = load_weights(source), load_tokenizer(source, spec)
        replace_model(out, spec, weights, tokenizer=tokenizer, beside=[source / name for name in COPIED])
        return [f"the autoencoder {place} is not inside: users get it from the hub"]
    bundle_model(source, out, autoencoder)
    return ["the autoencoder is inside"] if place else []


def _is_here(source: Path, place: str) -> bool:
    return Path(autoencoder_place(source, place)).expanduser().exists()


def _count_parameters(source: Path) -> int:
    return sum(math.prod(shape) for shape in read_shapes(source / "model.safetensors").values())


def own_text(source: Path) -> str:
    """What its makers wrote about the model, or adapter, of a folder."""
    file = source / "README.md"
    return makers_notes(file.read_text(encoding="utf-8")) if file.is_file() else ""


def _cards(source: Path, run: Path | None, given: Sequence[Path]) -> tuple[list[tuple[Path, Card]], int]:
    """(the result cards of these weights with their files, the number of those in the run that are of other
    weights). Raises UserError for a given card of other weights."""
    weights = sha256_of(source / "model.safetensors")
    found = [(path, load_card(path)) for path in given]
    for path, card in found:
        if card.samples.get("adapters"):
            raise UserError(
                f"{path} is a card of the model with adapters; leave it out, or publish that model, which "
                "causalfusion convert merge writes"
            )
        measured = card.samples.get("checkpoint_sha256", weights)
        if measured != weights:
            raise UserError(
                f"{path} is a card of other weights ({str(measured)[:16]}, those of {source} are "
                f"{weights[:16]}); evaluate this model, or leave the card out"
            )
    if run is None:
        return found, 0
    files = [f for f in sorted(run.rglob(CARD_FILE)) if "checkpoints" not in f.relative_to(run).parts]
    there = {(path / CARD_FILE if path.is_dir() else path).resolve() for path in given}
    within = [(file, load_card(file)) for file in files if file.resolve() not in there]
    plain = [(f, card) for f, card in within if not card.samples.get("adapters")]
    own = [(f, card) for f, card in plain if card.samples.get("checkpoint_sha256") == weights]
    return [*found, *own], len(within) - len(own)


def _figures_of(card: Card) -> list[CardFigure]:
    references = {str(r["features"]): str(r["name"]) for r in card.references}
    return [
        CardFigure(
            name=name,
            value=format_value(figure.value),
            uncertainty=uncertainty(figure),
            count=figure.count,
            of=", ".join(filter(None, [_against(references.get(figure.features, "")), _sampling(card)])),
        )
        for name, figure in card.figures.items()
    ]


def _against(reference: str) -> str:
    return f"against {Path(reference).name}" if reference else ""


def _sampling(card: Card) -> str:
    """The settings of sampling that figures depend on most, in words."""
    sample = card.samples.get("sample")
    if not isinstance(sample, dict):
        return ""
    steps = sample.get("diffusion_steps")
    steps = "+".join(map(str, steps)) if isinstance(steps, list) else steps
    best = f"best of {card.samples['candidates']}" if card.samples.get("candidates", 1) != 1 else ""
    told = [f"S = {sample.get('num_ar_steps')}, {sample.get('sampler')} {steps} steps"]
    told += [f"guidance {sample.get('guidance_scale')}", best, str(card.samples.get("quantize", ""))]
    return ", ".join(filter(None, told))


def _without_paths(card: Card) -> Card:
    """The card with the last parts of paths alone, and without the command, which has them."""
    samples = {
        k: Path(v).name if k in ("model", "name", "checkpoint") else v for k, v in card.samples.items()
    }
    references = [
        {k: Path(v).name if v and k in ("name", "file") else v for k, v in r.items()} for r in card.references
    ]
    run = {name: value for name, value in card.run.items() if name != "argv"}
    preset = card.preset and {
        **card.preset,
        "changed": {name: _last_part(value) for name, value in card.preset.get("changed", {}).items()},
    }
    return replace(card, samples=samples, references=references, preset=preset, run=run)


def _last_part(value: Any) -> Any:
    """Features, or a list of them, with the last part of a path behind the colon alone; all else as it is."""
    if isinstance(value, list):
        return [_last_part(each) for each in value]
    if not isinstance(value, str):
        return value
    kind, colon, place = value.partition(":")
    return kind + colon + Path(place).name if colon else value


def _data_facts(source: Path) -> dict[str, str]:
    """Facts about the data of a checkpoint's training; empty where they are unknown."""
    file = source / "state" / "data.json"
    if not file.is_file():
        return {}
    kept, settings = read_object(file, "training state"), flat(stored_settings(source))
    base = str(settings.get("finetune.base", ""))
    known = base in packaged_models() or name_of_path(Path(base)) is not None
    where = settings.get("data.cache") or settings.get("data.path") or ""
    facts = {
        "fine-tuned from": base if known else "",
        "source": " ".join(filter(None, [str(settings.get("data.source", "")), Path(where).name])),
        "images": f"{kept.get('images', 0):,}",
        "fingerprint": str(kept.get("fingerprint", ""))[:16],
        "seed": str(settings.get("train.seed", "")),
    }
    return {name: value for name, value in facts.items() if value}


def _task_of(source: Path) -> TaskName:
    """What the model of a checkpoint, or of a folder without its training, was last trained for."""
    if (source / CLASSIFIER_FILE).is_file():
        return "classify"
    return "caption" if flat(settings_of_run(source)).get("finetune.task") == "caption" else "generate"


def _write_recipe(source: Path, out: Path) -> str:
    """Write the settings of a checkpoint's training that are not the defaults, as a file for --config;
    returns its name, or nothing for a model without its training."""
    defaults, settings = flat(to_dict(RunConfig())), flat(settings_of_run(source))
    if not settings:
        return ""
    lines = [
        f"{name} = {toml_value(value)}"
        for name, value in settings.items()
        if value is not None
        and value != defaults.get(name)
        and name not in (*_NOT_TOLD, *_FROM_DATA)
        and not name.startswith("finetune.")
    ]
    left_out = [name for name in _PATHS if settings.get(name)]
    head = "# The settings of the model's training that are not the defaults.\n"
    if left_out:
        head += f"# Left out, as they are paths of the machine that trained it: {', '.join(left_out)}.\n"
    if settings.get("finetune.base"):
        told = [n for n in (*_OF_ADAPTER, *_OF_PRIOR) if settings.get(n) != defaults[n]]
        options = [
            f"--{n.removeprefix('finetune.').replace('_', '-')} {shlex.quote(str(settings[n]))}" for n in told
        ]
        head += (
            f"# Of a fine-tuning: causalfusion finetune MODEL --data PATH {' '.join(options)}".rstrip() + "\n"
        )
    write_whole(out / RECIPE_FILE, head + "\n".join(lines) + "\n")
    return RECIPE_FILE


def require_pictures(given: Sequence[Path]) -> None:
    """Raises UserError for a file that is no picture."""
    for path in given:
        if not path.is_file() or path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            raise UserError(f"--pictures {path} is no picture; expected .png, .jpg or .webp files")


def copy_pictures(
    run: Path | None, cards: list[tuple[Path, Card]], given: Sequence[Path], out: Path
) -> list[tuple[str, str]]:
    """Copy the run's latest samples, the grids of evaluations and those that are given; (description, file)
    of each. Raises UserError for a given file that is no picture."""
    require_pictures(given)
    found: list[tuple[str, Path]] = []
    grids = sorted((run / "samples").glob("*.png")) if run is not None else []
    if grids:
        seen = int(grids[-1].stem) if grids[-1].stem.isdecimal() else 0
        found.append((f"Samples during training, after {seen:,} images", grids[-1]))
    for path, card in cards:
        grid = (path if path.is_dir() else path.parent) / GRID_FILE
        if grid.is_file():
            found.append((f"Samples of the evaluation, {_sampling(card)}".rstrip(", "), grid))
    found += [(path.stem, path) for path in given]
    copied = []
    for number, (description, path) in enumerate(found):
        name = f"pictures/{number:02d}{path.suffix.lower()}"
        (out / "pictures").mkdir(exist_ok=True)
        shutil.copyfile(path, out / name)
        copied.append((description, name))
    return copied
