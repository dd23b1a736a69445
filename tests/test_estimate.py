"""Estimates against what real steps keep and allocate, against the arithmetic and calculations by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from causalfusion.config import (
    EncoderConfig,
    FinetuneConfig,
    HeadConfig,
    ImageWeightsConfig,
    LoraConfig,
    ModelConfig,
    QKNormConfig,
    RunConfig,
    TrainConfig,
)
from causalfusion.data.loader import split_holdout
from causalfusion.errors import UserError
from causalfusion.estimate import devices
from causalfusion.estimate.allocated import Allocated
from causalfusion.estimate.command import run, split_settings
from causalfusion.estimate.cost import Cost, estimate, shares_state
from causalfusion.estimate.devices import SHEETS, USABLE, Device, named_device
from causalfusion.estimate.memory import activation_bytes, largest_split, parameters_of, state_bytes
from causalfusion.estimate.optimizer import frozen_of
from causalfusion.estimate.planned import plan_run, read_settings
from causalfusion.estimate.show import announce, describe
from causalfusion.factorization import Plan, ar_step_of
from causalfusion.machine.processes import World
from causalfusion.model.arithmetic import expected_train_flops, visible_pairs
from causalfusion.model.arithmetic import form_of as form
from causalfusion.model.split_facts import split_facts
from causalfusion.model.transformer import Transformer, count_parameters
from causalfusion.sequence import pack_training
from causalfusion.train.draws import Draws
from causalfusion.train.parallel import fit_to_memory
from causalfusion.train.step import Objective, TokenBatch
from causalfusion.train.trainer import Trainer

NO_QK_NORM = QKNormConfig(kind="none")
MODEL = ModelConfig(
    hidden_size=64, depth=6, num_heads=2, num_class_tokens=8, num_classes=10, token_dim=16, grid_height=8,
    grid_width=16,
)  # fmt: skip
CPU = World(0, 1, torch.device("cpu"))


def _config(model: ModelConfig = MODEL, **train: Any) -> RunConfig:
    return RunConfig(model=model, train=TrainConfig(**{"batch_size": 4, **train}))


# --- memory -------------------------------------------------------------------------------------------


def _peak_of_step(config: RunConfig, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> int:
    """Memory of a trainer's second step, state included: the first one makes the moments."""
    count, model = config.train.batch_size, config.model
    with Allocated() as allocated:
        trainer = Trainer(config, CPU)
        drawn = trainer.objective.draw

        def draw(objective: Objective, batch: TokenBatch, **places: int) -> Draws:
            draws = drawn(batch, **places)
            return replace(draws, plan=replace(draws.plan, ar_step=ar_step_of(sizes)[None]))

        monkeypatch.setattr(Objective, "draw", draw)
        tokens = torch.randn(count, model.num_tokens, model.token_dim)
        batch = TokenBatch(tokens, torch.zeros(count, dtype=torch.int64), torch.arange(count))
        trainer.step(batch)
        allocated.begin()
        trainer.step(batch)
    return allocated.peak


@pytest.mark.parametrize("which", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [[127, 1], [20, 40, 30, 38]])
def test_memory_is_what_a_step_allocates(which: Any, precision: Any, sizes: Any, monkeypatch: Any):
    config = _config(activation_checkpointing=which, precision=precision)
    split = split_facts(sizes)
    activations = activation_bytes(config, 4, on_gpu=False, split=split)
    estimated = state_bytes(config, 1) + activations
    peak = _peak_of_step(config, sizes, monkeypatch)
    assert 0.92 < estimated / peak < 1.08
    assert activations > 2 * state_bytes(config, 1) or which != "none", "the state must not hide the rest"
    parameters, _ = parameters_of(MODEL)
    assert 0.75 < activations / (peak - 16 * parameters) < 1.1, "gradients fill what activations leave"


@pytest.mark.parametrize(
    "model",
    [
        replace(MODEL, conditioning="adaln_zero", num_class_tokens=0),
        replace(MODEL, position_embedding="rope", qk_norm=NO_QK_NORM),
        replace(MODEL, mlp_ratio=2.0, num_heads=4),
        replace(MODEL, mlp="swiglu", num_kv_heads=1),
        replace(MODEL, image_weights=ImageWeightsConfig(kind="own", hidden_size=32)),
        replace(MODEL, head=HeadConfig(kind="per_token", width=48)),
        replace(
            MODEL, head=HeadConfig(kind="per_token"), context="bidirectional", encoder=EncoderConfig(depth=2)
        ),
    ],
)
def test_memory_of_other_models(model: ModelConfig, monkeypatch: pytest.MonkeyPatch):
    config = _config(model)
    estimated = state_bytes(config, 1) + activation_bytes(
        config, 4, on_gpu=False, split=split_facts([127, 1])
    )
    assert 0.9 < estimated / _peak_of_step(config, [127, 1], monkeypatch) < 1.1


class _Flash(torch.autograd.Function):
    """Keeps what FlexAttention keeps: q, k, v, its output, and a number for each row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_zeros(q.shape[:3]))
        return out


@contextmanager
def _kept_bytes(model: torch.nn.Module, found: list[int]) -> Iterator[None]:
    """Bytes that autograd keeps meanwhile, parameters left out, each storage once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield
    found.append(sum(storage.nbytes() for storage in kept.values()))


def _kept(config: ModelConfig, sizes: list[int], dtype: torch.dtype, autocast: bool, gpu_like: bool) -> int:
    model, total = Transformer(config).to(dtype), sum(sizes)
    clean = torch.zeros(2, total, config.token_dim, dtype=dtype)
    plan = Plan(torch.arange(total)[None].expand(2, -1), ar_step_of(sizes)[None], config.grid_width)
    labels, timesteps = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64)
    sequence = pack_training(labels, config.num_condition_tokens, clean, clean, plan, timesteps)
    if gpu_like:  # the path of GPUs; float64 takes it on a CPU too
        model.timestep_embedding = torch.nn.Embedding(1, config.hidden_size, dtype=dtype)  # pyright: ignore[reportAttributeAccessIssue]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _Flash.apply(q, k, v)  # pyright: ignore[reportReturnType]

    found: list[int] = []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), _kept_bytes(model, found):
        prediction = model(sequence, attend=attend if gpu_like else None).image
    assert prediction.requires_grad
    return found[0]


@pytest.mark.parametrize("qk_norm", [QKNormConfig(), NO_QK_NORM])
@pytest.mark.parametrize("way", ["float32", "bfloat16", "gpu"])
def test_a_block_keeps_exactly_what_is_counted(way: str, qk_norm: QKNormConfig):
    """The difference of two depths, so that nothing but whole blocks counts."""
    sizes, model = [60, 68], replace(MODEL, qk_norm=qk_norm)
    dtype = torch.float64 if way == "gpu" else torch.float32
    low, gpu = way == "bfloat16", way == "gpu"
    few, many = (_kept(replace(model, depth=d), sizes, dtype, low, gpu) for d in (2, 4))
    measured = (many - few) / 2 / (2 if gpu else 1)  # numbers of 8 bytes instead of 4

    config = _config(model, precision="bfloat16" if low else "float32")
    depths = [replace(config, model=replace(model, depth=d)) for d in (2, 4)]
    counted = [activation_bytes(c, 2, on_gpu=gpu, split=split_facts(sizes)) for c in depths]
    assert (counted[1] - counted[0]) / 2 == pytest.approx(measured, rel=2e-3)


def test_the_largest_split_is_the_largest():
    config = _config()
    largest = largest_split(config)
    facts = [split_facts(sizes) for sizes in ([128], [64, 64], [1, 127], [127, 1], [1] * 128, [40, 87, 1])]
    for gpu in (False, True):
        most = activation_bytes(config, 4, on_gpu=gpu, split=largest)
        assert all(activation_bytes(config, 4, on_gpu=gpu, split=f) <= most for f in facts)
    pairs = [visible_pairs(MODEL, f, form(config)).all for f in facts]
    assert visible_pairs(MODEL, largest, form(config)).all == max(pairs)


def test_state_counts_parameters_and_shares():
    config = _config()
    parameters = count_parameters(Transformer(MODEL))
    assert state_bytes(config, 1) == 20 * parameters
    _, block = parameters_of(MODEL)
    assert state_bytes(config, 8) == 20 * parameters / 8 + 2 * 8 * block
    assert block == count_parameters(Transformer(MODEL).blocks[0])


LORA = replace(MODEL, hidden_size=128, lora=LoraConfig(rank=2))


@pytest.mark.parametrize(
    "config",
    [
        replace(_config(LORA), finetune=FinetuneConfig(base="a model", new_classes=["a", "b"])),
        _config(trainable="embeddings_norms_biases"),
    ],
    ids=["lora", "norms and biases"],
)
def test_weights_that_do_not_learn_have_neither_gradient_nor_moments(config: RunConfig):
    trainer = Trainer(config, CPU)
    learned = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    rest = sum(p.numel() for p in trainer.model.parameters()) - learned
    assert 0 < learned < rest and frozen_of(config) == rest
    assert state_bytes(config, 1) == 20 * learned + 4 * rest


def test_a_fine_tuning_by_lora_begins_where_its_own_state_fits(monkeypatch: pytest.MonkeyPatch):
    config = replace(_config(LORA), finetune=FinetuneConfig(base="a model"))
    needed = state_bytes(config, 1) + activation_bytes(config, 1, on_gpu=False)
    monkeypatch.setattr(devices, "available_memory", lambda: 1.2 * needed)
    assert fit_to_memory(config, CPU).train.batch_size == 4
    with pytest.raises(UserError, match="a train step needs"):
        fit_to_memory(_config(LORA), CPU)


# --- time and advice ----------------------------------------------------------------------------------

GPU = Device("a test", rate=1e12, memory=1e9, bandwidth=1e15, share=0.5, is_gpu=False, measured=True)


def _cost(device: Device = GPU, count: int = 1, **train: Any) -> Cost:
    return estimate(_config(**train), device, count)


def test_the_speed_of_a_slow_run_is_no_zero():
    rows = dict(describe(estimate(_config(), replace(GPU, rate=1e5)), _config()))
    step, speed = rows["time"].split(";")[0].split(" a step of 4 images, ")
    assert float(step.removesuffix(" s").replace(",", "")) > 1000 and "e" not in step
    assert 0 < float(speed.removesuffix(" images/s")) < 0.01


def test_time_is_arithmetic_over_the_rate():
    config = _config(images=1000)
    flops = expected_train_flops(config, 4).needed
    cost = estimate(config, GPU)
    assert cost.step_seconds == pytest.approx(4 * flops / 5e11, rel=1e-3)
    assert cost.seconds == pytest.approx(250 * cost.step_seconds)
    assert cost.in_all.needed == pytest.approx(1000 * flops)
    assert estimate(config, GPU, 2).step_seconds == pytest.approx(cost.step_seconds / 2, rel=1e-2)
    assert estimate(config, GPU, images_seen=750).seconds == pytest.approx(cost.seconds / 4)


def test_checkpointing_costs_up_to_a_third_more():
    plain = _cost().step_seconds
    for which, more in (("full", 1 / 3), ("selective", 1 / 6)):
        assert _cost(activation_checkpointing=which).step_seconds == pytest.approx(
            plain * (1 + more), rel=1e-3
        )


@pytest.mark.parametrize("memory", [6e7, 3e7, 2e7])
def test_what_is_advised_fits(memory: float):
    device = replace(GPU, memory=memory)
    cost = _cost(device, batch_size=32, micro_batch=32)
    assert not cost.fits and cost.changes
    values = dict(change.removeprefix("--train.").split() for change in cost.changes)
    changed: dict[str, Any] = {"micro_batch": int(values.get("micro-batch", 32))}
    changed |= {"activation_checkpointing": values["activation-checkpointing"]} if len(values) > 1 else {}
    after = _cost(device, batch_size=32, **changed)
    assert after.fits and after.memory.total <= USABLE * memory


def test_as_many_images_at_once_as_fit_and_no_fewer():
    device = replace(GPU, memory=6e7)
    cost = _cost(device, batch_size=32)
    assert cost.fits and cost.micro_batch < 32
    assert not _cost(device, batch_size=32, micro_batch=2 * cost.micro_batch).fits
    assert _cost(batch_size=32).micro_batch == 32
    assert _cost(batch_size=32, micro_batch=5).micro_batch == 4, "it has to divide the batch"
    assert _cost(batch_size=32, micro_batch=16, grad_accumulation=4).micro_batch == 8


@pytest.mark.parametrize(("recipes", "gpus"), [(["imagenet256", "XL"], 8), (["imagenet256"], 8)])
def test_the_recipes_fit_the_machines_that_the_readme_names(recipes: list[str], gpus: int):
    planned = plan_run(read_settings(recipes, []))
    assert estimate(planned.config, named_device("h100", "bfloat16"), gpus).fits


def test_where_nothing_helps_no_setting_is_advised():
    cost = _cost(replace(GPU, memory=1e6))
    assert not cost.fits and cost.changes == ()


def test_the_state_is_shared_as_training_does():
    train = TrainConfig()
    common: dict[str, Any] = {"memory": 80e9, "count": 8}
    assert shares_state(train, on_gpu=True, parameters=1_100_000_000, **common)
    assert not shares_state(train, on_gpu=True, parameters=900_000_000, **common)
    assert not shares_state(train, on_gpu=False, parameters=1_100_000_000, **common)
    assert not shares_state(TrainConfig(parallel="fsdp"), on_gpu=True, parameters=1, memory=1, count=1)
    cost = _cost(count=4, parallel="fsdp", replicas=2)
    assert cost.sharded_over == 2


def test_a_batch_must_divide():
    with pytest.raises(UserError, match="expected a multiple of 3"):
        _cost(count=3)


# --- settings before the data are there ---------------------------------------------------------------


def test_a_recipe_is_planned_without_its_data():
    planned = plan_run(read_settings(["imagenet512"], ["--train.batch-size", "64", "--data.flip=false"]))
    model = planned.config.model
    assert (model.num_tokens, model.token_dim, model.num_classes) == (1024, 16, 1000)
    assert (planned.config.train.batch_size, planned.config.data.flip) == (64, False)
    ablation = plan_run(read_settings(["ablation256"], [])).config.model
    assert (ablation.num_tokens, ablation.token_dim) == (256, 16)


def test_epochs_are_counted_in_images():
    """Of the share of the data that is trained on, as training does; not the recipe's number of images."""
    options = ["--train.epochs", "3", "--data.holdout", "0.2"]
    planned = plan_run(read_settings(["digits"], options))
    assert planned.config.train.images == 3 * len(split_holdout(1797, 0.2)[0])
    there = plan_run(read_settings(["imagenet256"], ["--train.epochs", "3", "--data.image-size", "256"]))
    assert any("whose size train.epochs needs" in note for note in there.assumptions)


def test_built_in_data_say_what_they_are():
    digits = plan_run(read_settings(["digits"], []))
    assert digits.config.model.num_classes == 10 and digits.config.model.num_tokens == 16
    assert digits.assumptions == () and digits.text_tokens == 0
    shapes = plan_run(read_settings(["shapes"], []), text_tokens=20)
    assert shapes.config.model.vocab_size == 512 and shapes.text_tokens == 20
    with pytest.raises(UserError, match="text-tokens is 20; expected none, as this run has no text"):
        plan_run(read_settings(["digits"], []), text_tokens=20)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], "no recipe is given"),
        (["S", "--data.source", "folder", "--data.path", "nowhere"], "give --data.image-size"),
        (["imagenet256", "--codec.scale", "3"], "give --codec.latent-channels"),
        (["imagenet256", "--data.image-size", "250"], "cells of 16 pixels"),
    ],
)
def test_what_is_missing_is_asked_for(settings: list[str], said: str):
    with pytest.raises(UserError, match=said):
        run(settings, gpu="h100")


def test_recipes_and_options_are_told_apart():
    tokens = ["imagenet256", "XL", "--train.images", "5", "--config", "H", "--config=mine.toml"]
    assert split_settings(tokens) == (["imagenet256", "XL", "H", "mine.toml"], ["--train.images", "5"])


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]):
    assert run(["imagenet256", "--train.micro-batch", "32"], gpu="h100", gpus=8, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == count_parameters(_on_meta(plan_run(read_settings(["imagenet256"], []))))
    assert found["fits"] and found["micro_batch"] == 32
    assert found["in_all"]["needed"] == pytest.approx(found["of_image"]["needed"] * found["images"])


def _on_meta(planned: Any) -> Transformer:
    with torch.device("meta"):
        return Transformer(planned.config.model)


def test_a_device_that_is_too_small_is_said_with_the_remedy(capsys: pytest.CaptureFixture[str]):
    assert run(["imagenet512", "--train.micro-batch", "256"], gpu="h100", gpus=8) == 1
    assert "give --train.micro-batch 8" in capsys.readouterr().out


def test_unknown_devices_are_refused_with_the_known_ones():
    with pytest.raises(UserError, match="expected one of a100, h100"):
        named_device("tpu", "bfloat16")
    assert all(named_device(name, "bfloat16").rate > named_device(name, "float32").rate for name in SHEETS)


def test_training_announces_its_memory_and_what_fits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "available_memory", lambda: 8e9)
    (line,) = announce(_config(), 1, torch.device("cpu"))
    assert "of 8 GB of memory for each process" in line and "at once" not in line
    monkeypatch.setattr(devices, "available_memory", lambda: 6e7)
    (line,) = announce(_config(batch_size=32), 1, torch.device("cpu"))
    assert "images at once" in line


def test_a_train_step_is_cut_until_it_fits_or_refused_with_what_would_do(monkeypatch: pytest.MonkeyPatch):
    config = _config(batch_size=32)
    assert fit_to_memory(config, CPU) == config
    assert fit_to_memory(config, CPU, at_least=4).train.grad_accumulation == 4
    monkeypatch.setattr(devices, "available_memory", lambda: 6e7)
    fitted = fit_to_memory(config, CPU)
    assert fitted.train.grad_accumulation > 1
    assert replace(fitted, train=replace(fitted.train, grad_accumulation=1)) == config
    monkeypatch.setattr(devices, "available_memory", lambda: 1.4e7)
    with pytest.raises(UserError, match=r"give --train\.activation-checkpointing"):
        fit_to_memory(config, CPU)
    monkeypatch.setattr(devices, "available_memory", lambda: 1e6)
    with pytest.raises(UserError, match="state alone is too large"):
        fit_to_memory(config, CPU)
