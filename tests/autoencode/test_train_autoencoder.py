"""Training an autoencoder: what it leaves, how it resumes, what it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from causalfusion.autoencode import run as run_module
from causalfusion.autoencode.run import train_autoencoder
from causalfusion.autoencode.state import AutoencoderState
from causalfusion.codec.autoencoder import open_autoencoder
from causalfusion.config import CodecConfig, DataConfig, RunConfig
from causalfusion.errors import TrainingStopped, UserError
from causalfusion.machine.processes import World
from causalfusion.saved.folder import checkpoints_of
from causalfusion.train.feed import open_training_data
from causalfusion.train.log import read_log

WEIGHTS = "diffusion_pytorch_model.safetensors"


def weights(folder):
    return load_file(folder / WEIGHTS)


def test_the_folder_is_an_autoencoder_whose_latents_are_measured(trained):
    kind, folder = trained
    opened = open_autoencoder(str(folder))
    assert (opened.downsample, opened.latent_channels, opened.image_channels) == (2, 3, 1)
    config = json.loads((folder / "config.json").read_text())
    data = DataConfig(holdout=0.1)
    codec = CodecConfig(autoencoder=str(folder), normalization="measured")
    found = open_training_data(RunConfig(data=data, codec=codec), World(0, 1, torch.device("cpu"))).codec
    assert found.config.scale == pytest.approx(config["scaling_factor"])
    assert found.config.shift == pytest.approx(config["shift_factor"])
    if kind == "kl":
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        own = AutoencoderKL.from_pretrained(folder)
        assert own.config["latent_channels"] == 3


@pytest.mark.parametrize("kind", ["kl", "fixed_variance"])
def test_training_lowers_the_error(tmp_path, make_run, kind):
    train_autoencoder(make_run(tmp_path, kind, images=3200, lr=3e-3), show_progress=False)
    records = [r for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "train"]
    assert records[-1]["images_seen"] == 3200
    assert records[-1]["reconstruction"] < 0.6 * records[0]["reconstruction"]


def test_a_picture_of_images_and_reconstructions(trained):
    _, folder = trained
    (file,) = (folder / "reconstructions").glob("*.png")
    with Image.open(file) as picture:
        assert np.asarray(picture).std() > 10 and picture.width > picture.height


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path, trained, make_run, monkeypatch):
    kind, folder = trained

    def stop_after(self, figures, report=run_module._Run._report):
        report(self, figures)
        self.stop.requested = self.state.progress.images_seen == 160

    monkeypatch.setattr(run_module._Run, "_report", stop_after)
    with pytest.raises(TrainingStopped, match=r"stopped at 160 of 320 images"):
        train_autoencoder(make_run(tmp_path, kind), show_progress=False)
    assert not (tmp_path / "config.json").exists(), "an unfinished autoencoder is not published"
    train_autoencoder(make_run(tmp_path, kind), show_progress=False)
    undisturbed = weights(folder)
    assert weights(tmp_path).keys() == undisturbed.keys()
    assert all(torch.equal(value, undisturbed[name]) for name, value in weights(tmp_path).items())


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, trained, make_run, monkeypatch):
    kind, folder = trained

    class Killed(BaseException):
        pass

    def save_and_die(self, figures, report=run_module._Run._report):
        report(self, figures)
        if self.state.progress.images_seen == 96:
            self.state.save(self.data)
        if self.state.progress.images_seen == 192:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run_module._Run, "_report", save_and_die)
        train_autoencoder(make_run(tmp_path, kind), show_progress=False)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["000000000096"]
    train_autoencoder(make_run(tmp_path, kind), show_progress=False)
    assert all(torch.equal(value, weights(folder)[name]) for name, value in weights(tmp_path).items())
    lines = [(r["images_seen"], r.get("loss")) for r in read_log(tmp_path / "log.jsonl")]
    assert lines == [(r["images_seen"], r.get("loss")) for r in read_log(folder / "log.jsonl")]


def test_a_finished_run_is_left_alone_and_a_longer_one_goes_on(trained, tmp_path, make_run, capsys):
    kind, folder = trained
    shutil.copytree(folder, tmp_path / "run")
    before = (tmp_path / "run" / WEIGHTS).read_bytes()
    train_autoencoder(make_run(tmp_path / "run", kind))
    assert "is finished: 320 images" in capsys.readouterr().out
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == before
    train_autoencoder(make_run(tmp_path / "run", kind, images=352))
    assert "going on from 320 images" in capsys.readouterr().out
    assert (tmp_path / "run" / WEIGHTS).read_bytes() != before


def test_other_settings_and_damaged_checkpoints_are_refused(trained, tmp_path, make_run):
    kind, folder = trained
    shutil.copytree(folder, tmp_path / "run")
    with pytest.raises(UserError, match=r"has --lr 0\.001, this run has 0\.01; give the same"):
        train_autoencoder(make_run(tmp_path / "run", kind, lr=0.01), show_progress=False)
    (checkpoint,) = checkpoints_of(tmp_path / "run")
    content = (checkpoint / "raw.safetensors").read_bytes()
    (checkpoint / "raw.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"damaged or cut short; delete the checkpoint"):
        train_autoencoder(make_run(tmp_path / "run", kind, images=352), show_progress=False)
    (checkpoint / "state" / "run.json").write_text("{}")  # as of another command's run
    with pytest.raises(UserError, match=r"holds a run that trains no autoencoder; give another --out"):
        train_autoencoder(make_run(tmp_path / "run", kind), show_progress=False)


def test_a_run_of_an_earlier_version_goes_on_without_the_settings_that_came_later(
    trained, tmp_path, make_run
):
    kind, folder = trained
    shutil.copytree(folder, tmp_path / "run")
    (checkpoint,) = checkpoints_of(tmp_path / "run")
    file = checkpoint / "state" / "run.json"
    stored = json.loads(file.read_text())
    del stored["run"]["data"]["object_shares"], stored["run"]["training"]["init"]
    file.write_text(json.dumps(stored))
    train_autoencoder(make_run(tmp_path / "run", kind, images=352), show_progress=False)
    assert checkpoints_of(tmp_path / "run")[-1].name == "000000000352"


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, make_run):
    run = make_run(tmp_path / "run", lr=1.0, kl_weight=1e38)
    with pytest.raises(
        UserError, match=r"training stopped at .* there is no checkpoint yet; try a lower --lr"
    ):
        train_autoencoder(run, show_progress=False)


def test_a_run_begins_with_the_weights_of_another(trained, tmp_path, make_run):
    kind, folder = trained
    # A rate of next to nothing leaves the weights as they were.
    run = make_run(tmp_path / "run", kind, init=str(folder), lr=1e-12, images=32)
    train_autoencoder(run, show_progress=False)
    before, after = weights(folder), weights(tmp_path / "run")
    assert all(torch.allclose(after[name], value, atol=1e-7) for name, value in before.items())
    other = "fixed_variance" if kind == "kl" else "kl"
    with pytest.raises(UserError, match=r"expected, for --init, a network of the same kind and sizes"):
        train_autoencoder(make_run(tmp_path / "other", other, init=str(folder)), show_progress=False)


def test_a_stop_before_the_autoencoder_is_written_is_made_good(trained, tmp_path, make_run, monkeypatch):
    """The run's folder would else keep the weights of fewer images, and be called finished."""
    kind, folder = trained
    shutil.copytree(folder, tmp_path / "run")
    longer = make_run(tmp_path / "run", kind, images=352)

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderState, "publish", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_autoencoder(longer, show_progress=False)
    train_autoencoder(longer, show_progress=False)
    last = checkpoints_of(tmp_path / "run")[-1]
    assert last.name == "000000000352"
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (last / WEIGHTS).read_bytes()
