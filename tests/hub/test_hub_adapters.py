"""Adapters to the hub and back, with a server of our own in its place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from local_hub import LocalHub, Repository
from PIL import Image

from causalfusion import Pipeline, cli
from causalfusion.errors import UserError
from causalfusion.files import sha256_of
from causalfusion.interop.publish_adapter import AdapterPublication, write_adapter_publication
from causalfusion.saved.adapter import read_adapter
from causalfusion.saved.folder import packaged_models
from causalfusion.saved.hub_adapter import FILES, adapter_fetched_once

SHAPES = Path("shapes")
QUICK = ["--images", "1", "--diffusion-steps", "2"]
NAMES = ("adapter_config.json", "adapter_model.safetensors", "causalfusion.json")


def files_of(folder: Path, place: str = "") -> dict[str, bytes]:
    return {f"{place}{file.name}": file.read_bytes() for file in folder.iterdir() if file.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    """The one line with which a command is refused."""
    assert cli.run(tokens) == 2
    (line,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("causalfusion: ")]
    return line


def weights_of(pipeline: Pipeline) -> dict[str, torch.Tensor]:
    return pipeline.model.state_dict()


def same(one: Pipeline, other: Pipeline) -> bool:
    ours, theirs = weights_of(one), weights_of(other)
    return ours.keys() == theirs.keys() and all(value.equal(theirs[name]) for name, value in ours.items())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained an adapter of `shapes` on a picture, with a grid of samples. Not to be changed."""
    folder = tmp_path_factory.mktemp("hearts")
    Image.new("RGB", (32, 32), (200, 9, 30)).save(folder / "0.png")
    (folder / "list.jsonl").write_text('{"image": "0.png", "caption": "a red heart"}\n' * 8)
    line = ["finetune", "shapes", "--data", str(folder / "list.jsonl"), "--rank", "2", "--train.images", "8"]
    line += ["--train.batch-size", "4", "--train.sample-minutes", "0", "--data.holdout", "0"]
    assert cli.run([*line, "--out", str(folder / "run")]) == 0
    (folder / "run" / "samples").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "run" / "samples" / "000000000008.png")
    return folder / "run"


def test_a_published_adapter_is_the_same_adapter(hub: LocalHub, run: Path, tmp_path: Path, capsys):
    line = ["publish", str(run), "--adapter", "--to", "me/heart", "--license", "mit"]
    assert cli.run(line) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("low-rank additions (LoRA) of rank 2") and told[0].endswith("the model shapes")
    assert told[-1] == f"{hub.url}/me/heart" and len(told) == 2
    files = hub.files("me/heart")
    assert files.keys() == {*NAMES, "README.md", "pictures/00.png"}
    assert not any(str(run.parent).encode() in content for content in files.values())
    assert files[NAMES[1]] == (run / "adapter" / NAMES[1]).read_bytes()
    here, there = (Pipeline.load("shapes", adapters={place: 0.5}) for place in (run, "me/heart"))
    assert same(here, there) and not same(here, Pipeline.load("shapes"))
    digest = sha256_of(run / "adapter" / NAMES[1])[:16]
    assert there.adapters == (f"me/heart {digest} x 0.5",) and here.adapters == (f"run {digest} x 0.5",)
    assert not [line for line in hub.asked if "pictures" in line and "resolve" in line]

    out = [tmp_path / name for name in ("here", "there")]
    for adapter, folder in zip((str(run), "me/heart@main"), out, strict=True):
        line = ["sample", "a red heart", "--adapters", adapter, "--adapter-weights", "2", *QUICK]
        assert cli.run([*line, "--out", str(folder)]) == 0
    first, second = (np.array(Image.open(folder / "000000.png")) for folder in out)
    assert (first == second).all()
    record = json.loads((out[1] / "settings.json").read_text())
    assert record["adapters"] == [f"me/heart@main {digest} x 2"]


def test_the_page_says_how_it_is_used(
    hub: LocalHub, run: Path, digits_run: Path, make_adapter, tmp_path: Path
):
    write_adapter_publication(run, tmp_path / "lora", "me/heart", AdapterPublication(license="mit"))
    page = (tmp_path / "lora" / "README.md").read_text()
    assert page.startswith("---\nlibrary_name: causalfusion\nlicense: mit\ntags:")
    assert "causalfusion sample 'a prompt' --model shapes --adapters me/heart\n" in page
    assert "Pipeline.load('shapes', adapters={'me/heart': 1.0})" in page
    assert "![Samples during training, after 8 images](pictures/00.png)" in page
    assert "| trained on | 8 images, repeats counted |" in page

    hub.repositories["me/shapes"] = Repository()
    hub.repositories["me/shapes"].commit("v1", {})
    word = make_adapter(tmp_path / "word", SHAPES, word="<heart>", base="me/shapes@v1")
    (word / "README.md").write_text("Made by hand.")
    write_adapter_publication(word, tmp_path / "page", "me/word", AdapterPublication())
    page = (tmp_path / "page" / "README.md").read_text()
    assert "base_model: me/shapes\nbase_model_relation: adapter\n" in page and "- text-inversion\n" in page
    line = "causalfusion sample 'a picture of <heart>' --model me/shapes@v1 --adapters me/word\n"
    assert line in page and "a new word, `<heart>`" in page and "Not stated" in page
    assert page.endswith("## Notes of its makers\n\nMade by hand.\n")
    assert not (tmp_path / "page" / "adapter_config.json").exists()
    assert read_adapter(tmp_path / "page").word_rows.keys() == read_adapter(word).word_rows.keys()

    kinds = make_adapter(tmp_path / "kinds", digits_run, classes=["yak", "gnu"])
    write_adapter_publication(kinds, tmp_path / "yak", "me/yak", AdapterPublication())
    page = (tmp_path / "yak" / "README.md").read_text()
    assert "causalfusion sample --classes yak --model run --adapters me/yak\n" in page
    assert "pipeline.generate(['yak'])" in page and "| new classes | yak, gnu |" in page


def test_a_model_that_is_here_alone_is_named_without_its_path(hub: LocalHub, make_adapter, tmp_path, capsys):
    model = tmp_path / "secret" / "mine"
    shutil.copytree(packaged_models()["shapes"], model)
    adapter, out = make_adapter(tmp_path / "heart", model), tmp_path / "out"
    assert cli.run(["publish", str(adapter), "--adapter", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "nobody else can load mine, which is not on the hub" in said and "--base user/model" in said
    assert said.endswith(f"{out} is ready; --to uploads it\n")
    assert not any(b"secret" in content for content in files_of(out).values())
    assert json.loads((out / NAMES[2]).read_text())["base"] == "mine"
    assert "`mine` (not published)" in (out / "README.md").read_text()
    assert cli.run(["publish", str(adapter), "--adapter", "--base", "shapes", "--out", str(out)]) == 0
    assert "nobody else" not in capsys.readouterr().out, "the same weights by a name that others know"
    for name in NAMES[::2]:
        assert "shapes" in json.loads((out / name).read_text()).values()
    assert "--model shapes" in (out / "README.md").read_text()
    line = ["publish", str(adapter), "--adapter", "--out", str(tmp_path / "other")]
    assert "is not a name that others know" in refused(capsys, *line, "--base", str(model))
    assert "is not a name that others know" in refused(capsys, *line, "--base", "me/absent")
    elsewhere = make_adapter(tmp_path / "elsewhere", SHAPES, base="photos/mine")  # a path of another folder
    assert cli.run(["publish", str(elsewhere), "--adapter", "--out", str(out)]) == 0
    assert "nobody else can load mine" in capsys.readouterr().out
    assert b"photos" not in b"".join(files_of(out).values())


def test_the_base_has_to_be_the_model_of_the_adapter(hub: LocalHub, make_adapter, tmp_path: Path, capsys):
    other = tmp_path / "other"
    shutil.copytree(packaged_models()["shapes"], other)
    pipeline = Pipeline.load(other)
    with torch.no_grad():
        pipeline.model.image_out.weight.add_(1)
    pipeline.push_to_hub("me/changed")
    adapter = make_adapter(tmp_path / "heart", SHAPES)
    line = ["publish", str(adapter), "--adapter", "--out", str(tmp_path / "out"), "--base"]
    assert "--base me/changed is another model than that of" in refused(capsys, *line, "me/changed")
    (adapter / NAMES[2]).unlink()  # peft's own says of which weights it is nowhere
    assert cli.run([*line, "me/changed"]) == 0
    settings = json.loads((tmp_path / "out" / NAMES[0]).read_text())
    assert settings["base_model_name_or_path"] == "me/changed" and settings["lora_alpha"] == 2
    (adapter / NAMES[0]).write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    assert "does not say which model it belongs to" in refused(capsys, *line[:-1])


def test_what_publishing_an_adapter_refuses(hub: LocalHub, run: Path, make_adapter, tmp_path: Path, capsys):
    to, adapter = ["--adapter", "--to", "me/x"], make_adapter(tmp_path / "heart", SHAPES)
    assert "there is no shapes" in refused(capsys, "publish", "shapes", *to)
    assert "is of a whole model" in refused(capsys, "publish", str(run), *to, "--cards", str(run))
    assert "give --adapter, too" in refused(capsys, "publish", str(run), "--to", "me/x", "--base", "shapes")
    assert "give --adapter to publish it" in refused(capsys, "publish", str(adapter), "--to", "me/x")
    line = ["publish", str(adapter), "--adapter", "--out"]
    assert "is the adapter itself" in refused(capsys, *line, str(adapter))
    assert "holds other things than an adapter" in refused(capsys, *line, str(run))
    assert not hub.repositories
    hub.add("me/model", {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"page"})
    assert "me/model holds a model" in refused(capsys, "publish", str(adapter), *to[:-1], "me/model")
    assert hub.files("me/model")["README.md"] == b"page"
    assert cli.run(["publish", str(adapter), *to]) == 0
    assert "me/x holds an adapter" in refused(capsys, "publish", "shapes", "--to", "me/x")
    assert cli.run(["publish", str(run), "--out", str(tmp_path / "whole")]) == 0
    assert "is published by --adapter" in capsys.readouterr().out


def test_only_the_adapters_files_are_fetched(hub: LocalHub, make_adapter, tmp_path: Path):
    adapter = make_adapter(tmp_path / "heart", SHAPES)
    strange = {"adapter_model.bin": b"pickle", "setup.py": b"code", "optimizer.safetensors": b"large"}
    hub.add("me/top", {**files_of(adapter), **strange, "README.md": b"page"})
    hub.add("me/within", {**files_of(adapter, "adapter/"), **strange, "README.md": b"page"})
    hub.add("me/both", {**files_of(adapter), "adapter/adapter_model.safetensors": b"another"})
    top, within, both = (read_adapter(Path(f"me/{name}")) for name in ("top", "within", "both"))
    assert set(files_of(top.place)) == set(FILES) and set(files_of(within.place)) == set(NAMES)
    assert within.place.name == "adapter" and (top.name, within.name) == ("me/top", "me/within")
    assert all(found.additions.keys() == {"blocks.0.attn.qkv"} for found in (top, within, both))
    assert not [line for line in hub.asked if line.endswith(tuple(strange))]
    assert not [line for line in hub.asked if "me/both" in line and "adapter/adapter_model" in line]


def test_revisions_and_paths(hub: LocalHub, make_adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, second = (make_adapter(tmp_path / str(seed), SHAPES, seed=seed) for seed in (1, 2))
    commit = hub.add("me/heart", files_of(first))
    hub.add("me/heart", files_of(second))
    for name, folder in ((f"me/heart@{commit}", first), ("me/heart", second)):
        assert (
            read_adapter(Path(name)).place.joinpath(NAMES[1]).read_bytes() == (folder / NAMES[1]).read_bytes()
        )
    shutil.copytree(first, tmp_path / "me" / "heart")
    monkeypatch.chdir(tmp_path)
    asked = len(hub.asked)
    assert read_adapter(Path("me/heart")).place == Path("me/heart")
    for typo, said in (("me/absent", "there is no me/absent"), ("runs/typo", "there is no runs/typo")):
        with pytest.raises(UserError, match=said):
            read_adapter(Path(typo))
    assert len(hub.asked) == asked


def test_without_a_network_the_cache_serves(hub: LocalHub, make_adapter, tmp_path, monkeypatch, capsys):
    adapter = make_adapter(tmp_path / "heart", SHAPES)
    hub.add("me/heart", files_of(adapter))
    hub.add("me/within", files_of(adapter, "adapter/"))
    options: dict[str | Path, float] = {"me/heart": 0.7, "me/within": 0.2}
    online = Pipeline.from_pretrained("shapes", adapters=options)
    asked = len(hub.asked)
    assert same(Pipeline.from_pretrained("shapes", adapters=options, local_files_only=True), online)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    adapter_fetched_once.cache_clear()
    assert same(Pipeline.load("shapes", adapters=options), online) and len(hub.asked) == asked
    told = refused(capsys, "sample", "x", "--adapters", "me/absent")
    assert "me/absent is no path here, not in the hub's cache" in told and "HF_HUB_OFFLINE" in told
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.point_to("http://127.0.0.1:9", monkeypatch)
    adapter_fetched_once.cache_clear()
    assert same(Pipeline.load("shapes", adapters=options), online)
    with pytest.raises(UserError, match=r"the hub, http://127\.0\.0\.1:9, cannot be reached"):
        read_adapter(Path("me/absent"))


def test_what_the_hub_has_not(hub: LocalHub, make_adapter, tmp_path, capsys, monkeypatch):
    own = files_of(make_adapter(tmp_path / "heart", SHAPES))
    hub.add("me/empty", {"README.md": b"nothing"})
    hub.add("me/pickled", {NAMES[0]: own[NAMES[0]], "adapter_model.bin": b"pickle"})
    hub.add("me/model", {"config.json": b"{}", "model.safetensors": b"weights"})
    hub.add("me/bare", {NAMES[1]: own[NAMES[1]]})
    hub.add("me/strange", {**own, NAMES[2]: b'{"format": "another"}'})
    hub.add("me/dora", {NAMES[1]: own[NAMES[1]], NAMES[0]: b'{"peft_type": "LORA", "use_dora": true}'})
    hub.add("me/secret", own, private=True)
    expected = {
        "me/absent": "neither a path here nor an adapter on the hub",
        "me/heart@v9": "neither a path here nor an adapter on the hub",
        "me/secret@v9": "has no revision v9",
        "me/empty": "holds no adapter: no adapter_model.safetensors there",
        "me/pickled": "only a pickled adapter (adapter_model.bin)",
        "me/model": "holds a model and no adapter",
        "me/bare": "no adapter_config.json beside its adapter_model.safetensors",
        "me/strange": "causalfusion.json",
        "me/dora": "is an adapter with use_dora",
    }
    for name, told in expected.items():
        assert told in refused(capsys, "sample", "x", "--adapters", name), name
    fetched = [line for line in hub.asked if line.startswith("GET") and "resolve" in line]
    assert not [
        line for line in fetched if line.endswith(".bin") or ("me/strange" in line and NAMES[1] in line)
    ]
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    assert "a private one needs HF_TOKEN" in refused(capsys, "sample", "x", "--adapters", "me/secret")
    with pytest.raises(UserError, match="does not know this token"):
        Pipeline.from_pretrained("shapes", adapters={"me/secret": 1.0}, token="hf_wrong")
    assert Pipeline.from_pretrained("shapes", adapters={"me/secret": 1.0}, token="hf_reader").adapters


def test_an_adapter_of_another_model_is_named_as_on_the_hub(hub: LocalHub, make_adapter, tmp_path, capsys):
    adapter = make_adapter(tmp_path / "heart", SHAPES, fingerprint="0" * 32, base="me/other")
    hub.add("me/heart", files_of(adapter))
    told = refused(capsys, "sample", "x", "--adapters", "me/heart")
    assert "me/heart is an adapter of another model, me/other" in told and "cache" not in told


def test_a_whole_model_says_what_it_was_fine_tuned_from(run: Path, tmp_path: Path, capsys):
    assert cli.run(["publish", str(run), "--out", str(tmp_path / "page")]) == 0
    assert "| fine-tuned from | shapes |" in (tmp_path / "page" / "README.md").read_text()
