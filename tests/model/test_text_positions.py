"""Text as language models have it: rotary frequencies against `transformers`, a sliding window against a mask
written out, heads of their own size, and text that does not notice how an image was split."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from causalfusion.codec.tokenizer import Markers
from causalfusion.config import (
    BiasConfig,
    LanguageConfig,
    ModelConfig,
    NormConfig,
    QKNormConfig,
    ScalingConfig,
)
from causalfusion.documents import Image, Text, lay_out, pack_documents
from causalfusion.errors import UserError
from causalfusion.factorization import Plan, ar_step_of, even_split
from causalfusion.interop.language.families import Settings, read_rope
from causalfusion.model.attention import select_attend
from causalfusion.model.kv_cache import KVCache
from causalfusion.model.text_rotation import text_frequencies, text_rotation
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import PackedSequence, text_segment

MARKERS = Markers(40, 41, 42, 43, 44)
HEAD = 20
ROPES = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 4.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "yarn, as DeepSeek": {
        "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 1.1,
        "beta_fast": 24, "beta_slow": 2, "truncate": False,
    },
    "yarn, its factor left out": {"original_max_position_embeddings": 64, "factor": None},
    "longrope": {
        "short_factor": [1 + i / 10 for i in range(HEAD // 2)],
        "long_factor": [2.0 + i for i in range(HEAD // 2)],
        "original_max_position_embeddings": 64,
    },
    "longrope, with a factor": {
        "short_factor": [1.0] * (HEAD // 2), "long_factor": [2.0] * (HEAD // 2), "factor": 16.0,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("length", [5, 64, 65, 300, 1000])
def test_the_frequencies_are_those_of_transformers(name: str, length: int):
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    values = {"rope_type": name.split(",")[0], "rope_theta": 50_000.0, **ROPES[name]}
    if length > 256 and values["rope_type"] in ("yarn", "longrope", "default", "linear"):
        pytest.skip("longer than the model")
    config = SimpleNamespace(
        max_position_embeddings=256, hidden_size=64, num_attention_heads=4, head_dim=HEAD,
        rope_parameters=values, standardize_rope_params=lambda: None,
    )  # fmt: skip
    if values["rope_type"] == "default":
        expected, factor = 1 / 50_000.0 ** (torch.arange(0, HEAD, 2).float() / HEAD), 1.0
    else:
        expected, factor = utils.ROPE_INIT_FUNCTIONS[values["rope_type"]](config, "cpu", seq_len=length)
    base, scaling = read_rope(Settings({"rope_parameters": values, "max_position_embeddings": 256}, "here"))
    language = LanguageConfig(positions="rope", rope_base=base, scaling=scaling)
    found = text_frequencies(language, HEAD, torch.tensor([length]))[0]
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)
    assert scaling.attention == pytest.approx(factor, rel=1e-12)


def test_a_rotation_turns_by_place_times_frequency():
    language = LanguageConfig(positions="rope", rope_base=100.0, scaling=replace_attention(1.5))
    cos, sin = text_rotation(torch.tensor([[3, 7]]), torch.tensor([8]), language, 4)[:, 0].double()
    for row, place in enumerate((3, 7)):
        angles = [place * 1.0, place * 0.1] * 2
        assert cos[row].tolist() == pytest.approx([1.5 * math.cos(a) for a in angles], abs=1e-6)
        assert sin[row].tolist() == pytest.approx([1.5 * math.sin(a) for a in angles], abs=1e-6)


def replace_attention(factor: float) -> ScalingConfig:
    """Frequencies that stay, and a factor on cosines and sines."""
    return ScalingConfig(kind="linear", factor=1.0, attention=factor)


def language_model(**changes: object) -> Transformer:
    """Of 40 tokens and two blocks; random weights, also of the norms."""
    norm = NormConfig(kind="rms_norm")
    config = ModelConfig(
        hidden_size=24, depth=2, num_heads=4, num_kv_heads=2, head_size=10, mlp="swiglu", mlp_hidden=20,
        norm=norm, out_norm=norm, qk_norm=QKNormConfig(kind="none"),
        bias=BiasConfig(attention=False, mlp=False), num_class_tokens=0, vocab_size=40, max_text_tokens=64,
        language=LanguageConfig(positions="rope"),
    )  # fmt: skip
    model = Transformer(replace(config, **changes))  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.5, generator=generator)
    return model.requires_grad_(False)


def text_of(ids: Tensor, first: int = 0) -> PackedSequence:
    index = torch.arange(first, first + ids.shape[1])[None]
    return PackedSequence((text_segment(ids, index + 1, index),))


def ids_of(rows: int, length: int) -> Tensor:
    return torch.randint(40, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"language": LanguageConfig(positions="rope", window=4)},
        {"language": LanguageConfig(positions="rope", window=4, window_from=1)},
        {"language": LanguageConfig(tied=True), "hidden_size": 22, "num_kv_heads": 0},
        {"num_kv_heads": 1, "head_size": 0},
    ],
    ids=["rope", "window", "window in one block", "learned and tied", "one key head"],
)
def test_cached_equals_uncached_at_every_token(changes: dict[str, object]):
    model, ids = language_model(**changes), ids_of(2, 12)
    expected = model(text_of(ids)).text
    cache = KVCache.allocate(model.config, 2, 12, device=torch.device("cpu"), dtype=torch.float32)
    found = []
    for first, last in ((0, 5), *((i, i + 1) for i in range(5, 12))):
        part = text_of(ids[:, first:last], first)
        found.append(model(part, cache.attend(part)).text)
        cache.commit(part)
    largest = expected.abs().max()
    torch.testing.assert_close(torch.cat(found, dim=1) / largest, expected / largest, rtol=0, atol=1e-5)
    assert expected.dtype == torch.float32


def test_a_window_hides_all_but_the_last_tokens():
    """One block with a window of 4: the token at place 9 sees places 6 to 9; a second block without one sees
    everything."""
    model = language_model(depth=1, language=LanguageConfig(positions="rope", window=4))
    ids = ids_of(1, 10)
    for place in range(10):
        changed = ids.clone()
        changed[0, place] = (changed[0, place] + 1) % 40
        same = model(text_of(ids)).text[0, 9].equal(model(text_of(changed)).text[0, 9])
        assert same == (place < 6), place
    below = language_model(language=LanguageConfig(positions="rope", window=4, window_from=1))
    changed = ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 40
    assert not below(text_of(ids)).text[0, 9].equal(below(text_of(changed)).text[0, 9])


def test_other_ways_to_attend_refuse_a_window():
    language = LanguageConfig(positions="rope", window=4)
    for backend in ("segments", "flex"):
        with pytest.raises(UserError, match=f"{backend} knows no sliding window; use auto or dense"):
            select_attend(text_of(ids_of(1, 3)), backend, language=language)


def test_an_image_holds_one_place_of_the_text_however_it_is_split():
    """[text][image][text][image][text]: text places go on by one over an image, and all tokens of an image
    have that place, whatever the number of its AR steps."""
    document = [Text((1, 2)), Image(0), Text((3,)), Image(1), Text((4, 5, 6))]
    found = []
    for steps in (1, 3, 16):
        plans = Plan(torch.arange(16)[None], ar_step_of(even_split(16, steps))[None], 4)
        layout = lay_out([document], MARKERS, [steps, steps], ended=True)
        tokens = torch.zeros(2, 16, 12)
        packed = pack_documents(
            layout, torch.zeros(1, dtype=torch.int64), 0, tokens, tokens, plans, torch.ones(2, 1)
        )
        _, clean, text, noised = packed.segments
        assert clean.text_places is not None and noised.text_places is not None
        assert text.text_places is not None
        images = clean.text_places.unflatten(1, (2, 16))
        assert images.equal(images[:, :, :1].expand_as(images)) and noised.text_places.equal(
            clean.text_places
        )
        found.append((text.text_places[0].tolist(), images[0, :, 0].tolist()))
    #        <t> 1  2 </t><i>  image  </i><t> 3 </t><i>  image  </i> <t>  4   5   6 </t> <end>
    text = [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17, 18]
    assert found == [(text, [5, 11])] * 3


def test_odd_widths_are_for_text_alone():
    assert language_model(hidden_size=26).config.text_only
    with pytest.raises(UserError, match="multiple of 4, for a model of images"):
        language_model(hidden_size=26, token_dim=4, grid_height=2, grid_width=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_size": 11}, "an even head size for rope, not 11"),
        ({"position_embedding": "rope"}, "model.position_embedding is 'rope'"),
        (
            {"language": LanguageConfig(
                positions="rope",
                scaling=ScalingConfig(kind="longrope", trained_length=8, short=(1.0,), long=(1.0,)),
            )},
            "1 numbers.*expected 5, half of the head size",
        ),
    ],
)  # fmt: skip
def test_choices_that_do_not_fit_are_refused(changes: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        language_model(**changes)
