"""Going on with texts and images, on random small models: how many elements come, when it ends, and that it
does not matter in how many calls a document is completed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from causalfusion.codec.codec import open_codec
from causalfusion.codec.tokenizer import Tokenizer, train_tokenizer
from causalfusion.config import (
    CodecConfig,
    DiffusionConfig,
    ModelConfig,
    SampleConfig,
    TextConfig,
    WriteConfig,
)
from causalfusion.diffusion.process import make_process
from causalfusion.errors import UserError
from causalfusion.generate.complete import MAX_ELEMENTS, Listener, complete
from causalfusion.generate.pipeline import Pipeline
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import ModelSpec

MARKER_NAMES = ("text", "text_end", "image", "image_end", "end")
SAMPLE = SampleConfig(num_ar_steps=2, diffusion_steps=[3], sampler="ddim")
WRITE = WriteConfig(max_tokens=6, text_temperature=1.0)
PROMPT = "a red circle"
SEEDS = (0, 3, 4)
"""Documents with both kinds of elements."""


def make_tokenizer() -> Tokenizer:
    return train_tokenizer([PROMPT, "a blue square above a red circle"], 300)


def make_pipeline(
    preferences: dict[str, float] | None = None,
    *,
    image_context: Any = "clean",
    letters: Sequence[int] | None = None,
    **changes: Any,
) -> Pipeline:
    """8x8 RGB images of 4x4 tokens. `preferences`: the logits of markers, wherever the model is; the others
    have what it thinks of them. `letters`: only these tokens come in its texts."""
    tokenizer = make_tokenizer()
    config = ModelConfig(hidden_size=32, depth=2, num_heads=2, num_class_tokens=0, token_dim=12,
                         grid_height=4, grid_width=4, vocab_size=tokenizer.vocab_size, max_text_tokens=64,
                         max_images=3, position_embedding="rope")  # fmt: skip
    model = Transformer(replace(config, **changes))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        scale = "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(scale), std=0.2, generator=generator)
    model.eval().requires_grad_(False)
    assert model.text_out is not None
    model.norm_out.weight[0], model.norm_out.bias[0] = 0, 1
    model.text_out.weight[:, 0] = 0
    if letters is not None:
        model.text_out.weight[: tokenizer.base_size, 0] = -100
        model.text_out.weight[list(letters), 0] = 0
    for name, logit in (preferences or {}).items():
        row = model.text_out.weight[getattr(tokenizer.markers, name)]
        row.zero_()
        row[0] = logit
    codec = open_codec(
        CodecConfig(patch_size=2, image_height=8, image_width=8, image_channels=3), image_shape=(3, 8, 8)
    )
    diffusion = DiffusionConfig(prediction_type="sample")  # so that few pixels are out of range
    of_text = TextConfig(image_context=image_context)
    spec = ModelSpec(model=model.config, codec=codec.config, diffusion=diffusion, text=of_text)
    return Pipeline(model, codec, spec, make_process(diffusion), tokenizer=tokenizer)


def picture(seed: int = 0) -> Tensor:
    return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def kinds(elements: Sequence[str | Tensor]) -> str:
    return "".join("t" if isinstance(e, str) else "i" for e in elements)


def same(a: Sequence[str | Tensor], b: Sequence[str | Tensor]) -> bool:
    if kinds(a) != kinds(b):
        return False
    return all(
        x.equal(y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y
        for x, y in zip(a, b, strict=True)
    )


def test_markers_by_name():
    assert tuple(vars(make_tokenizer().markers)) == MARKER_NAMES


# --- how many, and when it ends ---------------------------------------------------------------------------


def test_it_ends_when_the_model_ends_it():
    pipeline = make_pipeline({"end": 50.0})
    assert complete(pipeline, [PROMPT], SAMPLE) == []
    assert complete(pipeline, [picture()], SAMPLE, WRITE) == []


def test_images_as_long_as_there_is_room_then_the_next_likeliest():
    """Image before end: as many as the model can hold. Image before text before end: then texts."""
    pipeline = make_pipeline({"image": 50.0, "end": 25.0, "text": -50.0})
    assert kinds(complete(pipeline, [PROMPT], SAMPLE)) == "iii"
    assert kinds(complete(pipeline, [PROMPT, picture()], SAMPLE)) == "ii"
    assert kinds(complete(pipeline, [picture(), PROMPT, picture(1), picture(2)], SAMPLE)) == ""
    pipeline = make_pipeline({"image": 50.0, "text": 25.0, "end": -50.0, "text_end": -50.0})
    found = complete(pipeline, [PROMPT, picture()], SAMPLE, WRITE)
    assert kinds(found)[:3] == "iit" and set(kinds(found)[2:]) == {"t"}


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("wish", ["end", "text", "image"])
def test_exactly_as_many_elements_as_asked_for(wish, count):
    """Whatever the model wants, an end among it, while there is room."""
    pipeline = make_pipeline({wish: 50.0})
    found = complete(pipeline, [PROMPT], SAMPLE, WRITE, num_elements=count)
    assert len(found) == count
    assert kinds(found).count("i") <= 3
    if wish == "image":
        assert kinds(found)[:3] == "iii"[:count]


def test_never_more_images_than_the_model_can_hold():
    pipeline = make_pipeline({"image": 50.0}, max_images=1)
    assert kinds(complete(pipeline, [PROMPT], SAMPLE, WRITE, num_elements=3)) == "itt"
    assert kinds(complete(pipeline, [picture()], SAMPLE, WRITE, num_elements=2)) == "tt"


def test_it_ends_where_there_is_no_room():
    """Texts of 20 tokens in a model for 64, and a model that never ends: no position is used twice, and a
    text is cut where the model's positions end."""
    pipeline = make_pipeline({"text": 50.0, "text_end": -50.0, "end": -50.0}, letters=[70, 71, 72])
    lengths = []
    hook = pipeline.model.register_forward_pre_hook(
        lambda m, args: lengths.extend(
            int(s.places.max()) for s in args[0].segments if s.kind == "text" and s.num_tokens
        )
    )
    write = WriteConfig(max_tokens=20, text_temperature=1.0)
    tokenizer = pipeline.with_text()
    found = complete(pipeline, [PROMPT], SAMPLE, write, num_elements=100)
    hook.remove()
    assert max(lengths) < 64
    used = len(tokenizer.encode(PROMPT)) + 2 + sum(len(tokenizer.encode(str(e))) + 2 for e in found)
    assert kinds(found) == "ttt" and 64 - 3 < used <= 64


def test_no_empty_text_where_there_is_room_for_its_markers_alone():
    """57 + 2 tokens, then a text of one with its markers: two are left, and no image can come."""
    pipeline = make_pipeline({"text": 50.0, "text_end": -50.0}, letters=[70, 71, 72], max_images=1)
    prompt, write = ["q" * 30, "q" * 23, picture()], WriteConfig(max_tokens=1)
    assert kinds(complete(pipeline, prompt, SAMPLE, write, num_elements=5)) == "t"


def test_a_model_that_never_ends_is_ended():
    pipeline = make_pipeline({"text": 50.0, "end": -50.0, "text_end": -50.0}, max_text_tokens=256)
    found = complete(pipeline, [PROMPT], SAMPLE, WriteConfig(max_tokens=1))
    assert kinds(found) == "t" * MAX_ELEMENTS


# --- the same in one call or in several -------------------------------------------------------------------


@pytest.mark.parametrize("image_context", ["clean", "noised"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_in_two_calls_as_in_one(seed, scale, image_context):
    """Texts that are not how the tokenizer would write them, or no UTF-8, and images beyond the range of
    pixels, are context as what was handed out."""
    pipeline = make_pipeline({"text": 0.0, "image": 0.5, "text_end": -50.0}, image_context=image_context)
    sample, prompt = replace(SAMPLE, guidance_scale=scale), [PROMPT, picture(seed)]
    one = complete(pipeline, prompt, sample, WRITE, num_elements=3, seed=seed)
    for first in (1, 2):
        begun = complete(pipeline, prompt, sample, WRITE, num_elements=first, seed=seed)
        assert same(begun, one[:first])
        rest = complete(pipeline, [*prompt, *begun], sample, WRITE, num_elements=3 - first, seed=seed)
        assert same(rest, one[first:])
    assert max(float(e.abs().max()) for e in [picture(), *one] if isinstance(e, Tensor)) <= 1


def test_the_seeds_of_the_cases_have_texts_and_images():
    """So that the equality above is of both kinds."""
    pipeline = make_pipeline({"text": 0.0, "image": 0.5, "text_end": -50.0})
    found = [
        complete(pipeline, [PROMPT, picture(seed)], SAMPLE, WRITE, num_elements=3, seed=seed)
        for seed in SEEDS
    ]
    assert [kinds(f) for f in found] == ["tti", "itt", "iti"]
    assert any("\N{REPLACEMENT CHARACTER}" in e for f in found for e in f if isinstance(e, str))


def test_another_seed_is_another_document():
    pipeline = make_pipeline({"image": 50.0})
    first, again, other = (complete(pipeline, [PROMPT], SAMPLE, num_elements=1, seed=s) for s in (0, 0, 1))
    assert same(first, again) and not same(first, other)


def test_each_image_of_a_document_has_its_own_noise():
    pipeline = make_pipeline({"image": 50.0})
    starts = []

    def spy(module: Any, args: Any) -> None:
        for s in args[0].segments:
            if s.role == "noised" and int(s.timesteps.max()) == 999:
                starts.append(s.values)

    pipeline.model.register_forward_pre_hook(spy)
    complete(pipeline, [PROMPT], replace(SAMPLE, num_ar_steps=1), num_elements=3)
    assert len(starts) == 3
    assert all((starts[a] - starts[b]).abs().max() > 1 for a, b in ((0, 1), (0, 2), (1, 2)))


def test_the_first_image_after_a_prompt_is_the_sampled_one():
    pipeline = make_pipeline({"image": 50.0})
    config = replace(SAMPLE, guidance_scale=2.0)
    (found,) = complete(pipeline, [PROMPT], config, num_elements=1, seed=3)
    expected = pipeline.generate(None, config, prompts=[PROMPT], seed=3)[0]
    assert isinstance(found, Tensor) and torch.allclose(found, expected, atol=1e-5)


def test_greedy_text_after_an_image_is_its_caption():
    pipeline = make_pipeline({"text": 50.0, "text_end": -50.0})
    write = WriteConfig(max_tokens=8)
    (found,) = complete(pipeline, [picture(4)], SAMPLE, write, num_elements=1)
    assert found == pipeline.caption(picture(4)[None], write)[0] != ""


def test_every_element_counts_for_what_follows():
    pipeline = make_pipeline({"image": 50.0})

    def image_after(prompt: list[str | Tensor]) -> Tensor:
        (found,) = complete(pipeline, prompt, SAMPLE, num_elements=1)
        assert isinstance(found, Tensor)
        return found

    base = image_after([PROMPT, picture(0), "red"])
    for other in (["a blue", picture(0), "red"], [PROMPT, picture(1), "red"], [PROMPT, picture(0), "blue"],
                  [picture(0), PROMPT, "red"]):  # fmt: skip
        assert (image_after(other) - base).abs().max() > 1e-3


def test_what_is_told_is_what_is_made():
    """Texts piece by piece; characters of several bytes whole."""
    pipeline = make_pipeline({"text": 50.0, "text_end": 1.0})
    told: list[str] = []

    class Told(Listener):
        def piece(self, text: str) -> None:
            told.append(text)

    write = WriteConfig(max_tokens=10, text_temperature=1.0)
    found = complete(pipeline, [PROMPT], SAMPLE, write, num_elements=3, listener=Told())
    assert kinds(found) == "ttt" and "".join(told) == "".join(str(e) for e in found) and len(told) > 6


# --- what is refused --------------------------------------------------------------------------------------


def refusal(pipeline: Pipeline, prompt: list[str | Tensor], message: str) -> None:
    calls = []
    handle = pipeline.model.register_forward_hook(lambda *a: calls.append(1))
    with pytest.raises(UserError, match=message) as caught:
        complete(pipeline, prompt, SAMPLE, WRITE)
    handle.remove()
    assert "\n" not in str(caught.value) and not calls


@pytest.mark.parametrize("prompt", [[], [""], [PROMPT, "  \n"]])
def test_an_empty_prompt_is_refused(prompt):
    refusal(make_pipeline(), prompt, "the prompt is empty; expected")


def test_a_prompt_without_room_is_refused():
    """In the message: what there is, and what there may be, so that something can come after it."""
    one_image = make_pipeline(max_images=1)
    refusal(one_image, [picture(0), picture(1)], "the prompt has 2 images; this model has room for 1")
    refusal(make_pipeline(), ["q" * 70], "the prompt has 70 tokens; this model has room for 61")
    message = (
        "the prompt has 64 text tokens, markers included; this model has room for 62 before what follows"
    )
    refusal(make_pipeline(), ["q" * 30, "q" * 30], message)
    message = (
        "the prompt has 63 text tokens, markers included; this model has room for 62 before what follows"
    )
    refusal(make_pipeline(), ["q" * 30, "q" * 29], message)
    # An image needs two tokens, its markers; a text three.
    assert kinds(complete(make_pipeline({"image": 50.0}), ["q" * 30, "q" * 28], SAMPLE)) == "i"
    message = (
        "the prompt has 62 text tokens, markers included; this model has room for 61 before what follows"
    )
    refusal(one_image, ["q" * 30, "q" * 26, picture()], message)
    pipeline = make_pipeline({"text": 50.0}, max_images=1)
    assert kinds(complete(pipeline, ["q" * 30, "q" * 25, picture()], SAMPLE, WRITE)) == "t"


def test_an_image_of_another_size_is_refused():
    refusal(make_pipeline(), [PROMPT, torch.zeros(3, 16, 16)], "the model's are")


def test_a_model_without_text_is_refused():
    pipeline = replace(make_pipeline(), tokenizer=None)
    refusal(pipeline, [PROMPT], "this model was trained without text")
