"""Muon: torch's own updates, for the hidden matrices alone; its state on disk, and a run that goes on."""

import math
from dataclasses import replace
from typing import cast

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from causalfusion.codec.tokenizer import Tokenizer
from causalfusion.config import RunConfig
from causalfusion.config.recipes import load_config
from causalfusion.errors import UserError
from causalfusion.estimate.cost import estimate
from causalfusion.estimate.devices import named_device
from causalfusion.estimate.memory import state_bytes
from causalfusion.machine.processes import World
from causalfusion.model.parts import is_hidden_matrix
from causalfusion.model.transformer import Transformer
from causalfusion.train.muon import Muon, orthogonalised
from causalfusion.train.optimizer import learning_rate, set_rate
from causalfusion.train.run import train
from causalfusion.train.state import TrainState

ALONE = World(0, 1, torch.device("cpu"))
MUON = {"optimizer": "muon"}


@pytest.mark.parametrize("shape", [(96, 32), (32, 32), (24, 64)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_steps_are_those_of_torch(shape, dtype):
    """To the bit in bfloat16, torch's only precision, and to its rounding in float32."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    groups = [{"params": [ours]}]
    optimizers = (
        Muon(groups, lr=0.1, weight_decay=0.1, dtype=dtype),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    difference = (ours - theirs).abs().max().item()
    assert difference == 0 if dtype == torch.bfloat16 else 0 < difference < 0.01
    moments = [
        optimizer.state[p]["momentum_buffer"] for optimizer, p in zip(optimizers, (ours, theirs), strict=True)
    ]
    assert torch.equal(*moments)


@pytest.mark.parametrize("shape", [(40, 16), (16, 40)])
def test_an_orthogonalised_matrix_keeps_its_singular_vectors(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ orthogonalised(matrix) @ right.T
    values = inside.diagonal()
    assert values.min() > 0.65 and values.max() < 1.25
    assert (inside - values.diag()).abs().max() < 1e-10


def hidden_of(config: RunConfig) -> set[str]:
    return {name for name, p in Transformer(config.model).named_parameters() if is_hidden_matrix(name, p)}


def test_the_hidden_matrices_are_those_of_attention_and_feed_forward_layers(tiny_run):
    in_block = {"attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"}
    plain = tiny_run().model
    model = replace(plain, num_classes=3, token_dim=4, grid_height=2, grid_width=2)
    config = replace(tiny_run(), model=model)
    assert hidden_of(config) == {f"blocks.{k}.{name}" for k in (0, 1) for name in in_block}
    head = replace(model.head, kind="per_token", depth=1, width=16)
    lora = replace(model.lora, rank=2)
    other = replace(model, head=head, lora=lora, mlp="swiglu", conditioning="adaln_zero", depth=1)
    expected = {f"blocks.0.{name}" for name in in_block | {"mlp.gate.weight"}}
    of_head = {f"head.blocks.0.mlp.{name}.weight" for name in ("fc1", "fc2")}
    assert hidden_of(replace(config, model=other)) == expected | of_head


def test_one_rate_for_both_and_that_of_text_as_a_multiple(tiny_run):
    config = tiny_run(train={**MUON, "text_lr_factor": 0.5})
    model = replace(config.model, num_classes=3, token_dim=4, grid_height=2, grid_width=2, vocab_size=300)
    model = replace(model, max_text_tokens=8)
    state = TrainState(replace(config, model=model), ALONE, cast(Tokenizer, object()))
    set_rate(state.optimizer, learning_rate(config.train, 0))
    rates = {p: group["lr"] for group in state.optimizer.param_groups for p in group["params"]}
    named = dict(state.model.named_parameters())
    assert rates.keys() == set(named.values()) and len(state.optimizer.param_groups) == 3
    assert rates[named["blocks.0.attn.qkv.weight"]] == rates[named["text_embedding.weight"]] == 5e-4
    assert rates[named["image_in.weight"]] == 1e-3


def test_a_resumed_run_is_the_same_to_the_bit(tiny_run):
    values = {**MUON, "grad_accumulation": 2, "weight_decay": 0.1}
    whole = train(tiny_run("whole", train=values), device="cpu", show_progress=False)
    for images in (80, 160):
        config = tiny_run("parts", train={**values, "images": images})
        parts = train(config, device="cpu", show_progress=False)
    for name in ("model.safetensors", "raw.safetensors", "state/optimizer.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    stored = load_file(whole / "state" / "optimizer.safetensors")
    fields = {name: {k.rsplit("/", 1)[1] for k in stored if k.startswith(f"{name}/")} for name in (
        "blocks.1.mlp.fc2.weight", "blocks.1.mlp.fc2.bias"
    )}  # fmt: skip
    assert list(fields.values()) == [{"momentum_buffer"}, {"step", "exp_avg", "exp_avg_sq"}]
    with pytest.raises(UserError, match=r"begun with train\.optimizer = 'muon', now it is 'adamw'; give"):
        train(tiny_run("parts", train={"grad_accumulation": 2}), device="cpu", show_progress=False)


def test_a_state_of_another_optimizer_is_refused_in_one_line(tiny_run):
    """Also where the settings beside it were changed."""
    checkpoint = train(tiny_run(train={"images": 16}), device="cpu", show_progress=False)
    path = checkpoint / "state" / "run.json"
    path.write_text(path.read_text().replace('"adamw"', '"muon"'))
    with pytest.raises(
        UserError, match=r"optimizer\.safetensors lacks tensor blocks\.0\.attn\.proj\.weig"
    ) as e:
        train(tiny_run(train={**MUON, "images": 32}), device="cpu", show_progress=False)
    assert "\n" not in str(e.value)


def test_muon_without_matrices_is_refused(tiny_run):
    config = tiny_run(train={**MUON, "trainable": "embeddings_norms_biases"})
    model = replace(config.model, num_classes=3, token_dim=4, grid_height=2, grid_width=2)
    with pytest.raises(UserError, match=r"^train\.optimizer is muon, and with .*; expected adamw$"):
        TrainState(replace(config, model=model), ALONE)


def test_the_estimate_counts_one_moment_and_the_iterations():
    sizes = {"num_classes": 10, "token_dim": 4, "grid_height": 4, "grid_width": 4}
    adamw = load_config("digits", model={**sizes, "hidden_size": 64, "depth": 3, "num_heads": 2}, out="x")
    muon = replace(adamw, train=replace(adamw.train, optimizer="muon"))
    matrices = 3 * (4 + 8) * 64**2
    assert state_bytes(adamw, 1) - state_bytes(muon, 1) == 4 * matrices
    device = replace(named_device("h100", "float32"), is_gpu=False, rate=1e6, share=1.0)
    products = 5 * 64**3 * (4 * 3 + 2 + 4 + 2 + 2 * (4 * 4 + 2)) * 3
    seconds = estimate(muon, device).step_seconds - estimate(adamw, device).step_seconds
    assert math.isclose(seconds, products / 1e6, rel_tol=1e-6)
