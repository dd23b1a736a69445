"""Adapters that `causalfusion finetune` trains: their files, their mixture, and what they leave as it was."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion import Pipeline, cli
from causalfusion.config import LoraConfig
from causalfusion.config.recipes import load_config
from causalfusion.errors import UserError
from causalfusion.interop.publish import Publication, write_publication
from causalfusion.model.transformer import Transformer
from causalfusion.saved.adapted import merged, with_adapters
from causalfusion.saved.adapter import read_adapter
from causalfusion.saved.folder import latest_model, load_model, load_spec, load_tokenizer, load_weights
from causalfusion.train.run import train

SHORT = [
    "--train.batch-size", "8", "--train.evaluate-every", "0", "--train.sample-minutes", "0",
    "--train.precision", "float32", "--train.images", "16",
]  # fmt: skip
SMALL = {"hidden_size": 16, "depth": 2, "num_heads": 2, "num_class_tokens": 2}
WORD = "<yak>"


def draw(folder: Path, word: str, label: str) -> Path:
    """A JSONL file of 12 captioned pictures of one class."""
    folder.mkdir()
    lines = []
    for index in range(12):
        Image.new("RGB", (8, 8), (20 * index, 90, 10)).save(folder / f"{index}.png")
        record = {"image": f"{index}.png", "caption": f"a picture of a {word}", "label": label}
        lines.append(json.dumps(record))
    (folder / "list.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "list.jsonl"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A small model with classes and captions; two runs with low-rank additions, one of which adds a class,
    and one of a text inversion. Not to be changed."""
    folder = tmp_path_factory.mktemp("adapters")
    runs = {name: folder / name for name in ("base", "one", "other", "word", "foreign")}
    data = [draw(folder / label, "cat", label) for label in ("cat", "yak")]
    for name, seed in (("base", 0), ("foreign", 1)):
        settings = {"seed": seed, "images": 16, "batch_size": 8, "evaluate_every": 0, "sample_minutes": 0.0}
        config = load_config(
            data={"source": "jsonl", "path": str(data[0]), "image_size": 8}, codec={"patch_size": 2},
            model=SMALL, text={"tokenizer": "train"}, train=settings,
        )  # fmt: skip
        train(replace(config, out=str(runs[name])))
    lora = ["--adapter", "lora", "--rank", "2", "--train.lr", "0.01"]
    inversion = ["--adapter", "text-inversion", "--word", WORD, "--like", "cat", "--train.lr", "0.01"]
    told = draw(folder / "told", WORD, "cat")
    for name, listed, options in (
        ("one", data[0], lora),
        ("other", data[1], [*lora, "--alpha", "4", "--train.seed", "3"]),
        ("word", told, inversion),
    ):
        line = ["finetune", str(runs["base"]), "--data", str(listed), *options, *SHORT]
        assert cli.run([*line, "--out", str(runs[name])]) == 0
    return runs


def test_additions_begin_as_nothing(runs):
    model, spec = load_model(latest_model(runs["base"]))
    grown = Transformer(replace(spec.model, lora=LoraConfig(rank=4)))
    grown.init_weights(torch.Generator().manual_seed(0))
    grown.load_state_dict(model.state_dict(), strict=False)
    pipeline = Pipeline.load(runs["base"])
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    found = replace(pipeline, model=grown).features(image)
    torch.testing.assert_close(found, pipeline.features(image), rtol=0, atol=1e-6)


def test_a_merged_model_computes_what_the_run_computes(runs, tmp_path, capsys):
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    whole, base = Pipeline.load(runs["one"]), Pipeline.load(runs["base"])
    loaded = Pipeline.load(runs["base"], adapters={runs["one"]: 1.0})
    torch.testing.assert_close(loaded.features(image), whole.features(image), rtol=0, atol=1e-6)
    assert not torch.allclose(base.features(image), whole.features(image), atol=1e-4)
    line = ["convert", "merge", str(runs["base"]), "--adapters", str(runs["one"])]
    assert cli.run([*line, "--out", str(tmp_path / "merged")]) == 0
    assert " with 1 adapter inside, " in capsys.readouterr().out
    assert cli.run(["convert", "merge", str(runs["one"]), "--out", str(tmp_path / "own")]) == 0
    assert " with its low-rank additions inside, " in capsys.readouterr().out
    assert cli.run(["convert", "merge", str(runs["base"]), "--out", str(tmp_path / "none")]) == 2
    for name in ("merged", "own"):
        plain = Pipeline.load(tmp_path / name)
        assert plain.spec.model.lora.rank == 0
        torch.testing.assert_close(plain.features(image), whole.features(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("made", ["merge", "bundle"])
def test_a_model_is_in_its_place_when_all_of_it_is(runs, tmp_path, monkeypatch, made):
    """A stop in the middle leaves no folder that looks like a model, and draws otherwise."""
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(latest_model(runs["base"]), source)
    (source / "sample.toml").write_text("diffusion_steps = [7]\n")
    line = ["convert", made, *["--model"] * (made == "bundle"), str(source), "--out", str(out)]
    line += ["--adapters", str(runs["one"])] * (made == "merge")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert cli.run(line) == 130
    assert not out.exists()
    assert cli.run(line) == 0
    assert Pipeline.load(out).default_sampling.diffusion_steps == [7]


def test_adapters_mix_by_weight(runs):
    spec, weights = load_spec(latest_model(runs["base"])), load_weights(latest_model(runs["base"]))
    adapters = [read_adapter(runs[name]) for name in ("one", "other")]
    mixed = with_adapters(spec, weights, None, list(zip(adapters, (0.7, 0.3), strict=True)))[1]
    name = "blocks.1.mlp.fc1.weight"
    expected = weights[name].clone()
    for run, share in (("one", 0.7), ("other", 0.3)):
        alone = merged(load_spec(latest_model(runs[run])), load_weights(latest_model(runs[run])))[1][name]
        expected += share * (alone - weights[name])
    torch.testing.assert_close(mixed[name], expected, rtol=0, atol=1e-6)


def test_a_new_class_comes_with_its_adapter(runs):
    pipeline = Pipeline.load(runs["base"], adapters={runs["other"] / "adapter": 0.5})
    assert pipeline.spec.class_names == ["cat", "yak"]
    table = "class_embedding.table.weight"
    assert torch.equal(pipeline.model.state_dict()[table], load_weights(latest_model(runs["other"]))[table])
    assert pipeline.generate(["yak"]).shape == (1, 3, 8, 8)
    assert "x 0.5" in pipeline.adapters[0]


def test_a_rule_for_larger_grids_stays_when_adapters_are_added(make_adapter, tmp_path):
    adapter, pipeline = make_adapter(tmp_path / "heart", Path("shapes")), Pipeline.load("shapes")
    pipeline.extrapolate("ntk")
    grown = pipeline.with_adapters({adapter: 1.0})
    assert grown.model.config.rope == pipeline.model.config.rope != Pipeline.load("shapes").model.config.rope
    assert pipeline.with_adapters({}) is pipeline


def test_the_files_are_those_of_peft(runs):
    from safetensors.torch import load_file

    folder, spec = runs["other"] / "adapter", load_spec(latest_model(runs["other"]))
    tensors = load_file(folder / "adapter_model.safetensors")
    rows = tensors.pop("class_rows")
    assert rows.shape[0] == 1
    assert tensors["base_model.model.blocks.0.attn.qkv.lora_A.weight"].shape == (2, 16)
    assert tensors["base_model.model.blocks.1.mlp.fc2.lora_B.weight"].shape == (16, 2)
    assert len(tensors) == 2 * 4 * spec.model.depth
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 2, 4.0)
    facts = json.loads((folder / "causalfusion.json").read_text())
    assert facts["base"] == str(runs["base"]) and facts["classes"] == ["yak"]


def test_peft_reads_them(runs):
    peft = pytest.importorskip("peft", reason="peft is not installed; it needs accelerate")
    folder = runs["one"] / "adapter"
    model, _ = load_model(latest_model(runs["base"]))
    read = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload().state_dict()
    ours = Pipeline.load(runs["base"], adapters={folder: 1.0}).model.state_dict()
    assert read.keys() == ours.keys()
    for name, value in ours.items():
        torch.testing.assert_close(read[name], value, rtol=0, atol=1e-6)


def test_an_adapter_of_another_model_is_refused(runs, tmp_path, capsys):
    with pytest.raises(UserError, match=r"is an adapter of another model, .*base"):
        Pipeline.load(runs["foreign"], adapters={runs["one"]: 1.0})
    line = ["sample", "--model", str(runs["foreign"]), "--adapters", str(runs["one"]), "--images", "1"]
    assert cli.run([*line, "--out", str(tmp_path / "images")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for options, said in [
        (["--adapters", str(tmp_path / "nowhere")], "there is no"),
        (["--adapters", str(runs["base"])], "holds no adapter"),
        (["--adapters", str(runs["one"]), "--adapter-weights", "1", "2"], "expected a number for each"),
    ]:
        assert cli.run(["sample", "--model", str(runs["base"]), *options, "--out", str(tmp_path / "o")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_word_is_one_row(runs):
    before, after = (load_weights(latest_model(runs[name])) for name in ("base", "word"))
    tokenizer = load_tokenizer(latest_model(runs["base"]), load_spec(latest_model(runs["base"])))
    assert tokenizer is not None
    new = tokenizer.base_size
    for name, value in before.items():
        kept = after[name]
        if name in ("text_embedding.weight", "text_out.weight"):
            kept = torch.cat([kept[:new], kept[new + 1 :]])
        assert torch.equal(kept, value), name
    like = before["text_embedding.weight"][tokenizer.encode(" cat")].mean(0)
    assert not torch.allclose(after["text_embedding.weight"][new], like)


def test_a_word_is_known_after_loading_and_old_prompts_mean_what_they_did(runs):
    base, told = Pipeline.load(runs["base"]), Pipeline.load(runs["base"], adapters={runs["word"]: 1.0})
    tokenizer = told.with_text()
    assert tokenizer.encode(f"a {WORD}")[-1] == base.with_text().base_size
    assert tokenizer.encode("a cat") == base.with_text().encode("a cat")
    sample = replace(base.default_sampling, diffusion_steps=[2])
    old = [each.generate(None, sample, prompts=["a cat"]) for each in (base, told)]
    torch.testing.assert_close(*old, rtol=0, atol=1e-6)
    whole = Pipeline.load(runs["word"]).generate(None, sample, prompts=[f"a {WORD}"])
    torch.testing.assert_close(told.generate(None, sample, prompts=[f"a {WORD}"]), whole, rtol=0, atol=1e-6)


def test_own_images_of_a_model_with_captions_have_captions_that_it_wrote(runs, tmp_path):
    listed, out = draw(tmp_path / "told", "yak", "yak"), tmp_path / "run"
    line = ["finetune", str(runs["base"]), "--data", str(listed), "--out", str(out), *SHORT]
    assert cli.run([*line, "--prior-preservation", "0.4", "--prior-images", "5"]) == 0
    with np.load(out / "prior" / "part-0000.npz") as drawn:
        assert drawn["images"].shape == (4, 8, 8, 3) and set(drawn["labels"].tolist()) == {-1}
        assert all(str(text) for text in drawn["texts"])
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\ntwo cats\n")
    out = tmp_path / "given"
    line[5] = str(out)
    assert cli.run([*line, "--prior-preservation", "0.4", "--prior-prompts", str(prompts)]) == 0
    with np.load(out / "prior" / "part-0000.npz") as drawn:
        assert drawn["texts"].tolist()[:3] == ["a cat", "two cats", "a cat"]


def test_words_that_the_tokenizer_spells_are_named_once(runs, tmp_path, capsys):
    listed = draw(tmp_path / "told", "zebra", "cat")
    line = ["finetune", str(runs["base"]), "--data", str(listed), "--out", str(tmp_path / "run"), *SHORT]
    assert cli.run(line) == 0
    said = capsys.readouterr().err
    assert said.count("zebra (") == 1 and "picture (" not in said


def test_a_run_with_an_adapter_is_published_whole_and_tells_no_path(runs, tmp_path):
    out = tmp_path / "published"
    write_publication(runs["one"], out, "user/pets", Publication())
    assert Pipeline.load(out).spec.model.lora.rank == 2
    recipe = (out / "training.toml").read_text()
    assert "--rank 2" in recipe
    texts = [out / name for name in ("training.toml", "README.md", "config.json")]
    assert not any(str(runs["base"].parent) in file.read_text() for file in texts)
