"""Programs of torch.export: at lengths that were not those of the export, and sampled from as a pipeline.

Of the pipelines here, the MLP is torch's own where images are compared to rounding: a program has that one,
and our kernel for CPUs (`model/cpu_feed_forward.py`) rounds otherwise.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo

from causalfusion import Pipeline, SampleConfig, UserError
from causalfusion.cli import run
from causalfusion.codec.codec import open_codec
from causalfusion.codec.tokenizer import train_tokenizer
from causalfusion.config import (
    BiasConfig,
    CodecConfig,
    DiffusionConfig,
    EncoderConfig,
    HeadConfig,
    LanguageConfig,
    LoraConfig,
    ModelConfig,
    NormConfig,
    QKNormConfig,
    RopeConfig,
    ScalingConfig,
    TextConfig,
)
from causalfusion.diffusion.process import make_process
from causalfusion.interop.exported.arguments import ranges_of, some_inputs
from causalfusion.interop.exported.load import ExportedPipeline, load_exported
from causalfusion.interop.exported.programs import Append, Condition, Step, Uncached
from causalfusion.interop.exported.write import Extra, refuse, write_programs
from causalfusion.model import cpu_feed_forward
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import ModelSpec, packaged_models

FOUR = SampleConfig(num_ar_steps=4, diffusion_steps=[2], guidance_scale=2.0)
EMPTY_ZIP = b"PK\x05\x06" + bytes(18)
PROMPTS = ["a small red circle", "a blue star", "a large green square to the left of a small red star"]


def some_model(**changes: Any) -> Transformer:
    """A small model with random weights, those that begin as zero too."""
    sizes = ModelConfig(
        hidden_size=16, depth=2, num_heads=2, num_class_tokens=2, num_classes=3, token_dim=4, grid_height=4,
        grid_width=4,
    )  # fmt: skip
    model = Transformer(replace(sizes, **changes))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.requires_grad_(False)


def some_pipeline(text: TextConfig | None = None, **changes: Any) -> Pipeline:
    """Of gray images of 8x8 pixels; with prompts where `text` says how it was trained."""
    tokenizer = None if text is None else train_tokenizer(PROMPTS * 2, 290)
    if tokenizer is not None:
        changes |= {"vocab_size": tokenizer.vocab_size, "max_text_tokens": 40}
    model = some_model(**changes)
    codec = CodecConfig(patch_size=2, image_height=8, image_width=8, image_channels=1)
    diffusion = DiffusionConfig(prediction_type="sample")  # so that few pixels are out of range
    spec = ModelSpec(
        model=model.config, codec=codec, diffusion=diffusion, text=text or TextConfig(), class_dropout=0.1
    )
    opened, process = open_codec(codec, image_shape=(1, 8, 8)), make_process(diffusion)
    return Pipeline(model, opened, spec, process, tokenizer=tokenizer)


@pytest.fixture(scope="module", autouse=True)
def quick_tracing() -> Iterator[None]:
    """Without torch's cache of shapes, which takes a third of the time for models of two layers."""
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        yield


@pytest.fixture
def torchs_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_feed_forward, "runs_here", lambda _: False)


@pytest.fixture(scope="module")
def ours() -> Pipeline:
    return some_pipeline(qk_norm=QKNormConfig(kind="none"))


@pytest.fixture(scope="module")
def folder(ours: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exported")
    model, out = ours.save_pretrained(root / "model"), root / "programs"
    assert run(["convert", "export", str(model), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def exported(folder: Path) -> ExportedPipeline:
    return load_exported(folder)


@pytest.mark.usefixtures("torchs_mlp")
def test_images_are_those_of_the_pipeline(exported, ours):
    labels = [2, 0, 1]
    for config, classes in ((FOUR, labels), (replace(FOUR, num_ar_steps=0, guidance_scale=1.0), labels[:1])):
        images = exported.generate(classes, config, seed=1)
        torch.testing.assert_close(images, ours.generate(classes, config, seed=1), rtol=0, atol=1e-5)
        assert images.std() > 0.01
    mask = torch.zeros(8, 8).bool()
    mask[:4] = True
    given = (images, mask, [1], replace(FOUR, num_ar_steps=2))
    torch.testing.assert_close(exported.edit(*given), ours.edit(*given), rtol=0, atol=1e-5)


def test_the_description_tells_what_the_programs_take(exported, folder):
    told = json.loads((folder / "export.json").read_text())
    programs = {one["name"]: one for one in told["programs"]}
    assert programs.keys() == {"condition", "append", "step"} == {path.stem for path in folder.glob("*.pt2")}
    assert told["torch"] == torch.__version__ and not (folder / "model.safetensors").exists()
    for one in programs.values():
        assert one["largest_difference_from_eager"] <= 1e-5
        lengths = {letter: min(most, 3) for letter, (_, most) in one["lengths"].items()}
        inputs = {}
        for given in one["inputs"]:
            shape = [lengths.get(size, size) for size in given["shape"]]
            inputs[given["name"]] = torch.ones(shape, dtype=getattr(torch, given["dtype"]))
        found = exported.model.programs[one["name"]][0](**inputs)
        found = found if isinstance(found, tuple) else (found,)
        shapes = [[lengths.get(size, size) for size in output["shape"]] for output in one["outputs"]]
        if one["name"] == "condition":  # its T is the number of class tokens, which the model has
            shapes = [list(values.shape) for values in found]
        assert [list(values.shape) for values in found] == shapes


RMS = NormConfig(kind="rms_norm", weight="none")
HEAD = HeadConfig(kind="per_token", depth=1)
ROTARY = LanguageConfig(positions="rope")
CLEAN, NOISED = TextConfig(), TextConfig(image_context="noised")
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "learned": (
        "condition append step uncached block",
        {
            "position_embedding": "learnable", "mlp": "swiglu", "num_kv_heads": 1, "norm": RMS,
            "qk_norm": QKNormConfig(kind="rms_norm", over="width"), "input_norm": True, "out_norm": RMS,
            "bias": BiasConfig(attention=False, mlp=False, input=False, output=False, condition=False),
            "num_class_tokens": 4, "class_token_repeats": 2, "dropout": 0.5,
        },
    ),
    "no-condition": (
        "append step uncached block",
        {"num_class_tokens": 0, "qk_norm": QKNormConfig(weight="none")},
    ),
    "adaln": (
        "append step uncached block",
        {
            "conditioning": "adaln_zero", "position_embedding": "rope", "mlp": "gelu", "head_size": 12,
            "rope": RopeConfig(pairs="interleaved", spacing="closed"), "bias": BiasConfig(qkv=True),
        },
    ),
    "adaln-rank": (
        "append step uncached block",
        {
            "conditioning": "adaln_zero", "adaln_rank": 4, "adaln_size": 8,
            "norm": NormConfig(weight="learned"),
        },
    ),
    "raster": (
        "condition append step uncached block",
        {"position_embedding": "rope", "rope": RopeConfig(axes="raster"), "num_class_tokens": 1, "depth": 1},
    ),
    "text": (
        "condition append step uncached block",
        {"text": CLEAN, "num_class_tokens": 0, "position_embedding": "rope", "max_images": 2},
    ),
    "transfusion": ("condition append step uncached block", {"text": NOISED, "max_images": 2}),
    "rotary-text": (
        "condition append step uncached block",
        {"text": NOISED, "num_class_tokens": 0, "language": ROTARY, "position_embedding": "learnable"},
    ),
    "language-model": (
        "condition append step uncached block",
        {
            "text": CLEAN, "num_class_tokens": 0, "mlp": "swiglu", "norm": RMS, "num_kv_heads": 1,
            "lora": LoraConfig(rank=2), "max_images": 2,
            "language": LanguageConfig(
                positions="rope", markers="own", tied=True, longest=60,
                scaling=ScalingConfig(kind="yarn", factor=2.0, trained_length=8),
            ),
        },
    ),
    "asking": ("condition append ask step block", {"head": HEAD}),
    "asking-text": (
        "condition append ask step block",
        {"text": CLEAN, "num_class_tokens": 0, "language": ROTARY, "head": replace(HEAD, mlp="swiglu")},
    ),
    "asking-adaln": ("append ask step block", {"head": HEAD, "conditioning": "adaln_zero"}),
    "asking-by-the-token-before": (
        "condition append step block",
        {
            "head": replace(HEAD, ask="previous", bias=False, norm=RMS), "position_embedding": "rope",
            "rope": RopeConfig(axes="raster"),
        },
    ),
    "bidirectional": (
        "begin ask step block",
        {
            "head": replace(HEAD, positions=True), "context": "bidirectional", "input_norm": True,
            "encoder": EncoderConfig(depth=1, hidden_size=24),
        },
    ),
    "bidirectional-rope": (
        "begin ask step block",
        {"head": HEAD, "context": "bidirectional", "position_embedding": "rope", "num_class_tokens": 0},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("torchs_mlp")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model(kind, tmp_path):
    """`write_programs` compares each program with the eager pass at other lengths; then images are drawn."""
    names, changes = KINDS[kind]
    ours, config = some_pipeline(**changes), FOUR
    extras: list[Extra] = ["block"] if ours.model.config.per_token else ["uncached", "block"]
    written = write_programs(ours, tmp_path / "programs", extras)
    assert [program.name for program in written] == names.split()
    assert max(program.difference for program in written) <= 1e-5
    exported = load_exported(tmp_path / "programs")
    if ours.model.config.head.ask == "previous":
        config = replace(config, num_ar_steps=0, order="raster")
    given: dict[str, Any] = {"prompts": PROMPTS} if changes.get("text") else {"labels": [2, 0, 1]}
    images = exported.generate(**given, config=config, seed=1)
    expected = ours.generate(**given, config=config, seed=1)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    assert images.std() > 0.01
    if ours.model.config.head.ask != "previous":
        mask = torch.zeros(8, 8).bool()
        mask[:, 2:6] = True
        edited = (model.edit(images, mask, **given, config=config) for model in (exported, ours))
        torch.testing.assert_close(*edited, rtol=0, atol=1e-5)


def test_the_uncached_form_is_the_cached_one():
    model = some_model()
    config, lengths = model.config, {"B": 2, "V": 4, "n": 3}
    uncached = Uncached(model)
    given = some_inputs(uncached.inputs, config, lengths)
    given["finished_steps"] = torch.ones(2, 4, dtype=torch.int64)
    assert set(given) == {one.name for one in uncached.inputs} and set(lengths) <= set(ranges_of(config))
    keys, values = Condition(model)(given["labels"])
    new = Append(model)(given["finished"], given["finished_positions"], keys, values, torch.ones(2, 2).bool())
    keys, values = (torch.cat([a, b], dim=3) for a, b in zip((keys, values), new, strict=True))
    seen = torch.ones(2, 6).bool()
    cached = Step(model)(given["tokens"], given["positions"], given["timesteps"], keys, values, seen)
    torch.testing.assert_close(uncached(**given), cached, rtol=0, atol=1e-5)


def test_what_cannot_be_exported_is_refused_by_name(exported, ours, tmp_path, capsys):
    window = LanguageConfig(positions="rope", window=4)
    with pytest.raises(UserError, match=r"cannot be exported: .* \(language.window\)"):
        refuse(ModelConfig(vocab_size=9, num_class_tokens=0, language=window, token_dim=1))
    longer = ScalingConfig(kind="dynamic", factor=2.0, trained_length=40)
    text = ModelConfig(
        vocab_size=9, num_class_tokens=0, language=LanguageConfig(positions="rope", scaling=longer),
        token_dim=1, max_text_tokens=39,
    )  # fmt: skip
    refuse(text)
    with pytest.raises(UserError, match=r"more than 40 places, it has room for 41"):
        refuse(replace(text, max_text_tokens=40))
    with pytest.raises(UserError, match="the programs are for 8x8 alone"):
        exported.at(16, 16)
    with pytest.raises(UserError, match="the frequencies of training alone"):
        exported.extrapolate("ntk")
    with pytest.raises(UserError, match="the weights are int8; load the model without quantize"):
        write_programs(replace(ours, quantize="int8"), tmp_path)
    with pytest.raises(UserError, match="load the model itself"):
        exported.features(torch.zeros(1, 1, 8, 8))
    with pytest.raises(UserError, match=r"has no export\.json"):
        load_exported(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert run(["convert", "export", "shapes", "--out", str(tmp_path)]) == 2
    assert "holds other things than a model" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_programs_do_not_take_the_place_of_their_model(tmp_path, capsys):
    """Whose weights are in no program that could be trained, merged or loaded again as a model."""
    model = tmp_path / "model"
    shutil.copytree(packaged_models()["shapes"], model)
    assert run(["convert", "export", str(model), "--out", str(model)]) == 2
    assert "is the model itself, or inside of it; give another folder" in capsys.readouterr().err
    assert (model / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_packaged_model_draws_prompts(tmp_path, monkeypatch):
    out = tmp_path / "shapes"
    assert run(["convert", "export", "shapes", "--out", str(out), "--also", "uncached", "block"]) == 0
    exported, ours = load_exported(out), Pipeline.load("shapes")
    prompts = ["a small red circle", "a large blue star to the left of a small green square"]
    config = replace(ours.default_sampling, num_ar_steps=4, diffusion_steps=[3])
    images = exported.generate(prompts=prompts, config=config, seed=2)
    usual = ours.generate(prompts=prompts, config=config, seed=2)
    # The rounding of our kernel, through twelve passes under guidance: an eighth of a step of 8 bits.
    torch.testing.assert_close(images, usual, rtol=0, atol=1e-3)
    monkeypatch.setattr(cpu_feed_forward, "runs_here", lambda _: False)
    expected = ours.generate(prompts=prompts, config=config, seed=2)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="load the model itself to caption"):
        exported.caption(images)


@pytest.mark.parametrize(
    ("file", "content", "answer"),
    [
        ("step.pt2", b"", "step.pt2 is damaged: it is cut short, or no program"),
        ("step.pt2", EMPTY_ZIP, "step.pt2 cannot be read"),
        ("export.json", {"programs": None}, "export.json is damaged"),
        ("export.json", {"programs": [{}]}, "export.json is damaged (KeyError('name'))"),
        ("export.json", {"programs": []}, "has none named condition"),
    ],
)
def test_a_damaged_folder_is_one_line(file, content, answer, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "programs")
    if isinstance(content, dict):
        content = json.dumps(json.loads((copy / file).read_text()) | content).encode()
    (copy / file).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(answer)):
        load_exported(copy).generate([0])
