from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cyclopts import App

from causalfusion.config import CodecConfig, DataConfig, RunConfig
from causalfusion.config.options import Device, Paths, Recipes
from causalfusion.config.serialize import flat, to_dict

app = App(name="encode", result_action="return_value")


@app.default
def encode(
    paths: Paths = (),
    /,
    *,
    out: Path,
    batch_size: int = 64,
    dtype: Literal["auto", "float16", "float32"] = "auto",
    device: Device = "auto",
    config: Recipes = (),
    data: DataConfig = DataConfig(),  # noqa: B008
    codec: CodecConfig = CodecConfig(),  # noqa: B008
) -> int:
    """Encode a data set once, so that training reads latents.

    The same command resumes after an interruption.

    Parameters
    ----------
    out
        Folder of the cache.
    batch_size
        Images encoded together.
    dtype
        Number format of the latents on disk; auto: float16 for an autoencoder's, float32 (exact) for pixels.
    """
    from causalfusion.codec.encode import encode_to_cache
    from causalfusion.machine.processes import require_one_process

    require_one_process("encode")
    run = RunConfig(data=data, codec=codec)
    cache = encode_to_cache(run, out, batch_size=batch_size, dtype=dtype, device=device)
    manifest = cache.manifest
    size = sum(manifest["files"].values()) / 2**20
    variants = " and their mirror images" if manifest["flip"] else ""
    print(
        f"{out}: {len(cache):,} images{variants}, "
        f"latents {manifest['latent_shape']} in {manifest['dtype']}, {size:,.1f} MiB"
    )
    mean, std = cache.statistics(run.codec.latents)
    print(f"raw latents: mean {mean:.6g}, standard deviation {std:.6g}")
    if manifest["replaced_images"]:
        print(f"{manifest['replaced_images']} unreadable images were replaced by others, drawn at random")
    print(f"train on it with: {training_line(run, config, out)}")
    return 0


def training_line(run: RunConfig, names: Sequence[str], cache: Path) -> str:
    """The command that trains with this run's settings on the cache, which stands in for data.path, and has
    the captions."""
    from causalfusion.codec.cache import as_option
    from causalfusion.config.recipes import load_layers, merge

    tables = ("data", "codec")
    beneath = flat(merge([to_dict(RunConfig()), load_layers(names)]))
    settings = {name: value for name, value in flat(to_dict(run)).items() if name.partition(".")[0] in tables}
    settings |= {"data.cache": str(cache), "data.path": beneath["data.path"]}
    settings |= {"data.captions": "own", "data.class_words": ""}
    options = [as_option(name, value) for name, value in settings.items() if value != beneath[name]]
    return " ".join(["causalfusion train", *(as_option("config", name) for name in names), *options])
