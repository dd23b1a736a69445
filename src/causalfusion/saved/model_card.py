"""A model's page: README.md with what is known about it, for the hub and for people.

Nothing is claimed that is not known: what was not measured or not told is left out, or said to be unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from causalfusion.config.finetuning import TaskName
from causalfusion.errors import printable
from causalfusion.saved.folder import AUTOENCODER_FOLDER, ModelSpec

PAPER = "2412.12095"
LONGEST_LIST = 20
_NOTES = "## Notes of its makers"


@dataclass(frozen=True, kw_only=True)
class CardFigure:
    """One line of the table of figures."""

    name: str
    value: str
    uncertainty: str
    count: int
    """Number of images measured, N."""
    of: str
    """What was measured, against what, with which sampling."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a page tells besides a model's settings."""

    parameters: int
    license: str = ""
    """As the hub names it, such as apache-2.0; empty: not stated."""
    figures: list[CardFigure] = field(default_factory=list)
    data: dict[str, str] = field(default_factory=dict)
    """Facts about the training data, by name."""
    recipe: str = ""
    """Name of the file with the training's settings; empty where they are unknown."""
    pictures: list[tuple[str, str]] = field(default_factory=list)
    """(description, file) of each picture."""
    task: TaskName = "generate"
    """What the model was last trained for: to draw, to tell classes, or to describe."""
    own_text: str = ""
    """A text about the model that lay in its folder."""


def model_card(name: str, spec: ModelSpec, facts: CardFacts) -> str:
    """The page of a model that users load by `name`."""
    parts = [
        _front_matter(spec, facts),
        f"# {name.partition('@')[0].rpartition('/')[2]}",
        "A causal diffusion transformer: one decoder-only model, factorised over autoregressive steps and "
        f"noise levels ([arXiv {PAPER}](https://arxiv.org/abs/{PAPER})), made with CausalFusion.",
        *[f"![{description}]({file})\n\n*{description}*" for description, file in facts.pictures],
        _usage(name, spec, facts.task),
        "## The model\n\n" + table(("", ""), list(_model_rows(spec, facts).items())),
        _figures(facts.figures),
        _training(spec, facts),
        license_section(facts.license),
        notes_section(facts.own_text),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def notes_section(text: str) -> str:
    """The part of a page with what a model's makers wrote themselves."""
    return f"{_NOTES}\n\n{text.strip()}" if text.strip() else ""


def makers_notes(readme: str) -> str:
    """What a model's makers wrote in its README: the notes of a page like ours, else all of it, without the
    block of settings at its head."""
    if not readme.startswith("---\n"):
        return readme
    head, _, text = readme.removeprefix("---\n").partition("\n---\n")
    if "library_name: causalfusion" not in head:
        return text
    return text.partition(_NOTES)[2]


def _front_matter(spec: ModelSpec, facts: CardFacts) -> str:
    import yaml

    values: dict[str, object] = {"library_name": "causalfusion"}
    if facts.license:
        values["license"] = facts.license
    values["pipeline_tag"] = _task(spec, facts.task)
    values["tags"] = ["causalfusion", "causal-diffusion", f"arxiv:{PAPER}"]
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _task(spec: ModelSpec, task: TaskName) -> str:
    """The hub's name of what the model does."""
    if task != "generate":
        return {"classify": "image-classification", "caption": "image-to-text"}[task]
    if spec.model.text_only:
        return "text-generation"
    return "text-to-image" if spec.model.vocab_size else "unconditional-image-generation"


def _usage(name: str, spec: ModelSpec, task: TaskName) -> str:
    if task == "classify":
        return (
            f"## Use\n\n    causalfusion classify photo.png --model {name}\n\n"
            "```python\nfrom causalfusion.generate.classifier import Classifier\n\n"
            f'classifier = Classifier.load("{name}")\nimages = classifier.pipeline.to_tensor(["photo.png"])\n'
            "shares = classifier.probabilities(images)  # of classifier.class_names\n```"
        )
    if task == "caption":
        command, load = "caption photo.png", "Pipeline.from_pretrained"
        call = 'caption("photo.png")'
    elif spec.model.text_only:
        command, load, call = "complete 'Once upon a time'", "LanguagePipeline.load", 'complete(["Once"])'
    elif spec.model.vocab_size:
        command, load = "sample 'a prompt'", "Pipeline.from_pretrained"
        call = 'generate(prompts=["a prompt"])'
    else:
        command = "sample --classes 0" if spec.model.uses_classes else "sample"
        load, call = "Pipeline.from_pretrained", "generate([0])"
    return (
        f"## Use\n\n    causalfusion {command} --model {name}\n\n"
        f"```python\nfrom causalfusion import {load.partition('.')[0]}\n\n"
        f'pipeline = {load}("{name}")\nresult = pipeline.{call}\n```'
    )


def _model_rows(spec: ModelSpec, facts: CardFacts) -> dict[str, str]:
    model, codec = spec.model, spec.codec
    rows = {
        "parameters": f"{facts.parameters:,}",
        "transformer": f"{model.depth} blocks, {model.hidden_size} wide, {model.num_heads} heads",
    }
    if not model.text_only:
        size = f"{codec.image_width}x{codec.image_height}, {codec.image_channels} channels"
        if codec.max_area:
            size = f"of any size up to {codec.max_area:,} pixels, by default {size}"
        rows["images"] = f"{size}: {model.num_tokens} tokens of {model.token_dim} numbers"
        rows["autoencoder"] = _autoencoder(codec.autoencoder)
        rows["noise"] = f"{spec.diffusion.path}, predicts {spec.diffusion.prediction_type}"
        steps = spec.factorization.distribution
        rows["AR steps in training"] = f"{steps}, order {spec.factorization.order}"
    if model.num_classes:
        rows["classes"] = _classes(spec)
    if model.vocab_size:
        rows["text"] = f"{model.text_vocab_size or model.vocab_size:,} tokens"
    if spec.images_seen:
        rows["trained on"] = f"{spec.images_seen:,} images, repeats counted"
    if spec.origin:
        rows["weights from"] = spec.origin
    return rows


def _autoencoder(place: str) -> str:
    if not place:
        return "none: the model works on pixels"
    if place == AUTOENCODER_FOLDER:
        return "inside, in the folder `autoencoder`"
    return f"`{place}`, which is fetched from the hub when the model is loaded"


def _classes(spec: ModelSpec) -> str:
    names = spec.class_names[:LONGEST_LIST]
    more = ", ..." if len(spec.class_names) > len(names) else ""
    count = f"{spec.model.num_classes:,}"
    return f"{count}: {', '.join(names)}{more}" if names else count


def _figures(figures: list[CardFigure]) -> str:
    if not figures:
        return "## Figures\n\nNo result card of `causalfusion evaluate` came with it."
    rows = [(f.name, f.value, f.uncertainty, f"{f.count:,}", f.of) for f in figures]
    head = ("figure", "value", "95 % interval or standard error", "N", "of")
    return (
        f"## Figures\n\n{table(head, rows)}\n\nMeasured by `causalfusion evaluate`; the cards in `figures/` "
        "have all settings that the figures depend on. Figures of another N, reference or sampling do not "
        "compare."
    )


def _training(spec: ModelSpec, facts: CardFacts) -> str:
    if not facts.data and not facts.recipe:
        return "## Training\n\nNot told."
    text = "## Training"
    if facts.data:
        text += "\n\n" + table(("data", ""), list(facts.data.items()))
    if facts.recipe:
        begins = (
            "train DATA" if facts.task == "generate" else f"finetune MODEL --data DATA --task {facts.task}"
        )
        text += (
            f"\n\nAll settings are in `{facts.recipe}`; on data of your own: `causalfusion {begins} "
            f"--config {facts.recipe}`."
        )
    return text


def license_section(name: str) -> str:
    """The part of a page that states the licence; empty: it is not stated."""
    told = f"`{name}`." if name else "Not stated: ask the model's makers before you use it."
    return f"## Licence\n\n{told}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")
