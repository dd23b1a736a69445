from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App

from causalfusion.config import DataConfig
from causalfusion.config.autoencoding import AutoencoderConfig, AutoencoderRun, ReconstructionConfig
from causalfusion.config.options import Device, Paths, Recipes, Settings

app = App(name="codec", help="Train an autoencoder, and measure one.", result_action="return_value")


@app.command
def train(
    paths: Paths = (),
    /,
    *,
    out: Path,
    network: Annotated[AutoencoderConfig, Settings] = AutoencoderConfig(),  # noqa: B008
    training: Annotated[ReconstructionConfig, Settings] = ReconstructionConfig(),  # noqa: B008
    config: Recipes = (),
    data: DataConfig = DataConfig(),  # noqa: B008
    device: Device = "auto",
) -> int:
    """Train an autoencoder on images, or resume a run that was stopped.

    The folder OUT becomes the autoencoder: `causalfusion train ... --codec.autoencoder OUT` trains on its
    latents, and diffusers loads one of --kind kl. The same command resumes a run. Ctrl-C, SIGTERM and SIGHUP
    save and exit with code 3.

    Parameters
    ----------
    out
        Folder of the run, and of the autoencoder.
    """
    from causalfusion.autoencode.run import train_autoencoder

    train_autoencoder(
        AutoencoderRun(out=str(out), data=data, network=network, training=training), device=device
    )
    return 0


@app.command
def evaluate(
    paths: Paths = (),
    /,
    *,
    autoencoder: str,
    out: Path = Path("evaluation"),
    images: int | None = None,
    held_out: bool = False,
    features: Sequence[str] = ("pixels:8",),
    batch_size: int = 64,
    config: Recipes = (),
    data: DataConfig = DataConfig(),  # noqa: B008
    device: Device = "auto",
) -> int:
    """Measure how well an autoencoder reconstructs images, and write a card with all that the figures need.

    Figures are the mean absolute error (white is 1), PSNR in dB, SSIM, and the Fréchet distance between
    reconstructions and images. `causalfusion compare` shows cards side by side.

    Parameters
    ----------
    autoencoder
        A folder, an original checkpoint, or a hub id, as --codec.autoencoder.
    out
        Folder for `card.json` and `grid.png`.
    images
        Number of images to reconstruct, always the same ones. Default: all.
    held_out
        Reconstruct only the images that training with the same --data.holdout did not see.
    features
        Feature spaces of the Fréchet distance, as `causalfusion evaluate --features`.
    batch_size
        Images reconstructed together.
    """
    from causalfusion.autoencode.evaluate import ReconstructionRequest, evaluate_autoencoder
    from causalfusion.evaluate.cards.terminal import show_card

    request = ReconstructionRequest(
        autoencoder=autoencoder,
        data=data,
        out=out,
        images=images,
        held_out=held_out,
        features=features,
        batch_size=batch_size,
        device=device,
    )
    show_card(evaluate_autoencoder(request), out)
    return 0
