from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from causalfusion.config import RunConfig

app = App(name="encode", result_action="return_value")


@app.default
def encode(
    *,
    out: Path,
    batch_size: int = 64,
    dtype: Literal["auto", "float16", "float32"] = "auto",
    device: str = "auto",
    config: Annotated[list[str], Parameter(consume_multiple=False)] = [],  # noqa: B006
    run: Annotated[RunConfig, Parameter(name="*", consume_multiple=True)] = RunConfig(),  # noqa: B008
) -> int:
    """Encode a data set once, so that training reads latents instead of images. The same command goes on
    where it was interrupted.

    Parameters
    ----------
    out
        Folder of the cache.
    batch_size
        Images encoded together.
    dtype
        Of the latents on disk; auto: float16 for an autoencoder's, float32 (exact) for pixels.
    device
        auto, cpu, cuda or cuda:N.
    config
        A recipe's name or a TOML file, as for train; its data and codec settings are used.
    """
    from causalfusion.codec.encode import encode_to_cache

    cache = encode_to_cache(run, out, batch_size=batch_size, dtype=dtype, device=device)
    manifest = cache.manifest
    size = sum(manifest["files"].values()) / 2**20
    variants = " and their mirror images" if manifest["flip"] else ""
    print(
        f"{out}: {len(cache):,} images{variants}, "
        f"latents {manifest['latent_shape']} in {manifest['dtype']}, {size:,.1f} MiB"
    )
    print(f"raw latents: mean {cache.mean:.6g}, standard deviation {cache.std:.6g}")
    if manifest["replaced_images"]:
        print(f"{manifest['replaced_images']} unreadable images were replaced by the next readable ones")
    print(f"train on it with: --data.cache {out}")
    return 0
