"""Language models to our format and back, a weight at a time, so that no model need fit into memory."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from causalfusion.codec.language_tokenizer import (
    LANGUAGE_FOLDER,
    SETTINGS_FILE,
    TEMPLATE_FILE,
    make_language_tokenizer,
    template_text,
)
from causalfusion.codec.tokenizer import FILE_NAME as TOKENIZER_FILE
from causalfusion.config import CodecConfig, ModelConfig
from causalfusion.config.serialize import parse_object, read_object
from causalfusion.errors import UserError
from causalfusion.interop.language.families import Family, read_family
from causalfusion.interop.language.gguf_file import open_gguf
from causalfusion.interop.language.hf_folder import CONFIG, WEIGHTS, download, open_folder, open_weights
from causalfusion.interop.language.source import LanguageSource, Stored, require_tokenizer
from causalfusion.interop.language.weights import is_left_out, language_links, theirs_of
from causalfusion.interop.systems.links import Link
from causalfusion.machine.runtime import available_memory
from causalfusion.machine.skeleton import skeleton
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import ModelSpec, load_spec, save_spec
from causalfusion.saved.replace import replace_folder
from causalfusion.weight_files import read_shapes, require_same_shapes, write_weights

GB = 1e9
_HEAD = "lm_head.weight"
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class Conversion:
    """A conversion that is ready to run: all names and shapes fit."""

    family: Family
    model: ModelConfig
    links: Sequence[Link]
    weights: Mapping[str, Stored]
    """Theirs, by full name."""
    shapes: Shapes
    """Shapes of our weights, by name."""
    where: str

    @property
    def num_bytes(self) -> int:
        return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in self.shapes.values())

    @property
    def num_numbers(self) -> int:
        return sum(torch.Size(shape).numel() for shape, _ in self.shapes.values())

    @property
    def bytes_at_once(self) -> int:
        """Bytes in memory at a time: the parts of a weight, and the weight made of them."""
        return 2 * max(sum(self.weights[name].num_bytes for name in link.theirs) for link in self.links)

    def tensors(self) -> Iterator[Tensor]:
        """Our weights, in the order of `shapes`. Raises UserError for numbers that are not finite."""
        for link in self.links:
            parts = [self.weights[name].read() for name in link.theirs]
            for name, part in zip(link.theirs, parts, strict=True):
                if not bool(torch.isfinite(part).all()):
                    raise UserError(f"{self.where}: {name} holds values that are not finite; it is damaged")
            yield from link.to_ours(parts)


def open_source(name: str) -> LanguageSource:
    """A folder, a .gguf file, or a hub id. Raises UserError."""
    path = Path(name)
    if path.suffix == ".gguf":
        return open_gguf(path)
    return open_folder(path if path.is_dir() else download(name))


def plan_conversion(source: LanguageSource) -> Conversion:
    """Raises UserError for a model of an unknown kind, and for a weight that is missing, unknown or of
    another shape, before any weight is read."""
    family, model = read_family(source.config, source.where)
    links = language_links(family.name, model)
    known = {name for link in links for name in link.theirs}
    weights = {
        theirs_of(name, known): stored for name, stored in source.weights.items() if not is_left_out(name)
    }
    if model.language.tied and _HEAD in weights:
        head, embedding = weights.pop(_HEAD), links[0].theirs[0]
        stored = weights.setdefault(embedding, head)  # a file may hold either of the two alone
        if stored is not head and not head.read().equal(stored.read()):
            raise UserError(
                f"{source.where}: {_HEAD} is not the embedding, though tie_word_embeddings is true in its "
                f"{CONFIG}; set it to false there"
            )
    missing, unknown = sorted(known - weights.keys()), sorted(weights.keys() - known)
    for word, names in (("lacks weight", missing), ("has the unknown weight", unknown)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"{source.where} {word} {names[0]}{more}; expected those of {family.name}, as {CONFIG} says"
            )
    shapes = _shapes_of_ours(links, weights, source.where)
    with skeleton():
        expected = {name: tuple(value.shape) for name, value in Transformer(model).state_dict().items()}
    require_same_shapes({name: shape for name, (shape, _) in shapes.items()}, expected, source.where)
    return Conversion(family, model, links, weights, shapes, source.where)


def _shapes_of_ours(links: Sequence[Link], weights: Mapping[str, Stored], where: str) -> Shapes:
    shapes: Shapes = {}
    for link in links:
        parts = [torch.empty(weights[n].shape, dtype=weights[n].dtype, device="meta") for n in link.theirs]
        try:
            made = link.to_ours(parts)
        except (RuntimeError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{where}: weight {link.theirs[0]} has another shape ({reason})") from None
        shapes |= {name: (tuple(t.shape), t.dtype) for name, t in zip(link.ours, made, strict=True)}
    return shapes


def describe(conversion: Conversion, source: LanguageSource) -> list[str]:
    """The memory that the conversion needs, told before it begins."""
    model, numbers = conversion.model, conversion.num_numbers
    types = sorted({str(dtype).removeprefix("torch.") for _, dtype in conversion.shapes.values()})
    files = f"{source.num_files} file{'s' * (source.num_files != 1)}"
    return [
        f"{source.where}: {conversion.family.name}, {model.depth} blocks of width {model.hidden_size}, "
        f"{model.num_heads} heads of {model.head_dim} ({model.kv_heads} of keys), vocabulary "
        f"{model.vocab_size:,}, {numbers:,} parameters",
        f"reads {files} and writes {conversion.num_bytes / GB:.2f} GB as {' and '.join(types)}, with at most "
        f"{conversion.bytes_at_once / GB:.2f} GB of weights in memory; the model in use takes "
        f"{4 * numbers / GB:.2f} GB of memory",
    ]


def check_room(out: Path, num_bytes: int, at_once: int) -> None:
    """Raises UserError where the disk or the memory is too small."""
    folder = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(
            f"{out} needs {num_bytes / GB:.2f} GB, its disk has {free / GB:.2f} GB left; free some, or give "
            "another --out"
        )
    if available_memory() < at_once:
        raise UserError(
            f"the largest weight needs {at_once / GB:.2f} GB of memory, {available_memory() / GB:.2f} GB are "
            "free; end other programs, or use a larger machine"
        )


def write_model(conversion: Conversion, source: LanguageSource, out: Path) -> None:
    """Our model folder. Raises UserError for a tokenizer that does not fit, before any weight is read."""
    json_of_tokenizer = require_tokenizer(source)
    settings = parse_object(source.files.get(SETTINGS_FILE, b"{}"), f"{source.where}: {SETTINGS_FILE}")
    template = template_text(source.files.get(TEMPLATE_FILE, b""), f"{source.where}: {TEMPLATE_FILE}")
    where, vocabulary = f"{source.where}: {TOKENIZER_FILE}", conversion.model.vocab_size
    tokenizer = make_language_tokenizer(json_of_tokenizer, settings, template, vocabulary, where)
    check_room(out, conversion.num_bytes, conversion.bytes_at_once)
    spec = ModelSpec(
        model=conversion.model,
        codec=CodecConfig(),
        tokenizer_fingerprint=tokenizer.fingerprint,
        origin=f"language model {source.where}",
    )

    def write(folder: Path) -> None:
        (folder / LANGUAGE_FOLDER).mkdir(parents=True)
        for name, content in source.files.items():
            (folder / LANGUAGE_FOLDER / name).write_bytes(content)
        (folder / TOKENIZER_FILE).write_bytes(json_of_tokenizer)
        write_weights(folder / WEIGHTS, conversion.shapes, conversion.tensors())
        save_spec(folder, spec)

    replace_folder(out, write, origin=spec.origin)


def export_model(folder: Path, out: Path) -> list[str]:
    """Write a language model of ours in the format of `transformers`, its text weights bit for bit; lines
    about what was written. Raises UserError for a model that did not begin as one."""
    spec, beside = load_spec(folder), folder / LANGUAGE_FOLDER
    if not (beside / CONFIG).is_file():
        raise UserError(
            f"{folder} did not begin as a language model: it has no {LANGUAGE_FOLDER}/{CONFIG}; expected a "
            "folder made by causalfusion convert llm"
        )
    family, model = read_family(read_object(beside / CONFIG, "language model"), str(beside / CONFIG))
    links, path = language_links(family.name, model), folder / WEIGHTS
    ours = _stored_in(path)
    wanted = {name for link in links for name in link.ours}
    if missing := sorted(wanted - ours.keys()):
        raise UserError(f"{path} lacks weight {missing[0]}; it does not fit {beside / CONFIG}")
    markers = spec.model.vocab_size - model.vocab_size

    def theirs_of_link(link: Link, parts: list[Tensor]) -> list[Tensor]:
        per_token = link.ours[0] in ("text_embedding.weight", "text_out.weight")
        return link.to_theirs([part[: model.vocab_size] for part in parts] if per_token else parts)

    shapes: Shapes = {}
    for link in links:
        parts = [torch.empty(ours[n].shape, dtype=ours[n].dtype, device="meta") for n in link.ours]
        made = theirs_of_link(link, parts)
        shapes |= {name: (tuple(t.shape), t.dtype) for name, t in zip(link.theirs, made, strict=True)}
    num_bytes = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in shapes.values())
    check_room(out, num_bytes, 2 * max(ours[name].num_bytes for name in wanted))

    def tensors() -> Iterator[Tensor]:
        for link in links:
            yield from theirs_of_link(link, [ours[name].read() for name in link.ours])

    def write(new: Path) -> None:
        new.mkdir(parents=True)
        for file in sorted(beside.iterdir()):
            shutil.copyfile(file, new / file.name)
        shutil.copyfile(folder / TOKENIZER_FILE, new / TOKENIZER_FILE)
        write_weights(new / WEIGHTS, shapes, tensors())

    config = (beside / CONFIG).read_bytes()

    def is_own(found: Path) -> bool:
        file = found / CONFIG
        return file.is_file() and file.read_bytes() == config

    replace_folder(out, write, is_own, f"the same {family.architecture}")
    told = f"{out}: {family.architecture}, {len(shapes)} weights, {num_bytes / GB:.2f} GB"
    return [told, *_left_out(ours.keys() - wanted, markers)]


def _left_out(names: Collection[str], markers: int) -> list[str]:
    """Notes on the weights and markers that a written language model does not have."""
    notes, added = list[str](), sum(name.endswith((".lora_a", ".lora_b")) for name in names)
    if len(names) > added:
        notes.append(f"note: {len(names) - added} weights of images are left out")
    if added:
        notes.append(
            f"note: {added} weights of low-rank additions are left out: the text is what it was before them; "
            "to have them in it, merge them first: causalfusion convert merge"
        )
    if markers:
        notes.append(f"note: {markers} markers of texts and images are left out")
    return notes


def _stored_in(path: Path) -> dict[str, Stored]:
    read_shapes(path)
    return dict(open_weights([path]))
