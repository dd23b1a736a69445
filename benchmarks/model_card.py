"""The card of the packaged model: description, training and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from causalfusion.model.transformer import Transformer, count_parameters
from causalfusion.saved.folder import ModelSpec


def write_card(folder: Path, spec: ModelSpec, figures: dict[str, Any], training: str) -> None:
    """Write `README.md` in the model's folder."""
    (folder / "README.md").write_text(
        "\n".join(_lines(folder, spec, figures, training)) + "\n", encoding="utf-8"
    )


def _lines(folder: Path, spec: ModelSpec, figures: dict[str, Any], training: str) -> list[str]:
    model, text = spec.model, spec.text
    size = (folder / "model.safetensors").stat().st_size / 2**20
    lines = [
        "# The packaged model: shapes, text and images",
        "",
        f"A CausalFusion model of {count_parameters(Transformer(model)):,} parameters ({size:.1f} MB in "
        f"float16): {model.depth} layers, {model.hidden_size} wide, {model.num_heads} heads; "
        f"{spec.codec.image_height}x{spec.codec.image_width} images as {model.num_tokens} tokens of "
        f"{model.token_dim} numbers; a byte-level BPE of {model.vocab_size} tokens. It only knows scenes of "
        "one to three coloured shapes: circle, square, triangle, diamond, star; red, green, blue, yellow, "
        "purple, orange, cyan, black; small and large; positions and relations.",
        "",
        "    causalfusion sample --prompt 'a small red circle to the left of a large blue star'",
        "    causalfusion caption picture.png",
        "",
        "## Training",
        f"{training} The built-in data set `shapes`, split `train`; the model predicts "
        f"`{spec.diffusion.prediction_type}`. Final settings: captions first in {text.caption_first:.0%} of "
        f"the sequences, images first in {text.image_first:.0%}, coefficient of the text loss "
        f"{text.loss_coefficient:g}, γ = {spec.factorization.decay:g}. In one command, on any device:",
        "",
        "    python -m benchmarks.text_image ship runs/shapes-last",
        "",
        "## Figures",
        f"{figures['count']} scenes of each kind, the packaged weights, guidance "
        f"{figures['guidance_scale']:g}, dpm++ with 20 diffusion steps (10 in each AR step if there are "
        f"several). *Best of 8*{_of_fewer(figures)}: of eight images, drawn with S = 1, the one under which "
        "the prompt is most likely, according to the model itself (`--candidates 8`). An oracle recognises "
        "the objects in every image; a parser reads every caption. *All*: objects, colours, sizes and "
        "relations are what the caption says. Fréchet distances are of images averaged down to 8x8 pixels.",
    ]
    for split in ("test", "compositional"):
        if split in figures:
            lines += ["", f"### Split `{split}`", "", *_tables(figures[split])]
    edits = figures["edits"]
    lines += [
        "",
        "### Edits",
        f"The right half is regenerated for a new caption (S = 2): {edits['all']:.1%} show exactly what the "
        f"caption says; {edits['outside_unchanged']:.0%} are unchanged, bit for bit, outside that half.",
        "",
        "The split `compositional` has only pairs of shape and colour that never occur in training (a purple "
        "circle, a red square, ...).",
    ]
    return lines


def _of_fewer(figures: dict[str, Any]) -> str:
    """How many scenes it was measured on, if on others than the rest."""
    count = figures.get("count_best_of_8", figures["count"])
    return "" if count == figures["count"] else f" ({count} scenes)"


def _tables(by_objects: dict[str, Any]) -> list[str]:
    lines = [
        "| text→image | AR steps | objects | colours | shapes | sizes | relations | all | Fréchet |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in by_objects.items():
        for key in (key for key in found if key.startswith("text_to_image")):
            f = found[key]
            shares = " | ".join(
                f"{f[k]:.1%}" if k in f else "–"
                for k in ("objects", "colors", "shapes", "sizes", "relations", "all")
            )
            lines.append(f"| {name} | {_name(key)} | {shares} | {f['frechet_pixels8']:.3f} |")
    lines += [
        "",
        "| captions | parse | objects | sizes | relations | true | CIDEr-D | BLEU-4 | ROUGE-L |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in by_objects.items():
        f = found["captions"]
        shares = " | ".join(
            f"{f[k]:.1%}" if k in f else "–" for k in ("parsed", "objects", "sizes", "relations", "all")
        )
        scores = " | ".join(f"{f[k]:.2f}" for k in ("CIDEr-D", "BLEU-4", "ROUGE-L"))
        lines.append(f"| {name} | {shares} | {scores} |")
    return lines


def _name(key: str) -> str:
    return key.removeprefix("text_to_image_").removeprefix("S").replace("_", " ")
