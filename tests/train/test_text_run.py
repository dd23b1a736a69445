"""Whole runs on captioned scenes: the same run when resumed, its tokenizer, latent caches, what is logged."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from causalfusion.codec.encode import encode_to_cache
from causalfusion.codec.tokenizer import open_tokenizer, train_tokenizer
from causalfusion.config import RunConfig
from causalfusion.config.recipes import load_config
from causalfusion.data.shapes import LENGTHS
from causalfusion.errors import UserError
from causalfusion.machine.processes import World
from causalfusion.model.attention import Attend, select_attend
from causalfusion.saved.folder import checkpoints_of, load_model, load_spec, load_tokenizer
from causalfusion.sequence import PackedSequence
from causalfusion.train.checkpoint import read_progress
from causalfusion.train.draws import draw
from causalfusion.train.feed import TrainingData, open_training_data
from causalfusion.train.log import read_log
from causalfusion.train.run import train
from causalfusion.train.trainer import Trainer
from causalfusion.train.upkeep import examples_together

ALONE = World(0, 1, torch.device("cpu"))
TIMED = ("images_per_second", "flops_share", "waiting_share")


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    """A data set of 80 scenes: their captions and their epochs are short."""
    monkeypatch.setitem(LENGTHS, "train", 80)


@pytest.fixture
def shapes_run(tmp_path: Path):
    def make(out: str = "run", **sections: dict) -> RunConfig:
        train = {
            "images": 64, "batch_size": 8, "precision": "float32", "log_every": 1, "checkpoint_every": 3,
            "evaluate_every": 4, "evaluate_images": 16, "ema_decay": 0.9, "warmup_images": 16,
            "lr_schedule": "constant", **sections.pop("train", {}),
        }  # fmt: skip
        model = {"hidden_size": 32, "depth": 2, "num_heads": 2, **sections.pop("model", {})}
        data = {"holdout": 0.1, **sections.pop("data", {})}
        return load_config(
            "shapes", **{"train": train, "model": model, "data": data, **sections}, out=str(tmp_path / out)
        )

    return make


def run(config: RunConfig) -> Path:
    return train(config, device="cpu", show_progress=False)


def records_of(config: RunConfig, kind: str) -> list[dict]:
    records = [r for r in read_log(Path(config.out) / "log.jsonl") if r["kind"] == kind]
    return [{k: v for k, v in record.items() if k not in TIMED} for record in records]


def test_few_lengths_change_nothing(shapes_run, monkeypatch):
    """Losses to rounding; and all micro-batches of a step have one length, a multiple, or all positions."""
    seen = set()

    def lengths(sequence: PackedSequence, *settings: Any) -> Attend:
        seen.add(next(s.num_tokens for s in sequence.segments if s.kind == "text"))
        return select_attend(sequence, *settings)

    monkeypatch.setattr("causalfusion.model.transformer.select_attend", lengths)
    losses, found = [], []
    for multiple in (1, 16):
        config = shapes_run(
            f"multiple-{multiple}",
            train={"length_multiple": multiple, "grad_accumulation": 2, "evaluate_every": 0, "images": 32},
        )
        run(config)
        losses.append([r["loss"] for r in records_of(config, "train")])
        found.append(set(seen))
        seen.clear()
    assert losses[1] == pytest.approx(losses[0], rel=2e-6)
    assert len(found[0]) > 2
    assert all(n % 16 == 0 or n == config.model.max_text_tokens for n in found[1])


def test_a_stopped_run_is_the_same_run(shapes_run):
    """Bit for bit, across the end of an epoch (72 scenes), with sequences of every arrangement."""
    text = {"caption_first": 0.4, "image_first": 0.3, "image_only": 0.1, "text_only": 0.2}
    factorization = {"split": "per_image", "timesteps_per_ar_step": 2}
    options = {"text": text, "factorization": factorization}
    whole = shapes_run("whole", train={"images": 96}, **options)
    last = run(whole)
    for images in (40, 96):
        part = shapes_run("part", train={"images": images}, **options)
        end = run(part)
    names = ("model.safetensors", "raw.safetensors", "state/optimizer.safetensors")
    for name in names:
        a, b = load_file(last / name), load_file(end / name)
        assert a.keys() == b.keys() and any("text_embedding" in key for key in a)
        assert all(value.equal(b[key]) for key, value in a.items()), name
    assert replace(read_progress(last), seconds=0.0) == replace(read_progress(end), seconds=0.0)
    assert records_of(whole, "train") == records_of(part, "train")
    assert (last / "tokenizer.json").read_bytes() == (end / "tokenizer.json").read_bytes()


def test_what_a_run_leaves(shapes_run):
    """Its tokenizer lies beside the weights, and both losses are in its log."""
    config = shapes_run()
    folder = run(config)
    spec = load_spec(folder)
    tokenizer = load_tokenizer(folder, spec)
    assert tokenizer is not None and tokenizer.fingerprint == spec.tokenizer_fingerprint != ""
    assert spec.model.vocab_size == tokenizer.vocab_size == open_tokenizer(str(folder)).vocab_size
    assert spec.text == config.text and load_model(folder)[0].config == spec.model
    records = records_of(config, "train")
    assert len(records) == 8
    for record in records:
        total = record["image_loss"] + config.text.loss_coefficient * record["text_loss"]
        assert record["loss"] == pytest.approx(total, rel=1e-9)
        assert record["perplexity"] == pytest.approx(math.exp(record["text_loss"]), rel=1e-9)
    # Nothing is known at first: every token is about as likely as any other.
    assert records[0]["text_loss"] == pytest.approx(math.log(tokenizer.vocab_size), rel=0.2)
    assert records[-1]["text_loss"] < records[0]["text_loss"]
    evaluations = records_of(config, "evaluation")
    assert [e["images_seen"] for e in evaluations] == [32, 64]
    for evaluation in evaluations:
        assert evaluation["text"].keys() == evaluation["perplexity"].keys() > set()
        assert evaluation["text"].keys() <= {"caption_first", "image_first"}
        for name, loss in evaluation["text"].items():
            assert evaluation["perplexity"][name] == pytest.approx(math.exp(loss), rel=1e-9)
        assert evaluation["mean"] > 0


def test_a_changed_tokenizer_is_refused(shapes_run):
    folder = run(shapes_run())
    path = folder / "tokenizer.json"
    content = path.read_text()
    values = json.loads(content)
    first, second = values["model"]["vocab"]["a"], values["model"]["vocab"]["b"]
    values["model"]["vocab"] |= {"a": second, "b": first}
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"not the tokenizer that the model was trained with") as caught:
        run(shapes_run(train={"images": 80}))
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer\.json") as caught:
        run(shapes_run(train={"images": 80}))
    assert "\n" not in str(caught.value)
    path.write_text(content)
    assert int(run(shapes_run(train={"images": 72})).name) == 72
    other = path.parents[3] / "other.json"
    other.write_text(train_tokenizer(["another one"], 300).to_json())
    for name, said in (
        ("", r"begun with text\.tokenizer = 'train', now it is ''"),
        ("elsewhere.json", "there is no tokenizer at 'elsewhere.json'"),
        (str(other), r"is not the one that .* was begun with \(train\); give that one"),
    ):
        with pytest.raises(UserError, match=said):
            run(shapes_run(text={"tokenizer": name}, train={"images": 80}))


def test_a_resumed_run_keeps_its_tokenizer(shapes_run, monkeypatch, tmp_path):
    """It does not train or open another one, whatever has become of the file since."""
    file = tmp_path / "mine.json"
    file.write_text(train_tokenizer(["a large red circle", "two red circles"] * 3, 280).to_json())
    first = run(shapes_run(text={"tokenizer": str(file)}, train={"images": 24}))
    assert load_spec(first).model.vocab_size == open_tokenizer(str(file)).vocab_size
    file.unlink()
    second = run(shapes_run(text={"tokenizer": str(file)}, train={"images": 48}))
    assert load_spec(second).tokenizer_fingerprint == load_spec(first).tokenizer_fingerprint
    monkeypatch.setattr("causalfusion.train.from_data.train_tokenizer", None)
    with pytest.raises(TypeError):  # a fresh run would call it
        run(shapes_run("fresh"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"data": {"source": "digits"}, "codec": {"patch_size": 2}},
            "digits has no captions.*text.tokenizer",
        ),
        ({"text": {"tokenizer": "nowhere/tokenizer.json"}}, "there is no tokenizer at"),
        ({"text": {"vocab_size": 100}}, "vocab_size is 100; expected at least 261"),
        ({"model": {"max_text_tokens": 5}}, "max_text_tokens is 5; expected at least 6 for 1 captions"),
        ({"text": {"examples_per_sequence": 2}}, "max_images is 1; expected at least 2"),
        ({"text": {"examples_per_sequence": 3}}, "expected a divisor of the 8 images"),
        ({"model": {"vocab_size": 77}}, r"model.vocab_size is 77, the data make it \d+"),
        (
            {"model": {"conditioning": "adaln_zero"}},
            "adaln_zero'; expected in_context, for a model with text",
        ),
        ({"text": {"image_context": "noised"}}, "expected distribution fixed, num_ar_steps 1"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(shapes_run, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        run(shapes_run(**settings))
    assert "\n" not in str(caught.value)


def opened(config: RunConfig) -> TrainingData:
    return open_training_data(config, ALONE)


def test_a_latent_cache_gives_the_same_batches(shapes_run, tmp_path):
    """Tokens and captions of training and evaluation, over the end of an epoch, and the tokenizer."""
    config = shapes_run()
    encode_to_cache(config, tmp_path / "cache", batch_size=16, device="cpu")
    cached = shapes_run(data={"cache": str(tmp_path / "cache")})
    a, b = opened(config), opened(cached)
    assert a.tokenizer is not None and b.tokenizer is not None
    assert a.tokenizer.fingerprint == b.tokenizer.fingerprint and a.config.model == b.config.model
    streams = zip(a.batches(48), b.batches(48), range(6), strict=False)
    evaluations = zip(a.evaluation_batches(5), b.evaluation_batches(5), strict=True)
    pairs = [*((x, y) for x, y, _ in streams), *evaluations]
    assert len(pairs) == 6 + 2
    for x, y in pairs:
        assert x.captions == y.captions and x.captions is not None and all(x.captions)
        assert torch.allclose(x.tokens, y.tokens, atol=1e-6) and x.labels.equal(y.labels)
        assert x.sample_indices.equal(y.sample_indices)
    # Different captions of the same image in different epochs.
    epochs = [next(a.batches(start * 72)) for start in range(4)]
    assert len({tuple(map(tuple, e.captions or ())) for e in epochs}) == 4
    folder = run(cached)
    assert load_spec(folder).tokenizer_fingerprint == a.tokenizer.fingerprint


def test_captions_of_the_grid_are_of_different_images_however_often_these_are_seen(shapes_run):
    """As given images are, beside many of the model's own (--prior-preservation)."""
    data = opened(shapes_run(data={"holdout": 0.0}))
    often = replace(data, train_indices=data.train_indices.repeat(20))
    assert often.held_out_captions(8) == data.held_out_captions(8) and len(data.held_out_captions(8)) == 8


def test_long_captions_are_cut_to_the_room(shapes_run):
    data = opened(shapes_run(model={"max_text_tokens": 9}))
    with pytest.warns(UserWarning, match=r"longer than the 4 tokens .* and cut: 8 of the first 8") as said:
        captions = next(data.batches(0)).captions
    whole = next(opened(shapes_run()).batches(0)).captions
    assert captions is not None and whole is not None and max(map(len, whole)) > 4
    room = re.search(r"model\.max_text_tokens (\d+) makes room", str(said[0].message))
    assert room is not None
    roomy = next(opened(shapes_run(model={"max_text_tokens": int(room[1])})).batches(0)).captions
    assert roomy == whole and data.cut_captions == {"seen": 8, "cut": 8}
    assert list(captions) == [ids[:4] for ids in whole]
    config = shapes_run(model={"max_text_tokens": 9}, train={"images": 8})
    run(config)


def test_several_examples_share_a_sequence(shapes_run):
    """Two images with their captions in every document; six held-out scenes in batches of four."""
    config = shapes_run(
        text={"examples_per_sequence": 2}, model={"max_images": 2, "max_text_tokens": 96},
        data={"holdout": 0.06}, train={"images": 32, "batch_size": 4},
    )  # fmt: skip
    folder = run(config)
    model, _ = load_model(folder)
    assert model.image_index is not None and model.image_index.weight.shape == (2, 32)
    data = opened(config)
    trainer = Trainer(data.config, ALONE, data.tokenizer)
    seen = []
    trainer.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = next(data.batches(0))
    trainer.step(batch)
    (sequence,) = seen
    clean = next(s for s in sequence.segments if s.kind == "image" and s.role == "clean")
    assert clean.values.shape[:2] == (2, 2 * 16)
    draws = draw(
        data.config.factorization, data.config.model, trainer.objective.process, 0.1, seed=0, split_index=0,
        sample_indices=range(4), text=config.text,
    )  # fmt: skip
    order = draws.plan.order[:, :, None].expand(-1, -1, clean.values.shape[-1])
    assert clean.values.view(4, 16, -1).equal(batch.tokens.gather(1, order))
    assert len(records_of(config, "evaluation")) == 2


def test_held_out_examples_are_judged_in_whole_sequences(shapes_run, monkeypatch):
    """Of three examples in a sequence, batches of 128 would leave two examples of each out."""
    monkeypatch.setitem(LENGTHS, "train", 600)
    config = shapes_run(
        text={"examples_per_sequence": 3}, model={"max_images": 3, "max_text_tokens": 120},
        data={"holdout": 0.5}, train={"batch_size": 132, "evaluate_images": 300},
    )  # fmt: skip
    batches = opened(config).evaluation_batches(examples_together(config))
    counts = [len(batch.labels) for batch in batches]
    assert counts == [126, 126, 48]
    assert examples_together(replace(config, text=replace(config.text, examples_per_sequence=132))) == 132


@pytest.mark.parametrize("context", ["clean", "noised"])
def test_the_baseline_by_configuration(shapes_run, context):
    """Transfusion, and the same single AR step with clean copies, under the same settings."""
    config = shapes_run(
        text={"image_context": context, "caption_first": 0.5, "image_first": 0.5},
        factorization={"distribution": "fixed", "num_ar_steps": 1},
    )  # fmt: skip
    folder = run(config)
    assert load_spec(folder).text.image_context == context
    assert all(math.isfinite(r["loss"]) for r in records_of(config, "train"))
    assert len(checkpoints_of(Path(config.out))) == 2


def test_text_alone_is_a_run(shapes_run):
    """Plain language modelling: no image loss, and image weights that never move."""
    nothing = {"caption_first": 0.0, "image_first": 0.0, "text_only": 1.0}
    config = shapes_run(text=nothing, train={"images": 32})
    folder = run(config)
    assert {r["image_loss"] for r in records_of(config, "train")} == {0.0}
    (evaluation,) = records_of(config, "evaluation")
    assert evaluation["mean"] is None and evaluation["text"].keys() == {"text_only"}
    raw = load_file(folder / "raw.safetensors")
    assert not raw["image_out.weight"].any()


def test_a_run_begins_with_the_weights_and_the_tokenizer_of_another(shapes_run):
    first = shapes_run()
    run(first)
    model = checkpoints_of(Path(first.out))[-1]
    second = shapes_run("second", train={"init": first.out, "images": 8, "lr": 1e-9, "checkpoint_every": 0})
    run(second)
    begun, ended = load_file(model / "model.safetensors"), latest_weights(second, "model.safetensors")
    assert begun.keys() == ended.keys()
    for name, weight in begun.items():
        torch.testing.assert_close(ended[name], weight, atol=1e-6, rtol=0)
        torch.testing.assert_close(latest_weights(second, "raw.safetensors")[name], weight, atol=1e-6, rtol=0)
    assert (
        load_spec(checkpoints_of(Path(second.out))[-1]).tokenizer_fingerprint
        == load_spec(model).tokenizer_fingerprint
    )


def test_a_begun_run_no_longer_needs_what_it_began_with(shapes_run):
    first = shapes_run()
    run(first)
    run(shapes_run("second", train={"init": first.out, "images": 8}))
    Path(first.out).rename(Path(first.out).with_name("elsewhere"))
    assert int(run(shapes_run("second", train={"init": first.out, "images": 16})).name) == 16


def test_weights_that_do_not_fit_are_refused(shapes_run):
    first = shapes_run()
    run(first)
    wider = shapes_run("wider", train={"init": first.out}, model={"hidden_size": 64})
    with pytest.raises(UserError, match="expected"):
        run(wider)


def latest_weights(config: RunConfig, name: str) -> dict[str, torch.Tensor]:
    return load_file(checkpoints_of(Path(config.out))[-1] / name)
