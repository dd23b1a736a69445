from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from causalfusion.config.options import (
    Adapters,
    AdapterWeights,
    Autoencoder,
    GeneratingOptions,
    Model,
)
from causalfusion.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from causalfusion.config import SampleConfig
    from causalfusion.saved.folder import ModelSpec


app = App(
    name="convert",
    help="Bring models into this format, and back; merge adapters; complete a folder; export programs.",
    result_action="return_value",
)


@app.command
def official(
    checkpoint: Path,
    /,
    *,
    out: Path,
    autoencoder: str = "",
    include_autoencoder: bool = False,
    patch_size: int = 0,
) -> int:
    """Convert the weights that the paper's authors released.

    Parameters
    ----------
    checkpoint
        Their .pt file: a dict with `ema` and `model`, or a bare state dict. No code in it is executed.
    out
        Folder for the model in our format.
    autoencoder
        The autoencoder its latents belong to: a diffusers folder, a hub id, or the 16-channel KL
        autoencoder's original checkpoint. Stored in the model's config.
    include_autoencoder
        Copy the autoencoder into the model's folder, which is then self-contained.
    patch_size
        Side of a token's patch of latents; needed only if the checkpoint does not determine it.
    """
    from causalfusion.interop.official import convert_official

    spec, weights, raw, notes = convert_official(checkpoint, autoencoder=autoencoder, patch_size=patch_size)
    return _write(out, spec, weights, raw, notes, include_autoencoder)


SYSTEMS = {
    "dit": "Convert weights of DiT, also from a folder in diffusers' format.",
    "sit": "Convert weights of SiT.",
    "large-dit": "Convert weights of Large-DiT for ImageNet.",
    "fit": "Convert weights of FiTv2; a YAML file beside them may tell its settings.",
    "mar": "Convert weights of MAR.",
    "latentlm": "Convert weights of LatentLM, or of its DiT baseline.",
}
_PARAMETERS = """

    The model's folder gets the sampling that its authors recommend; the command line overrides it.

    Parameters
    ----------
    checkpoint
        The released .pt or .safetensors file: a state dict, or a dict that holds some. No code in it is
        executed.
    out
        Folder for the model in our format.
    autoencoder
        The autoencoder its latents belong to: a diffusers folder, a hub id, or the 16-channel KL
        autoencoder's original checkpoint. Stored in the model's config.
    include_autoencoder
        Copy the autoencoder into the model's folder, which is then self-contained.
    num_heads
        Attention heads; needed only for widths that were not released.
    image_size
        Side of its images in pixels; needed only if the checkpoint does not determine it.
    patch_size
        Side of a token's patch of latents; needed only if the checkpoint does not determine it.
    """


def _system_command(system: str, summary: str) -> None:
    def convert(
        checkpoint: Path,
        /,
        *,
        out: Path,
        autoencoder: str = "",
        include_autoencoder: bool = False,
        num_heads: int = 0,
        image_size: int = 0,
        patch_size: int = 0,
    ) -> int:
        from causalfusion.interop.systems.convert import convert_system

        converted = convert_system(
            system,
            checkpoint,
            autoencoder=autoencoder,
            num_heads=num_heads,
            image_size=image_size,
            patch_size=patch_size,
        )
        return _write(
            out,
            converted.spec,
            converted.weights,
            converted.raw,
            converted.notes,
            include_autoencoder,
            converted.sampling,
        )

    convert.__doc__ = summary + _PARAMETERS
    app.command(convert, name=system)


for _system, _summary in SYSTEMS.items():
    _system_command(_system, _summary)


def _write(
    out: Path,
    spec: ModelSpec,
    weights: dict[str, Tensor],
    raw: dict[str, Tensor] | None,
    notes: list[str],
    include_autoencoder: bool,
    sampling: SampleConfig | None = None,
) -> int:
    """Write a converted model, and say what it is."""
    from causalfusion.interop.bundle import with_autoencoder
    from causalfusion.saved.folder import replace_model

    spec, inside = with_autoencoder(spec, include=include_autoencoder)
    replace_model(out, spec, weights, raw, autoencoder=inside, sampling=sampling)
    model = spec.model
    count = sum(w.numel() for w in weights.values())
    print(
        f"{out}: hidden size {model.hidden_size}, {model.depth} layers, {model.num_heads} heads, "
        f"{model.num_classes} classes, {model.num_tokens} tokens of {model.token_dim}, {count:,} parameters"
    )
    for note in notes:
        print(f"note: {note}")
    return 0


@app.command
def diffusers(model: Path, /, *, out: Path) -> int:
    """Write a DiT as a DiTTransformer2DModel, for diffusers.

    Parameters
    ----------
    model
        Folder of the model.
    out
        Folder for the model in diffusers' format.
    """
    from causalfusion.files import holds_anything
    from causalfusion.interop.systems.diffusers_dit import FREQUENCIES_NOTE, write_diffusers
    from causalfusion.saved.folder import latest_model

    if holds_anything(out):
        raise UserError(f"{out} is not empty; give another --out")
    print(write_diffusers(latest_model(model), out))
    print(f"note: {FREQUENCIES_NOTE}")
    return 0


@app.command
def llm(model: str, /, *, out: Path) -> int:
    """Convert a language model: LLaMA, SmolLM2, TinyLlama, Mistral, Qwen2, Qwen3 or GPT-2.

    Its weights keep their number format, and are read and written one at a time.

    Parameters
    ----------
    model
        A folder in the format of transformers (config.json, .safetensors, tokenizer.json), a hub id, or a
        .gguf file.
    out
        Folder for the model in our format.
    """
    from causalfusion.interop.language.convert import describe, open_source, plan_conversion, write_model

    source = open_source(model)
    conversion = plan_conversion(source)
    for line in describe(conversion, source):
        print(line, flush=True)
    write_model(conversion, source, out)
    print(f"{out}: complete it with causalfusion complete TEXT --model {shlex.quote(str(out))}")
    return 0


@app.command
def hf(model: Path, /, *, out: Path) -> int:
    """Write a language model back in the format of transformers, its text weights bit for bit.

    Parameters
    ----------
    model
        A folder that `convert llm` made, or a model that began with one.
    out
        Folder for config.json, model.safetensors and the tokenizer.
    """
    from causalfusion.interop.language.convert import export_model
    from causalfusion.saved.folder import latest_model

    for line in export_model(latest_model(model), out):
        print(line)
    return 0


@app.command
def merge(
    model: Path,
    /,
    *,
    out: Path,
    adapters: Annotated[Adapters, Parameter(consume_multiple=True)] = (),
    adapter_weights: Annotated[AdapterWeights, Parameter(consume_multiple=True)] = (),
) -> int:
    """Write a plain model with adapters inside its weights.

    A model's own low-rank additions, such as those of a run of `finetune --adapter lora`, are merged too.

    Parameters
    ----------
    model
        A model folder, a run, the name of a packaged model, or a name on the hub.
    out
        Folder for the model.
    """
    from causalfusion.interop.merge import merge_model

    options = GeneratingOptions(adapters=adapters, adapter_weights=adapter_weights)
    print(merge_model(model, options.weighted_adapters(), out))
    return 0


@app.command
def bundle(*, model: Model, out: Path, autoencoder: Autoencoder = "") -> int:
    """Write a self-contained model folder.

    It has the current format, with the weights for generation, tokenizer, settings and autoencoder. It can be
    moved and published.

    Parameters
    ----------
    out
        Folder for the model.
    """
    from causalfusion.interop.bundle import bundle_model

    source = bundle_model(model, out, autoencoder)
    print(f"{out}: {source}, complete in itself")
    return 0


@app.command
def export(
    model: Path,
    /,
    *,
    out: Path,
    also: Sequence[Literal["uncached", "block"]] = (),
    autoencoder: Autoencoder = "",
) -> int:
    """Write a model's denoising step, and the passes around it, as programs of torch.export.

    Batch, tokens and context stay free; each program is compared with the model before it is kept.

    Parameters
    ----------
    model
        A model folder, a training run, a packaged model, or user/model on the hub.
    out
        Folder for the .pt2 files and export.json, which tells their inputs and outputs.
    also
        uncached: a denoising step in one pass without a cache; block: the first block alone.
    """
    from causalfusion.generate.pipeline import Pipeline
    from causalfusion.interop.bundle import require_elsewhere
    from causalfusion.interop.exported.write import write_programs
    from causalfusion.saved.folder import latest_model

    require_elsewhere(out, latest_model(model))
    for program in write_programs(Pipeline.load(model, autoencoder=autoencoder), out, also):
        size, apart = f"{program.size / 2**20:,.1f} MiB", f"{program.difference:.1e}"
        print(f"{out}/{program.name}.pt2: {size}, differs from the model by at most {apart}")
    return 0
