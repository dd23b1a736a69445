"""The pipeline from Python: pictures and files in, pictures out, classes by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion.config import FactorizationConfig, FinetuneConfig, SampleConfig, WriteConfig
from causalfusion.errors import UserError
from causalfusion.generate.pipeline import Pipeline

FAST = SampleConfig(diffusion_steps=[2])


@pytest.fixture(scope="module")
def pipeline(models) -> Pipeline:
    return Pipeline.load(models["both"])


def test_pictures_come_out_as_they_are_saved_and_go_in_again(pipeline, tmp_path):
    images = pipeline.generate(["dog", 2], FAST)
    pictures = pipeline.to_pil(images)
    assert [picture.size for picture in pictures] == [(8, 8), (8, 8)]
    pictures[0].save(tmp_path / "dog.png")
    assert (np.asarray(pictures[0]) == pipeline.codec.to_uint8(images)[0]).all()
    for given in (pictures[0], tmp_path / "dog.png", str(tmp_path / "dog.png"), [pictures[0]]):
        assert (
            pipeline.codec.to_uint8(pipeline.to_tensor(given))[0].tolist() == np.asarray(pictures[0]).tolist()
        )
    assert pipeline.to_tensor(Image.new("RGB", (40, 20), "red")).shape == (1, 3, 8, 8)


def test_edit_and_caption_take_pictures_regions_and_masks(pipeline, tmp_path):
    photo = Image.new("RGB", (16, 16), "red")
    photo.save(tmp_path / "photo.png")
    Image.fromarray(np.eye(16, dtype=np.uint8)[:, ::-1] * 0 + np.tri(16, k=-8, dtype=np.uint8)).save(
        tmp_path / "mask.png"
    )
    before = pipeline.to_tensor(photo)
    edited = pipeline.edit(photo, "right", ["cat"], FAST)
    assert edited[..., :4].equal(before[..., :4]) and not edited[..., 4:].allclose(before[..., 4:], atol=0.1)
    masked = pipeline.edit(tmp_path / "photo.png", tmp_path / "mask.png", ["cat"], FAST)
    assert masked[..., :4, :].equal(before[..., :4, :]) and not masked.allclose(before, atol=0.1)
    with Image.open(tmp_path / "mask.png") as mask:
        assert pipeline.edit(photo, mask, ["cat"], FAST).equal(masked)
        assert pipeline.edit([photo], mask.convert("RGB").point(lambda v: 255 * v), ["cat"], FAST).equal(
            masked
        )
    write = WriteConfig(max_tokens=3)
    assert pipeline.caption(photo, write) == pipeline.caption(before, write)
    assert pipeline.edit(photo, "top", prompts=["a"], config=FAST).shape == (1, 3, 8, 8)
    right = np.zeros((8, 8), bool)
    right[:, 4:] = True
    assert pipeline.edit(photo, right, ["cat"], FAST).equal(edited)


def test_the_same_class_by_name_and_number(pipeline):
    assert torch.equal(pipeline.generate(["dog"], FAST), pipeline.generate([1], FAST))
    with pytest.raises(UserError, match="class 'fish' is unknown; expected one of cat, dog, owl"):
        pipeline.generate(["fish"], FAST)
    with pytest.raises(UserError, match="mode F; expected 8 bits"):
        pipeline.caption(Image.new("F", (8, 8)))


def test_a_description_among_labels_is_sent_to_the_prompts(models):
    pipeline = Pipeline.load(models["text"])
    with pytest.raises(UserError, match=r"labels is 'a cat'; expected a list, .*, prompts=\['a cat'\]$"):
        pipeline.generate("a cat", FAST)
    with pytest.raises(UserError, match=r"no class condition; give prompts=\['a cat'\]"):
        pipeline.generate(["a cat"], FAST)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda p: p.generate([], FAST), "no image is asked for; expected at least one label"),
        (lambda p: p.generate([0, 1], FAST, image_indices=[5]), "2 images and 1 image_indices"),
        (lambda p: p.generate([1.5], FAST), "class 1.5 is no class; expected a number or a name"),
        (lambda p: p.generate([None], FAST), "class None is no class"),
        (lambda p: p.generate("cat", FAST), r"labels is 'cat'; expected a list, such as \['cat'\]"),
        (lambda p: p.generate(prompts="a b", config=FAST), r"prompts is 'a b'; expected a list, such as"),
        (lambda _: SampleConfig(diffusion_steps=2), "diffusion_steps is 2; expected a list"),  # pyright: ignore
        (
            lambda p: p.edit(Image.new("RGB", (8, 8)), Image.new("F", (8, 8)), [0], FAST),
            "the mask has mode F; expected L, 1, RGB or RGBA",
        ),
        (lambda p: p.edit(Image.new("RGB", (8, 8)), 1, [0], FAST), "the mask is 'int'; expected a tensor"),
        (
            lambda p: p.edit(Image.new("RGB", (8, 8)), Image.new("L", (8, 8)), [0], FAST),
            "the mask is empty in a picture",
        ),
        (lambda p: p.edit([], "right", []), "there are no images; expected at least one"),
        (lambda p: p.edit(Image.new("RGB", (8, 8)), "right", [0], FAST, variants=0), "variants is 0"),
        (lambda p: p.edit(torch.zeros(0, 3, 8, 8), "right", []), "there are no images; expected"),
        (lambda p: p.caption(torch.zeros(0, 3, 8, 8)), "there are no images; expected"),
        (lambda p: p.caption([]), "there are no images; expected at least one"),
        (
            lambda p: p.caption(torch.zeros(3, 8, 8)),
            r"the shape of images is \(3, 8, 8\); expected \(B, C, H",
        ),
        (lambda p: p.caption(np.zeros((8, 8, 3))), "an image is 'ndarray'; expected a picture of Pillow"),
        (lambda p: p.features(Image.new("RGB", (8, 8)), layer=-1.5), "layer is -1.5; expected 0"),
        (lambda p: p.with_adapters(["a"]), "adapters is \\['a'\\]; expected weights by place"),
        (lambda p: p.with_adapters({"a": "1"}), "weight of adapter a is '1'; expected a finite number"),
        (lambda p: p.with_adapters({"a": float("nan")}), "weight of adapter a is nan; expected a finite"),
    ],
)
def test_what_python_can_give_wrong_is_one_line(call, answer, pipeline):
    with pytest.raises(UserError, match=answer):
        call(pipeline)


def test_weights_are_of_known_kinds(models):
    with pytest.raises(UserError, match="quantize is 'int4'; expected one of none, int8"):
        Pipeline.load(models["both"], quantize="int4")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="adapters is 'a'; expected weights by place"):
        Pipeline.load(models["both"], adapters="a")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("config", "name", "choices"),
    [
        (SampleConfig, "order", "random, raster, block_raster, dilated"),
        (FactorizationConfig, "split", "per_batch, per_image"),
        (FinetuneConfig, "adapter", "none, lora, text-inversion"),
    ],
)
def test_a_choice_that_there_is_not_is_named(config, name, choices):
    with pytest.raises(UserError, match=rf"\.{name} is 'spiral'; expected one of {choices}"):
        config(**{name: "spiral"})
