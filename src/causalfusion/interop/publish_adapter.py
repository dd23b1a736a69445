"""An adapter as a folder to publish, without the model that it belongs to, and with a short page.

No path of this machine goes along: of a model that is here alone, only the last part of its name is told.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from causalfusion.config.serialize import read_object, to_dict
from causalfusion.errors import UserError, printable
from causalfusion.files import sha256_of
from causalfusion.interop.publish import copy_pictures, own_text
from causalfusion.saved.adapter import Adapter, read_adapter
from causalfusion.saved.adapter_files import CONFIG_FILE, FACTS_FILE, FOLDER, WEIGHTS_FILE
from causalfusion.saved.folder import (
    ModelSpec,
    checkpoints_of,
    latest_model,
    load_spec,
    load_weights,
    packaged_models,
)
from causalfusion.saved.hub import hub_name, listing, name_of_path
from causalfusion.saved.hub_upload import upload_adapter
from causalfusion.saved.model_card import license_section, notes_section, table
from causalfusion.saved.replace import replace_folder
from causalfusion.weight_files import fingerprint_of

_BASE = "base_model_name_or_path"
"""Where peft's settings name the model that an adapter belongs to."""


@dataclass(frozen=True, kw_only=True)
class AdapterPublication:
    """What is published of an adapter besides its numbers."""

    license: str = ""
    base: str = ""
    """The name by which others get the model that it belongs to; empty: as it was named in training."""
    pictures: Sequence[Path] = ()
    """Pictures besides the run's latest samples."""


@dataclass(frozen=True)
class _Base:
    """The model that an adapter belongs to."""

    name: str
    known: bool
    """True if others can load it by its name."""
    spec: ModelSpec | None
    """Its settings, or those of the model that training made of it; None where neither is here."""

    @property
    def on_hub(self) -> str:
        """Its repository; empty if it is no model of the hub."""
        packaged = self.name in packaged_models()
        return "" if packaged or not self.known else hub_name(self.name).repository


def write_adapter_publication(source: Path, out: Path, name: str, asked: AdapterPublication) -> list[str]:
    """Write the folder to publish of an adapter, a run's or one of its own, that users will load by `name`;
    lines about what is in it, and what is not. Raises UserError."""
    adapter = read_adapter(source)
    if out.resolve() == adapter.place.resolve():
        raise UserError(f"--out {out} is the adapter itself; give another folder")
    base = _base_of(adapter, asked.base)

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        shutil.copyfile(adapter.place / WEIGHTS_FILE, folder / WEIGHTS_FILE)
        if adapter.facts is not None:
            facts = to_dict(replace(adapter.facts, base=base.name))
            (folder / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        if adapter.additions:
            settings = read_object(adapter.place / CONFIG_FILE, "adapter") | {_BASE: base.name}
            (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        pictures = copy_pictures(_run_of(adapter.place), [], asked.pictures, folder)
        page = _card(name, adapter, base, asked.license, pictures)
        (folder / "README.md").write_text(page, encoding="utf-8", errors="backslashreplace")

    replace_folder(out, write, lambda found: (found / WEIGHTS_FILE).is_file(), "an adapter")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1000
    notes = [f"{_kind(adapter)}, {size:,.0f} kB, of the model {base.name}"]
    if not base.known:
        notes.append(
            f"nobody else can load {base.name}, which is not on the hub: publish it too, and give its name "
            "as --base user/model"
        )
    if not asked.license:
        notes.append("no licence is given, so others may not use it; add --license NAME, such as apache-2.0")
    return notes


def publish_adapter(
    source: Path, to: str, out: Path, asked: AdapterPublication, *, private: bool
) -> list[str]:
    """Write the folder `out` and upload it to a repository of the hub. Raises UserError."""
    name = hub_name(to)
    notes = write_adapter_publication(source, out, to, asked)
    return [*notes, upload_adapter(out, name, private=private)]


def _base_of(adapter: Adapter, given: str) -> _Base:
    """The model of an adapter, by the name that is given or else recorded. Raises UserError for a name that
    only this machine knows, and for that of another model."""
    if adapter.facts is not None:
        recorded = adapter.facts.base
    else:
        recorded = str(read_object(adapter.place / CONFIG_FILE, "adapter").get(_BASE) or "")
    packaged, name = packaged_models(), given or recorded
    if not name:
        raise UserError(f"{adapter.told} does not say which model it belongs to; give --base user/model")
    known = name in packaged or _is_on_hub(name)
    if given and not known:
        raise UserError(
            f"--base {given} is not a name that others know; expected user/model on the hub, which this "
            f"token may read, or one of the package ({', '.join(packaged)})"
        )
    place = packaged.get(name)
    if given and given != recorded:
        place = latest_model(Path(given))
        found = fingerprint_of(load_weights(place))
        if adapter.facts is not None and adapter.facts.fingerprint != found:
            raise UserError(
                f"--base {given} is another model than that of {adapter.told} (its weights' hash is "
                f"{found[:16]}, expected {adapter.facts.fingerprint[:16]}); give the name of that one"
            )
    whole = adapter.place.parent if adapter.place.name == FOLDER else None
    for model in (whole, place):
        if model is not None and ((model / "config.json").is_file() or checkpoints_of(model)):
            return _Base(name if known else Path(name).name, known, load_spec(latest_model(model)))
    return _Base(name if known else Path(name).name, known, None)


def _is_on_hub(name: str) -> bool:
    """True for a model of the hub, as far as it tells: a path may have the same form."""
    from huggingface_hub import HfApi

    found = name_of_path(Path(name))
    if found is None:
        return False
    try:
        listing(HfApi(), found)
    except UserError:
        return False
    return True


def _run_of(folder: Path) -> Path | None:
    """The run that trained the adapter of a folder; None if it does not lie in one."""
    found = [path for path in folder.parents[:3] if (path / "checkpoints").is_dir()]
    return found[0] if folder.name == FOLDER and found else None


def _kind(adapter: Adapter) -> str:
    if adapter.facts is not None and adapter.facts.word:
        return f"a new word, `{printable(adapter.facts.word)}`"
    ranks = sorted({len(addition.a) for addition in adapter.additions.values()})
    return f"low-rank additions (LoRA) of rank {', '.join(map(str, ranks))}"


def _card(name: str, adapter: Adapter, base: _Base, license: str, pictures: Sequence[tuple[str, str]]) -> str:
    """The page of an adapter that users load by `name`."""
    text = (
        f"An adapter of the model {_named(base)}, made with CausalFusion: {_kind(adapter)}. It is of no use "
        "without that model."
    )
    parts = [
        _front_matter(adapter, base, license),
        f"# {name.partition('@')[0].rpartition('/')[2]}",
        text,
        *[f"![{description}]({file})\n\n*{description}*" for description, file in pictures],
        _usage(name, adapter, base),
        "## The adapter\n\n" + table(("", ""), list(_rows(adapter, base).items())),
        license_section(license),
        notes_section(own_text(adapter.place)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _named(base: _Base) -> str:
    if base.on_hub:
        return f"[{base.name}](https://huggingface.co/{base.on_hub})"
    return f"`{printable(base.name)}`" + ("" if base.known else " (not published)")


def _front_matter(adapter: Adapter, base: _Base, license: str) -> str:
    import yaml

    values: dict[str, object] = {"library_name": "causalfusion"}
    if license:
        values["license"] = license
    if base.on_hub:
        values |= {"base_model": base.on_hub, "base_model_relation": "adapter"}
    kind = adapter.facts.kind if adapter.facts is not None else "lora"
    values["tags"] = ["causalfusion", "adapter", kind]
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _usage(name: str, adapter: Adapter, base: _Base) -> str:
    prompt, label = _example(adapter, base.spec)
    words, call = "", "[0]"
    if prompt:
        words, call = f" {shlex.quote(prompt)}", f"prompts=[{prompt!r}]"
    elif label:
        words, call = f" --classes {shlex.quote(label)}", f"[{label!r}]"
    return (
        f"## Use\n\n    causalfusion sample{words} --model {shlex.quote(base.name)} --adapters {name}\n\n"
        "```python\nfrom causalfusion import Pipeline\n\n"
        f"pipeline = Pipeline.load({base.name!r}, adapters={{{name!r}: 1.0}})\n"
        f'images = pipeline.generate({call})\npipeline.to_pil(images)[0].save("image.png")\n```\n\n'
        + ("The number is a factor for its additions (`--adapter-weights`). " if adapter.additions else "")
        + "Several adapters mix."
    )


def _example(adapter: Adapter, spec: ModelSpec | None) -> tuple[str, str]:
    """(a prompt, a class) to show the use with, of which one is empty, or both."""
    if adapter.facts is not None and adapter.facts.word:
        return f"a picture of {printable(adapter.facts.word)}", ""
    if adapter.facts is not None and adapter.facts.classes:
        return "", printable(adapter.facts.classes[0])
    if spec is None:
        return "", ""
    if spec.model.vocab_size:
        return "a prompt", ""
    if not spec.model.uses_classes:
        return "", ""
    return "", printable(spec.class_names[0]) if spec.class_names else "0" * (spec.model.num_classes > 1)


def _rows(adapter: Adapter, base: _Base) -> dict[str, str]:
    rows, facts = {"kind": _kind(adapter), "model": _named(base)}, adapter.facts
    if facts is not None:
        rows["the model's weights"] = f"hash `{facts.fingerprint[:16]}`; with others it is refused"
        if facts.classes:
            rows["new classes"] = ", ".join(facts.classes)
        if facts.images_seen:
            rows["trained on"] = f"{facts.images_seen:,} images, repeats counted"
    rows["hash"] = f"`{sha256_of(adapter.place / WEIGHTS_FILE)[:16]}`, as records of images tell it"
    return rows
