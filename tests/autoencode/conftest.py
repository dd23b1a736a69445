"""Tiny autoencoders of handwritten digits."""

from dataclasses import replace

import pytest

from causalfusion.autoencode.run import train_autoencoder
from causalfusion.config import DataConfig
from causalfusion.config.autoencoding import AutoencoderConfig, AutoencoderRun, ReconstructionConfig

NETWORKS = {
    "kl": AutoencoderConfig(downsample=2, latent_channels=3, width=8),
    "fixed_variance": AutoencoderConfig(
        kind="fixed_variance", downsample=2, latent_channels=3, width=16, depth=1, heads=2
    ),
}
TRAINING = ReconstructionConfig(
    minutes=0,
    images=320,
    batch_size=32,
    warmup_images=0,
    picture_minutes=0,
    checkpoint_minutes=0,
    log_every=3,
)


@pytest.fixture(scope="session")
def make_run():
    """A short run; settings of training may be laid on top."""

    def make(out, kind="kl", **training):
        data = DataConfig(holdout=0.1, flip=True)
        training = replace(TRAINING, **training)
        return AutoencoderRun(out=str(out), data=data, network=NETWORKS[kind], training=training)

    return make


@pytest.fixture(scope="session", params=list(NETWORKS))
def trained(request, tmp_path_factory, make_run):
    """(kind, folder of a finished run)."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, train_autoencoder(make_run(folder, request.param), show_progress=False)
