from __future__ import annotations

from pathlib import Path

from cyclopts import App

from causalfusion.config.options import Autoencoder, Model

app = App(name="convert", help="Bring models into this format.", result_action="return_value")


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
    from causalfusion.interop.bundle import with_autoencoder
    from causalfusion.interop.official import convert_official
    from causalfusion.saved.folder import replace_model

    spec, weights, raw, notes = convert_official(checkpoint, autoencoder=autoencoder, patch_size=patch_size)
    spec, inside = with_autoencoder(spec, include=include_autoencoder)
    replace_model(out, spec, weights, raw, autoencoder=inside)
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
