"""Models to the hub and back, with a server of our own in its place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from local_hub import READER, LocalHub
from PIL import Image

import forked
from causalfusion import Pipeline, SampleConfig, cli
from causalfusion.errors import UserError
from causalfusion.saved.folder import latest_model, packaged_models
from causalfusion.saved.hub import FETCHED, HubName, fetched_once, parse_hub_name

SHAPES = packaged_models()["shapes"]
QUICK = SampleConfig(sampler="dpm++", diffusion_steps=[2])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def images_of(pipeline: Pipeline) -> torch.Tensor:
    return pipeline.generate(prompts=["a small red circle"], config=QUICK, seed=3)


def refused(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    """The one line with which a command is refused."""
    assert cli.run(tokens) == 2
    (line,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("causalfusion: ")]
    return line


def test_a_published_model_is_the_same_model(hub: LocalHub, tmp_path: Path, capsys):
    assert cli.run(["publish", "shapes", "--to", "me/shapes", "--license", "apache-2.0"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.url}/me/shapes"
    assert "PUT /objects" in " ".join(hub.asked), "weights go by Git LFS"
    here, there = Pipeline.load("shapes"), Pipeline.from_pretrained("me/shapes")
    weights = there.model.state_dict()
    assert all(value.equal(weights[name]) for name, value in here.model.state_dict().items())
    assert images_of(here).equal(images_of(there))
    card = hub.files("me/shapes")["README.md"].decode()
    assert card.startswith(
        "---\nlibrary_name: causalfusion\nlicense: apache-2.0\npipeline_tag: text-to-image"
    )
    assert "--model me/shapes" in card and "1,761,712" in card and "best of 8" in card
    shutil.rmtree(tmp_path / "cache")
    fetched_once.cache_clear()
    out = tmp_path / "samples"
    command = ["sample", "a small red circle", "--diffusion-steps", "2", "--images", "1", "--seed", "3"]
    assert cli.run([*command, "--model", "me/shapes", "--out", str(out)]) == 0
    assert cli.run([*command, "--model", "shapes", "--out", str(tmp_path / "own")]) == 0
    pictures = [np.array(Image.open(folder / "000000.png")) for folder in (out, tmp_path / "own")]
    assert (pictures[0] == pictures[1]).all()
    told = json.loads((out / "settings.json").read_text())
    assert hub.repositories["me/shapes"].branches["main"] in told["model"], "which commit it was, is told"


def test_a_pipeline_goes_to_the_hub_and_back(hub: LocalHub):
    here = Pipeline.load("shapes")
    page = here.push_to_hub("me/mine", private=True, sampling=QUICK)
    assert page == f"{hub.url}/me/mine" and hub.repositories["me/mine"].private
    there = Pipeline.from_pretrained("me/mine")
    weights = there.model.state_dict()
    assert all(value.equal(weights[name]) for name, value in here.model.state_dict().items())
    torch.testing.assert_close(images_of(there), images_of(here), atol=1e-5, rtol=0)  # of another alignment
    assert "diffusion_steps = [2]" in hub.files("me/mine")["sample.toml"].decode()
    assert "Not stated" in hub.files("me/mine")["README.md"].decode()


def test_revisions(hub: LocalHub):
    here = Pipeline.load("shapes")
    here.push_to_hub("me/two")
    other = Pipeline.load("shapes")
    with torch.no_grad():
        other.model.image_out.weight.zero_()
    other.push_to_hub("me/two@zero")
    assert Pipeline.from_pretrained("me/two").model.image_out.weight.equal(here.model.image_out.weight)
    for zero in (
        Pipeline.from_pretrained("me/two", revision="zero"),
        Pipeline.load("me/two@zero"),
        Pipeline.load(f"me/two@{hub.repositories['me/two'].branches['zero']}"),
    ):
        assert not zero.model.image_out.weight.any()
    with pytest.raises(UserError, match="no revision nine"):
        Pipeline.from_pretrained("me/two@nine")
    with pytest.raises(UserError, match="two revisions"):
        Pipeline.from_pretrained("me/two@zero", revision="main")


def test_nothing_but_the_named_files_is_fetched(hub: LocalHub, tmp_path: Path):
    strange = {"pytorch_model.bin": b"pickle", "setup.py": b"code", "other.safetensors": b"large"}
    strange |= {"autoencoder/diffusion_pytorch_model.bin": b"pickle", "state/run.json": b"{}"}
    hub.add("me/strange", files_of(SHAPES) | strange)
    folder = latest_model(Path("me/strange"))
    assert files_of(folder).keys() == files_of(SHAPES).keys() - {"figures.json"}
    assert not [line for line in hub.asked if any(line.endswith(name) for name in strange)]
    assert not [name for name in FETCHED if name.endswith((".py", ".bin"))]


def test_a_download_that_was_broken_off_is_completed(hub: LocalHub):
    Pipeline.load("shapes").push_to_hub("me/mine", sampling=QUICK)
    folder = latest_model(Path("me/mine"))
    for name in ("sample.toml", "tokenizer.json"):
        (folder / name).unlink()
    fetched_once.cache_clear()
    again = Pipeline.load("me/mine")
    assert again.sampling is not None and again.sampling.diffusion_steps == [2]


def test_a_path_takes_precedence(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub.add("me/shapes", {"config.json": b"{}"})
    shutil.copytree(SHAPES, tmp_path / "me" / "shapes")
    monkeypatch.chdir(tmp_path)
    assert latest_model(Path("me/shapes")) == Path("me/shapes")
    assert Pipeline.from_pretrained("me/shapes").spec.images_seen > 0
    (tmp_path / "me" / "empty").mkdir()
    with pytest.raises(UserError, match="me/empty holds no model"):
        latest_model(Path("me/empty"))
    assert not hub.asked


def test_offline_from_the_cache(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, capsys):
    hub.add("me/shapes", files_of(SHAPES))
    images = images_of(Pipeline.from_pretrained("me/shapes"))
    asked = len(hub.asked)
    local = Pipeline.from_pretrained("me/shapes", local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert images_of(local).equal(images)
    assert images_of(Pipeline.load("me/shapes")).equal(images)
    assert len(hub.asked) == asked
    told = refused(capsys, "sample", "--model", "me/absent")
    assert "me/absent is no path here, not in the hub's cache" in told and "HF_HUB_OFFLINE" in told


def test_a_cached_version_serves_where_there_is_no_network(hub: LocalHub, monkeypatch: pytest.MonkeyPatch):
    hub.add("me/shapes", files_of(SHAPES))
    images = images_of(Pipeline.from_pretrained("me/shapes"))
    hub.point_to("http://127.0.0.1:9", monkeypatch)
    assert images_of(Pipeline.from_pretrained("me/shapes")).equal(images)
    with pytest.raises(UserError, match=r"the hub, http://127\.0\.0\.1:9, cannot be reached"):
        Pipeline.from_pretrained("me/absent")


def test_what_the_hub_has_not(hub: LocalHub, capsys, monkeypatch: pytest.MonkeyPatch):
    config = (SHAPES / "config.json").read_bytes()
    hub.add("me/empty", {"README.md": b"nothing"})
    hub.add("me/pickled", {"config.json": config, "pytorch_model.bin": b"pickle"})
    hub.add("me/other", {"config.json": b'{"model_type": "llama"}', "model.safetensors": b""})
    hub.add("me/secret", files_of(SHAPES), private=True)
    expected = {
        "me/absent": "neither a path here nor a model on the hub",
        "me/empty": "holds no model: no config.json there",
        "me/pickled": r"only pickled weights (pytorch_model.bin)",
        "me/other": "another library's",
        "me/shapes@": "me/shapes@ holds no model",
    }
    for name, told in expected.items():
        assert told in refused(capsys, "sample", "--model", name), name
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    assert "a private one needs HF_TOKEN" in refused(capsys, "sample", "--model", "me/secret")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not know this token" in refused(capsys, "sample", "--model", "me/secret")


def test_what_publishing_needs(hub: LocalHub, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    assert "nowhere to publish to" in refused(capsys, "publish", "shapes")
    assert "not the name of a repository" in refused(capsys, "publish", "shapes", "--to", "shapes")
    assert "holds no model" in refused(capsys, "publish", "/nope", "--to", "me/x")
    hub.add("me/open", {})
    assert "is public" in refused(capsys, "publish", "shapes", "--to", "me/open", "--private")
    for token, told in (("hf_wrong", "does not know this token"), (READER, "may not write to me/x")):
        monkeypatch.setenv("HF_TOKEN", token)
        assert told in refused(capsys, "publish", "shapes", "--to", "me/x")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    assert "needs a token with write access" in refused(capsys, "publish", "shapes", "--to", "me/x")
    hub.point_to("http://127.0.0.1:9", monkeypatch)
    assert "cannot be reached" in refused(capsys, "publish", "shapes", "--to", "me/x")
    assert hub.repositories.keys() == {"me/open"}


def test_republishing_replaces_what_was_there(hub: LocalHub):
    hub.add("me/shapes", {"autoencoder/config.json": b"{}", "figures/00.json": b"{}", "mine.txt": b"kept"})
    Pipeline.load("shapes").push_to_hub("me/shapes")
    names = set(hub.files("me/shapes"))
    assert names == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "sample.toml", "mine.txt",
    }  # fmt: skip


def test_the_usual_variables(hub: LocalHub, tmp_path: Path):
    """As a user sets them, in a process of its own."""
    hub.add("me/shapes", files_of(SHAPES), private=True)
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": READER}
    command = ["sample", "a red star", "--model", "me/shapes@main", "--images", "1", "--diffusion-steps", "1"]
    command += ["--out", str(tmp_path / "out")]

    def said(offline: str) -> str:
        errors = tmp_path / f"errors-{offline}"
        process = forked.start(forked.command, command, errors, {**environment, "HF_HUB_OFFLINE": offline})
        process.join()
        assert process.exitcode == 0, errors.read_text()
        return errors.read_text()

    assert "fetching me/shapes@main from the hub" in said("0")
    assert "fetching" not in said("1")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("user/model", HubName("user/model")),
        ("user-1/my.model_2@refs/pr/1", HubName("user-1/my.model_2", "refs/pr/1")),
        *((other, None) for other in ("shapes", "/a/b", "./a/b", "a/b/c", "a/", "~/a", "a/b@", "", "../a")),
    ],
)
def test_names(text: str, name: HubName | None):
    assert parse_hub_name(text) == name


@pytest.mark.parametrize("mistyped", ["runs/typo", "models/typo", "here/typo"])
def test_a_mistyped_path_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistyped: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("causalfusion.saved.hub.fetched_once", lambda name: pytest.fail(f"asked for {name}"))
    with pytest.raises(UserError, match="holds no model"):
        latest_model(Path(mistyped))
