"""`finetune --task caption`: clean images in, text out, and nothing of the image is learned to draw."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from causalfusion import cli
from causalfusion.codec.codec import Codec
from causalfusion.codec.tokenizer import Markers
from causalfusion.config import DataConfig, FactorizationConfig, ModelConfig, RunConfig, TextConfig
from causalfusion.diffusion.process import make_process
from causalfusion.errors import UserError
from causalfusion.evaluate.captioning import score_run
from causalfusion.generate.pipeline import Pipeline
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import latest_model, load_weights
from causalfusion.show.charts import save_loss_curve
from causalfusion.train.batch import TokenBatch
from causalfusion.train.captioning import CaptionObjective
from causalfusion.train.log import read_log
from causalfusion.train.step import Objective

SHORT = ["--train.batch-size", "8", "--train.images", "16", "--train.evaluate-every", "0",
         "--train.log-every", "1"]  # fmt: skip


def test_the_loss_is_that_of_text_behind_clean_images():
    """The same as where one AR step is noised beside them, which texts do not see."""
    model = ModelConfig(hidden_size=32, depth=2, num_heads=2, num_class_tokens=0, token_dim=3, grid_height=4,
                        grid_width=4, vocab_size=20, max_text_tokens=16)  # fmt: skip
    text = TextConfig(tokenizer="given", caption_first=0.0, image_first=1.0, caption_dropout=0.0)
    plan = FactorizationConfig(distribution="fixed", num_ar_steps=1)
    config = RunConfig(model=model, text=text, factorization=plan)
    markers = Markers(text=0, text_end=1, image=2, image_end=3, end=4)
    process = make_process(config.diffusion)
    torch.manual_seed(0)
    network = Transformer(model)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    captions = ([7, 8, 9], [10, 11], [12])
    batch = TokenBatch(torch.randn(3, 16, 3), torch.zeros(3, dtype=torch.int64), torch.arange(3), captions)
    found = []
    for objective in (Objective(config, process, markers), CaptionObjective(config, process, markers)):
        draws = objective.draw(batch, seed=0, split_index=0)
        found.append(objective.errors(network, objective.arrange(batch, draws)))
    assert found[0].text.abs().sum() > 1 and not found[1].image.numel()
    torch.testing.assert_close(found[0].text, found[1].text, atol=1e-4, rtol=1e-4)


def test_a_run_learns_text_alone_and_is_scored(tmp_path, capsys):
    out = tmp_path / "run"
    line = ["finetune", "shapes", "--config", "shapes-caption", *SHORT, "--out", str(out)]
    assert cli.run([*line, "--caption-images", "8"]) == 0
    records = [r for r in read_log(out / "log.jsonl") if r["kind"] == "train"]
    assert all(r["image_loss"] == 0 and r["loss"] == r["text_loss"] > 0 for r in records)
    before, after = (load_weights(latest_model(path)) for path in (Path("shapes"), out))
    changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert "text_embedding.weight" in changed and "blocks.0.attn.qkv.weight" in changed
    assert not any(name.startswith(("image_out", "timestep_embedding")) for name in changed)
    record = json.loads((out / "captions.json").read_text())
    assert record["images"] == len(record["captions"]) == 8 and record["held_out"]
    assert 0 <= record["figures"]["all"] <= 1
    said = capsys.readouterr()
    assert "16/16 images  text " in said.out + said.err  # and no loss of images, which nothing has
    assert "captions of 8 held-out images" in said.out
    if "CIDEr-D" not in record["figures"]:
        assert "captions are not scored" in said.err
    (out / "captions.json").unlink()
    assert cli.run([*line, "--caption-images", "0"]) == 0
    assert not (out / "captions.json").exists()  # of a finished run, which may ask for another number
    assert cli.run([*line, "--caption-images", "3"]) == 0
    assert json.loads((out / "captions.json").read_text())["images"] == 3


def test_the_number_of_described_images_is_of_the_task(tmp_path, capsys):
    line = ["finetune", "shapes", "--data.source", "shapes", "--out", str(tmp_path)]
    assert cli.run([*line, "--caption-images", "8"]) == 2
    assert "--caption-images" in capsys.readouterr().err
    assert cli.run([*line, "--task", "caption", "--caption-images", "-1"]) == 2
    assert "--caption-images is -1; expected 0 or a number of images" in capsys.readouterr().err


def test_what_is_held_out_is_measured_as_it_is_trained(tmp_path):
    """Captions behind whole images without noise, and no loss of images, which nothing learns to draw; behind
    images in random AR steps, the loss of captions rose while captions became better."""
    out = tmp_path / "run"
    line = ["finetune", "shapes", "--config", "shapes-caption", "--data.holdout", "0.0001"]
    line += [
        "--train.batch-size",
        "8",
        "--train.images",
        "16",
        "--train.lr",
        "1e-12",
        "--train.log-every",
        "1",
        "--caption-images",
        "0",
    ]
    assert cli.run([*line, "--out", str(out)]) == 0
    records = read_log(out / "log.jsonl")
    (record,) = [r for r in records if r["kind"] == "evaluation"]
    assert record["mean"] is None and set(record["text"]) == {"image_first"}
    assert not (out / "loss_map.png").exists()
    trained = sum(r["text_loss"] for r in records if r["kind"] == "train") / 2
    assert record["text"]["image_first"] == pytest.approx(trained, rel=0.15)  # 20 images and 16 others
    save_loss_curve(out / "log.jsonl", tmp_path / "curve.png")
    assert Image.open(tmp_path / "curve.png").size[0] > 100


def test_images_of_several_sizes_are_scored_in_their_own(tmp_path, monkeypatch):
    """Each caption beside those of its image, at the place of the image in the data."""
    pictures, run = tmp_path / "pictures", tmp_path / "run"
    pictures.mkdir()
    for number in range(12):
        side = 32 + 4 * (number % 3)
        Image.new("RGB", (32, side), (20 * number, 0, 0)).save(pictures / f"{number:02d}.png")
        (pictures / f"{number:02d}.txt").write_text(f"{32 * side}")
    pipeline = Pipeline.load("shapes")
    native = replace(pipeline, codec=Codec(replace(pipeline.codec.config, max_area=4096)))

    def caption(self, images, *_, **__):
        return [str(image[0].numel()) for image in images]

    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: native)
    monkeypatch.setattr(Pipeline, "caption", caption)
    monkeypatch.setattr("causalfusion.evaluate.captioning.latest_model", lambda run: run)
    monkeypatch.setattr("causalfusion.evaluate.captioning.caption_scores", compared)
    data = DataConfig(source="folder", path=str(pictures), image_size="native", holdout=0.5)
    assert score_run(run, data, "cpu") == {"same": 1.0}
    assert json.loads((run / "captions.json").read_text())["images"] == 6


def test_without_held_out_images_those_that_are_scored_are_spread_over_the_data(tmp_path, monkeypatch):
    """The first ones of a folder may all be of one kind."""
    pictures, run = tmp_path / "pictures", tmp_path / "run"
    pictures.mkdir()
    for number in range(9):
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"number {number}")
    pipeline, read = Pipeline.load("shapes"), []

    def caption(self, images, *_, **__):
        read.extend(round(float(image[0, 0, 0] + 1) * 127.5 / 20) for image in images)
        return [f"number {number}" for number in read]

    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: pipeline)
    monkeypatch.setattr(Pipeline, "caption", caption)
    monkeypatch.setattr("causalfusion.evaluate.captioning.latest_model", lambda run: run)
    monkeypatch.setattr("causalfusion.evaluate.captioning.caption_scores", compared)
    data = DataConfig(source="folder", path=str(pictures), holdout=0.0)
    assert score_run(run, data, "cpu", images=3) == {"same": 1.0} and read == [0, 3, 6]


def compared(captions: list[str], references: list[list[str]]) -> dict[str, float]:
    pairs = list(zip(captions, references, strict=True))
    return {"same": sum([caption] == own for caption, own in pairs) / len(pairs)}


def test_a_model_without_text_is_refused(digits_run, tmp_path, capsys):
    line = ["finetune", str(digits_run), "--task", "caption", "--data.source", "shapes", *SHORT]
    assert cli.run([*line, "--out", str(tmp_path / "run")]) == 2
    assert "has no text; expected a model that was trained with captions" in capsys.readouterr().err


def test_captions_of_a_cache_alone_are_told_to_be_unscored(tmp_path, capsys):
    assert score_run(tmp_path, DataConfig(source="folder", cache="latents")) == {}
    assert "data.cache holds no images" in capsys.readouterr().out
    with pytest.raises(UserError):
        score_run(tmp_path, DataConfig(source="folder"))
