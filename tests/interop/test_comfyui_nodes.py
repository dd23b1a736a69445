"""The node pack, loaded as ComfyUI loads it, its functions called with the inputs that it declares."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from causalfusion import Pipeline, SampleConfig, UserError
from causalfusion.config import CodecConfig, ModelConfig
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import ModelSpec, save_model

FOLDER = Path(__file__).resolve().parents[2] / "comfyui"
QUICK: dict[str, Any] = {"steps": 3, "ar_steps": 2, "sampler": "dpm++", "guidance": 1.0}


@pytest.fixture(scope="module")
def nodes() -> dict[str, Any]:
    name = "custom_nodes_causalfusion"
    spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS.keys() == module.NODE_DISPLAY_NAME_MAPPINGS.keys()
    return {key.removeprefix("CausalFusion"): node for key, node in module.NODE_CLASS_MAPPINGS.items()}


@pytest.fixture(scope="module")
def model(nodes) -> Any:
    return nodes["Load"]().load("shapes", "cpu")[0]


def test_a_node_takes_what_it_declares(nodes):
    """Every declared input is an argument of the node's function, with a default that is a legal value."""
    for node in nodes.values():
        declared = node.INPUT_TYPES()
        inputs = declared["required"] | declared.get("optional", {})
        function = inspect.signature(getattr(node, node.FUNCTION)).parameters
        drawing = {"ar_steps", "steps", "guidance", "order", "sampler"} if "drawing" in function else set()
        assert set(inputs) == (set(function) - {"self", "drawing"}) | drawing
        for kind, *options in inputs.values():
            default = options[0].get("default") if options else None
            assert not isinstance(kind, list) or default in kind
            assert kind not in ("INT", "FLOAT") or options[0]["min"] <= default <= options[0]["max"]
        assert isinstance(node.RETURN_TYPES, tuple) and node.CATEGORY == "CausalFusion"


def test_images_are_those_of_the_pipeline(nodes, model):
    (images,) = nodes["Sample"]().sample(model, batch_size=2, prompt="a red circle", seed=4, **QUICK)
    config = SampleConfig(num_ar_steps=2, diffusion_steps=[3], sampler="dpm++")
    ours = Pipeline.load("shapes").generate(prompts=["a red circle"] * 2, config=config, seed=4)
    assert images.shape == (2, 32, 32, 3) and images.dtype == torch.float32
    assert torch.equal(images, (ours / 2 + 0.5).permute(0, 2, 3, 1))
    assert 0 <= images.min() < images.max() <= 1
    recommended = nodes["Sample"]().sample(model, prompt="x", steps=2)[0]
    assert model.default_sampling.guidance_scale == 3.0 and recommended.shape == (1, 32, 32, 3)


def test_an_edit_changes_what_the_mask_covers_and_nothing_else(nodes, model):
    image = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:20, 16:] = 1
    (edited,) = nodes["Edit"]().edit(model, image, mask, variants=2, prompt="a red circle", **QUICK)
    assert edited.shape == (4, 32, 32, 3)
    inside = mask[0].bool()
    for row, source in enumerate((0, 0, 1, 1)):
        assert torch.equal(edited[row][~inside], image[source][~inside])
        assert (edited[row][inside] != image[source][inside]).float().mean() > 0.9
    assert not torch.equal(edited[0], edited[1])
    both = torch.cat([mask, 1 - mask])
    (each,) = nodes["Edit"]().edit(model, image, both, prompt="a red circle", **QUICK)
    assert torch.equal(each[0][~inside], image[0][~inside]) and torch.equal(each[1][inside], image[1][inside])


def test_an_edit_of_less_strength_stays_nearer_to_the_picture(nodes, model):
    image, mask = torch.full((1, 32, 32, 3), 0.96), torch.ones(1, 32, 32)
    image[:, 8:24, 8:24] = torch.tensor([0.86, 0.15, 0.16])

    def far(**strength: float) -> float:
        (edited,) = nodes["Edit"]().edit(model, image, mask, prompt="a big blue square", **QUICK, **strength)
        return float((edited - image).abs().mean())

    assert 0 < far(strength=0.4) < far() == far(strength=1.0)


def test_adapters_in_a_row_are_those_of_one_load(nodes, model, make_adapter, tmp_path):
    first = make_adapter(tmp_path / "first", Path("shapes"), seed=1)
    second = make_adapter(tmp_path / "second", Path("shapes"), seed=2)
    word = make_adapter(tmp_path / "word", Path("shapes"), word="<yak>")
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    found = model
    for place, strength in ((first, 0.5), (second, -2.0), (word, 1.0)):
        (found,) = nodes["LoadAdapter"]().add(found, f" {place} ", strength)
    loaded = Pipeline.load("shapes", adapters={first: 0.5, second: -2.0, word: 1.0})
    assert found.adapters == loaded.adapters and len(found.adapters) == 3
    weights = loaded.model.state_dict()
    assert all(value.equal(weights[name]) for name, value in found.model.state_dict().items())
    assert not before["blocks.0.attn.qkv.weight"].equal(weights["blocks.0.attn.qkv.weight"])
    assert all(value.equal(before[name]) for name, value in model.model.state_dict().items())
    drawn = [nodes["Sample"]().sample(each, prompt="a <yak>", seed=1, **QUICK)[0] for each in (found, model)]
    assert drawn[0].shape == (1, 32, 32, 3) and not drawn[0].equal(drawn[1])


def test_an_adapter_that_is_no_adapter_of_the_model(nodes, model, make_adapter, tmp_path):
    word = make_adapter(tmp_path / "word", Path("shapes"), word="<yak>")
    other = make_adapter(tmp_path / "other", Path("shapes"), fingerprint="0" * 32, base="user/other")
    (once,) = nodes["LoadAdapter"]().add(model, str(word))
    with pytest.raises(UserError, match="the tokenizer has the word '<yak>'"):
        nodes["LoadAdapter"]().add(once, str(word))
    with pytest.raises(UserError, match="the pipeline's weights are int8, to which no adapter is added"):
        nodes["LoadAdapter"]().add(replace(model, quantize="int8"), str(word))
    for each in (model, once):
        with pytest.raises(UserError, match="is an adapter of another model, user/other"):
            nodes["LoadAdapter"]().add(each, str(other))


@pytest.mark.parametrize(
    ("node", "inputs", "answer"),
    [
        ("Load", {"model": "nowhere"}, "nowhere"),
        ("LoadAdapter", {"adapter": " "}, "no adapter is named; give a folder, a run"),
        ("LoadAdapter", {"adapter": "/nowhere"}, "there is no /nowhere"),
        ("LoadAdapter", {"adapter": str(FOLDER)}, "comfyui holds no adapter"),
        ("Sample", {"class_name": "one object"}, "no class condition; leave the class 'one object' out, and"),
        ("Sample", {"prompt": "x", "guidance": float("nan")}, "guidance_scale is nan; expected a finite"),
        ("Sample", {"prompt": "x", "batch_size": 0}, "no image is asked for"),
        ("Sample", {"prompt": "x", "order": "spiral"}, "order is 'spiral'; expected one of random, raster"),
        ("Sample", {"width": 33}, "the image width is 33; expected a multiple of"),
        ("Edit", {"image": (1, 64, 32, 3), "mask": (64, 32)}, "has 32x64 pixels, the model's have 32x32"),
        ("Edit", {"image": (1, 32, 32, 3), "mask": (16, 16)}, r"the mask is \(16, 16\), the image"),
        ("Sample", {}, "what is to be drawn is not said; give a prompt"),
        ("Edit", {"image": (1, 32, 32, 3), "mask": (32, 32), "prompt": "x"}, "the mask is empty"),
        ("Edit", {"image": (32, 32, 3), "mask": (32, 32)}, r"expected \(B, H, W, 3\)"),
    ],
)
def test_bad_input_is_one_line(node, inputs, answer, nodes, model):
    given = {name: torch.zeros(v) if isinstance(v, tuple) else v for name, v in inputs.items()}
    if node != "Load":
        given = {"model": model, **given}
    function = getattr(nodes[node](), nodes[node].FUNCTION)
    with pytest.raises(UserError, match=answer) as raised:
        function(**given)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def plain(nodes, tmp_path_factory) -> Any:
    """A model without classes and text, of DDPM's path."""
    config = ModelConfig(hidden_size=16, depth=1, num_heads=2, token_dim=12, grid_height=2, grid_width=2)
    codec = CodecConfig(patch_size=2, image_height=4, image_width=4, image_channels=3, latent_channels=3)
    spec = ModelSpec(model=config, codec=replace(codec, downsample=1))
    folder, generator = tmp_path_factory.mktemp("plain"), torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in Transformer(config).state_dict().items()}
    weights = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
    save_model(folder, spec, weights)
    return nodes["Load"]().load(str(folder), "cpu")[0]


def test_a_model_without_classes_and_text_draws_what_it_has_seen(nodes, plain):
    """Nothing can be said of its images, and nothing is asked for."""
    (images,) = nodes["Sample"]().sample(plain, batch_size=2, seed=4, steps=2)
    labels = [plain.model.config.null_label] * 2
    ours = plain.generate(labels, SampleConfig(diffusion_steps=[2]), seed=4)
    assert torch.equal(images, (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1))
    with pytest.raises(UserError, match=r"this model has no class condition; leave the class '0' out$"):
        nodes["Sample"]().sample(plain, class_name="0", steps=2)
    with pytest.raises(UserError, match=r"trained without text; leave the prompt empty$"):
        nodes["Sample"]().sample(plain, prompt="a star", steps=2)


@pytest.mark.parametrize("recommended", [{"respacing": "ddim20"}, {"given_order": [3, 2, 1, 0]}])
def test_a_list_that_a_model_recommends_does_not_go_before_what_a_node_says(nodes, plain, recommended):
    own = replace(plain, sampling=SampleConfig(sampler="ddim", **recommended))
    other = replace(plain, sampling=SampleConfig(sampler="ddim"))
    asked: dict[str, Any] = {"steps": 2, "ar_steps": 2, "order": "raster"}
    images = [nodes["Sample"]().sample(each, **asked)[0] for each in (own, other)]
    assert torch.equal(*images)


@pytest.mark.parametrize(
    ("recommended", "sampler"),
    [({"sampler": "ddim", "eta": 0.5, "temperature": 0.9}, "dpm++"), ({"temperature": 0.9}, "ddim")],
)
def test_another_sampler_is_without_the_noise_of_the_one_that_a_model_recommends(
    nodes, plain, recommended, sampler
):
    """A node has no inputs to take that noise back."""
    advised = replace(plain, sampling=SampleConfig(**recommended))
    found = nodes["Sample"]().sample(advised, steps=2, sampler=sampler)[0]
    assert torch.equal(found, nodes["Sample"]().sample(plain, steps=2, sampler=sampler)[0])


def test_comfyui_sees_progress_and_can_stop(nodes, model, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, int]] = []

    class ProgressBar:
        def __init__(self, total: int) -> None:
            seen.append((0, total))

        def update_absolute(self, value: int, total: int) -> None:
            seen.append((value, total))

    def stop() -> None:
        if len(seen) > 4:
            raise InterruptedError

    for name, content in {
        "comfy": {},
        "comfy.utils": {"ProgressBar": ProgressBar},
        "comfy.model_management": {"throw_exception_if_processing_interrupted": stop},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(InterruptedError):
        nodes["Sample"]().sample(model, prompt="a red circle", **QUICK)
    assert seen == [(0, 6), (1, 6), (2, 6), (3, 6), (4, 6)]
