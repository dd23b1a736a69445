from __future__ import annotations

from pathlib import Path

from cyclopts import App

app = App(name="convert", help="Bring released weights into this format.", result_action="return_value")


@app.command
def official(checkpoint: Path, /, *, out: Path, autoencoder: str = "", patch_size: int = 0) -> int:
    """Convert the weights that the paper's authors released.

    Parameters
    ----------
    checkpoint
        Their .pt file: a dict with `ema` and `model`, or a bare state dict. Nothing in it is executed.
    out
        Folder for the model in our format.
    autoencoder
        The autoencoder its latents belong to: a diffusers folder, a hub id, or the 16-channel KL
        autoencoder's original checkpoint. Stored in the model's config.
    patch_size
        Only where the checkpoint does not tell it.
    """
    from causalfusion.interop.official import convert_official
    from causalfusion.saved import replace_model

    spec, weights, raw, notes = convert_official(checkpoint, vae=autoencoder, patch_size=patch_size)
    replace_model(out, spec, weights, raw)
    model = spec.model
    count = sum(w.numel() for w in weights.values())
    print(
        f"{out}: hidden size {model.hidden_size}, {model.depth} layers, {model.num_heads} heads, "
        f"{model.num_classes} classes, {model.num_tokens} tokens of {model.token_dim}, {count:,} parameters"
    )
    for note in notes:
        print(f"note: {note}")
    return 0
