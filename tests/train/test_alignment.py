"""Alignment with a frozen encoder: what is compared with what, and that it is a run like any other."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from causalfusion.cli import run
from causalfusion.config import AlignConfig, DiffusionConfig, FactorizationConfig, ModelConfig, RunConfig
from causalfusion.diffusion.ddpm import DDPM
from causalfusion.encoders.resnet_cifar import ResNetCifarNetwork
from causalfusion.model.compiled import compile_blocks
from causalfusion.model.layers import layer_outputs, readable
from causalfusion.model.projector import add_projector, is_of_projector
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import latest_model, load_model
from causalfusion.train.alignment import AlignedObjective
from causalfusion.train.batch import TokenBatch
from causalfusion.train.log import read_log

MODEL = ModelConfig(hidden_size=32, depth=3, num_heads=2, num_class_tokens=2, num_classes=4, token_dim=3,
                    grid_height=4, grid_width=4)  # fmt: skip
SMALL = ["--model.hidden-size", "16", "--model.depth", "2", "--train.evaluate-every", "0"]


def aligned_model(layer: int = 2) -> Transformer:
    torch.manual_seed(5)
    model = Transformer(MODEL)
    add_projector(model, layer, 24, 6)
    for parameter in model.parameters():  # so that modulations and outputs are not zero
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def objective_of(copies: int = 1) -> AlignedObjective:
    plan = FactorizationConfig(split="per_image", order="random", decay=1.0, timesteps_per_ar_step=copies)
    config = RunConfig(model=MODEL, factorization=plan, align=AlignConfig(encoder="given"))
    return AlignedObjective(config, DDPM(DiffusionConfig()))


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("copies", [1, 2])
def test_the_places_of_features_are_those_of_the_tokens(layer, copies):
    """An encoder that says what the projector says, at each place of the image, has no loss; its opposite has
    the most. By hand: the layer's output, the projector behind it."""
    model, objective = aligned_model(layer), objective_of(copies)
    batch = TokenBatch(torch.randn(3, 16, 3), torch.tensor([0, 1, 2]), torch.arange(3))
    draws = objective.draw(batch, seed=0, split_index=0)
    piece = objective.arrange(batch, draws)
    noised = piece.noised_from(0, objective.process)
    outputs = layer_outputs(model, readable(objective.pack(piece, noised)), [layer])[layer]
    by_hand = model.get_submodule("projector")(outputs[-1])
    predictions, _ = objective.run(model, piece, noised)
    assert predictions.projected is not None
    torch.testing.assert_close(predictions.projected, by_hand)
    assert by_hand.shape == (3, 16 * copies, 6)
    back = piece.plan.order.argsort(1)[:, :, None]
    first_copy = predictions.projected.detach()[:, :16].take_along_dim(back, 1)
    for sign, loss in ((1, 0), (-1, 2)):
        given = replace(batch, features=(sign * first_copy).half())
        found = objective.errors(model, objective.arrange(given, draws)).alignment
        assert found is not None and found.shape == (3,)
        if copies == 1:
            torch.testing.assert_close(found, torch.full((3,), float(loss)), atol=1e-4, rtol=0)
    with torch.no_grad():
        assert objective.run(model, piece, noised)[0].projected is None, "nothing is read without gradients"


def test_it_teaches_the_layers_below_alone_and_the_errors_are_as_without():
    model, objective = aligned_model(2), objective_of()
    batch = TokenBatch(torch.randn(2, 16, 3), torch.tensor([0, 1]), torch.arange(2))
    draws = objective.draw(batch, seed=0, split_index=0)
    plain = objective.errors(model, objective.arrange(batch, draws))
    assert plain.alignment is None
    given = objective.arrange(replace(batch, features=torch.randn(2, 16, 6).half()), draws)
    errors = objective.errors(model, given)
    assert errors.image.equal(plain.image) and errors.alignment is not None
    errors.alignment.sum().backward()
    touched = {name.split(".")[1] for name, p in model.named_parameters() if name.startswith("blocks") and
               p.grad is not None}  # fmt: skip
    assert touched == {"0", "1"}
    assert all(p.grad is not None for n, p in model.named_parameters() if is_of_projector(n))


@pytest.mark.slow
def test_compiled_blocks_and_recomputed_ones_are_read_alike():
    objective = objective_of()
    batch = TokenBatch(torch.randn(2, 16, 3), torch.tensor([0, 1]), torch.arange(2),
                       features=torch.randn(2, 16, 6).half())  # fmt: skip
    draws = objective.draw(batch, seed=0, split_index=0)
    found = []
    for compiled in (False, True):
        model = aligned_model()
        if compiled:
            compile_blocks(model, backend="eager")
        for _ in range(2):
            errors = objective.errors(model, objective.arrange(batch, draws))
            assert errors.alignment is not None
        found.append(errors.alignment)
    torch.testing.assert_close(*found)


@pytest.fixture
def command(digits_run, tmp_path):
    def make(out: str, *options: str, images: int = 96) -> list[str]:
        settings = {"--align.encoder": f"model:{digits_run}:1", "--align.width": "8", "--data.flip": "true",
                    "--train.batch-size": "16", "--train.log-every": "1", "--train.sample-every": "0",
                    "--train.lr-schedule": "constant", "--train.images": str(images)}  # fmt: skip
        settings |= dict(zip(options[::2], options[1::2], strict=True))
        given = [word for pair in settings.items() for word in pair]
        return ["train", "--config", "digits", *SMALL, *given, "--out", str(tmp_path / out)]

    return make


def weights_of(out: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(latest_model(out) / name)


def test_a_run_keeps_its_projector_for_itself_and_resumes_to_the_bit(command, tmp_path, capsys):
    kept = ["--align.cache", str(tmp_path / "kept")]
    assert run(command("whole", *kept)) == 0
    assert "layer 1 is aligned with model:" in capsys.readouterr().out
    model, spec = load_model(latest_model(tmp_path / "whole"))
    assert not any(map(is_of_projector, model.state_dict())) and spec.model.depth == 2
    assert not any(map(is_of_projector, weights_of(tmp_path / "whole", "raw.safetensors")))
    records = [r for r in read_log(tmp_path / "whole" / "log.jsonl") if r["kind"] == "train"]
    for record in records:
        expected = record["image_loss"] + 0.5 * record["alignment"]
        assert record["loss"] == pytest.approx(expected) and 0 < record["alignment"] < 2
    assert records[-1]["alignment"] < records[0]["alignment"]
    files = sorted(path.name for path in (tmp_path / "kept").rglob("*.npy"))
    assert files == ["mirrored.npy", "plain.npy"]
    assert run(command("parts", *kept, images=48)) == 0
    assert run(command("parts", *kept)) == 0
    names = ["model", "raw", "state/optimizer", "state/projector"]
    for name in names:
        one, two = (weights_of(tmp_path / out, f"{name}.safetensors") for out in ("whole", "parts"))
        assert one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one)
    assert len(one) == 6, "three layers"
    assert any(is_of_projector(key) for key in weights_of(tmp_path / "whole", "state/optimizer.safetensors"))


def test_features_made_for_each_batch_are_those_that_are_kept(command, tmp_path):
    """Up to float16's rounding; in micro-batches, too."""
    assert run(command("kept", "--align.cache", str(tmp_path / "kept"), images=32)) == 0
    assert run(command("made", "--train.grad-accumulation", "2", images=32)) == 0
    one, two = (
        [r["alignment"] for r in read_log(tmp_path / out / "log.jsonl") if r["kind"] == "train"]
        for out in ("kept", "made")
    )
    assert one == pytest.approx(two, rel=1e-4)


def test_kept_features_are_made_once_and_an_interrupted_pass_goes_on(command, tmp_path, monkeypatch):
    from causalfusion.train import image_features

    monkeypatch.setattr(image_features, "_SECONDS", 0.0)
    encode, calls = image_features.EncodedSource.encode, []

    def stopped(self, images):
        calls.append(len(images))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return encode(self, images)

    kept = ["--align.cache", str(tmp_path / "kept")]
    monkeypatch.setattr(image_features.EncodedSource, "encode", stopped)
    assert run(command("run", *kept, images=16)) == 130
    assert not list((tmp_path / "kept").rglob("*.npy"))
    assert run(command("run", *kept, images=16)) == 0
    assert sum(calls) == 2 * 1797 + 64, "both of each image, and those of the pass that was stopped"
    before = len(calls)
    assert run(command("other", *kept, images=16)) == 0 and len(calls) == before
    plain, mirrored = (np.load(next((tmp_path / "kept").rglob(f"{n}.npy"))) for n in ("plain", "mirrored"))
    assert plain.shape == (1797, 16, 16) and plain.dtype == np.float16
    assert np.isfinite(plain).all() and (plain != mirrored).any()


def test_features_beside_latents_on_the_disk(command, tmp_path, digits_run):
    """A latent cache has no images; those that it was made of are read."""
    assert (
        run(["encode", "--config", "digits", "--data.flip", "true", "--out", str(tmp_path / "latents")]) == 0
    )
    cached = ["--data.cache", str(tmp_path / "latents")]
    assert run(command("run", *cached, images=32)) == 0
    assert run(command("plain", images=32)) == 0
    one, two = (weights_of(tmp_path / out, "raw.safetensors") for out in ("run", "plain"))
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)


@pytest.mark.parametrize("recipes", [(), ("--config", "transfusion")], ids=["clean context", "noised"])
def test_text_and_images_are_aligned_together(tmp_path, recipes):
    network = ResNetCifarNetwork(1).eval()
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "judge.safetensors")
    out = tmp_path / "run"
    options = ["--align.encoder", f"resnet-cifar:{tmp_path / 'judge.safetensors'}", "--align.layer", "1"]
    options += ["--text.text-only", "0.2", "--text.caption-first", "0.4", "--text.image-first", "0.4"]
    length = [
        "--train.images",
        "32",
        "--train.batch-size",
        "8",
        "--train.log-every",
        "1",
        "--model.depth",
        "1",
    ]
    sizes = ["--model.hidden-size", "16", "--model.num-heads", "1", "--train.evaluate-every", "0"]
    sizes += ["--train.sample-every", "0", "--train.sample-minutes", "0"]
    assert run(["train", "--config", "shapes", *recipes, *options, *length, *sizes, "--out", str(out)]) == 0
    records = [r for r in read_log(out / "log.jsonl") if r["kind"] == "train"]
    weight = json.loads((latest_model(out) / "state" / "run.json").read_text())["text"]["loss_coefficient"]
    for r in records:
        expected = r["image_loss"] + weight * r["text_loss"] + 0.5 * r["alignment"]
        assert r["loss"] == pytest.approx(expected)


def test_what_cannot_be_is_refused(command, digits_run, tmp_path, capsys):
    def said(*options: str, **more) -> str:
        assert run(command("run", *options, **more)) == 2
        assert not list((tmp_path / "run").glob("checkpoints/*"))
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "align.encoder is 'vgg'; expected transformers:ID" in said("--align.encoder", "vgg")
    assert "as images are clean" in said("--align.encoder", f"model:{digits_run}:1:0.2")
    assert "layer is 9; expected 0" in said("--align.encoder", f"model:{digits_run}:9")
    assert "align.layer is 3; expected 1 to 2" in said("--align.layer", "3")
    assert "align.coefficient is 0.0" in said("--align.coefficient", "0")
    assert "model.head.kind is 'per_token'; expected joint" in said("--model.head.kind", "per_token")
    assert "one size, for align.encoder" in said("--data.image-size", "native")
    plain = ["train", "--config", "digits", "--align.layer", "1", "--out", str(tmp_path / "run")]
    assert run(plain) == 2
    assert "as it needs --align.encoder" in capsys.readouterr().err


def test_a_run_that_has_begun_keeps_its_encoder(command, digits_run, tmp_path, capsys):
    assert run(command("run", images=16)) == 0
    capsys.readouterr()
    assert run(command("run", "--align.encoder", f"model:{digits_run}:2", images=32)) == 2
    assert "is not the one that" in capsys.readouterr().err
    assert run(command("run", "--align.coefficient", "1", images=32)) == 2
    assert "was begun with align.coefficient = 0.5, now it is 1.0" in capsys.readouterr().err
    kept = ["--align.cache", str(tmp_path / "kept")]
    assert run(command("run", *kept, images=32)) == 0, "where features are kept may change"
    assert run(command("from", "--train.init", str(tmp_path / "run"), images=16)) == 0


def test_a_full_disk_is_told_before_a_mapped_file_is_written(tmp_path, monkeypatch):
    """Which would kill the process; and a pass that left a damaged file begins anew."""
    from causalfusion.train.image_features import _done, _reserved

    file, note = tmp_path / "plain.unfinished", tmp_path / "plain.json"
    array = _reserved(file, np.dtype(np.float16), (300, 16, 8))
    assert file.stat().st_blocks * 512 >= array.nbytes, "its room is taken"
    for told, expected in ((64, 64), (-3, 0), (301, 0), (1.5, 0), ("{", 0)):
        note.write_text(str(told))
        assert _done(file, note, 300) == expected
    note.write_text("64")
    file.write_bytes(file.read_bytes()[:5000])
    assert _done(file, note, 300) == 0

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match=r"plain\.unfinished"):
        _reserved(file, np.dtype(np.float16), (300, 16, 8))
    assert not file.exists()
