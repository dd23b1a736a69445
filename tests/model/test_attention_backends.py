"""The fast paths against the naive ones: row blocks against one dense mask, our MLP against torch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from causalfusion.config import FactorizationConfig, ModelConfig
from causalfusion.factorization import Plan, ar_step_of, plan_batch
from causalfusion.mask import dense_mask
from causalfusion.model.attention import (
    Attend,
    DenseAttend,
    FlexAttend,
    backend_on_gpu,
    choose_backend,
    select_attend,
)
from causalfusion.model.cpu_attention import (
    SegmentAttend,
    attend_without_gradient,
    row_blocks,
)
from causalfusion.model.cpu_feed_forward import gelu_and_derivative_
from causalfusion.model.feed_forward import FeedForward
from causalfusion.model.transformer import Transformer
from causalfusion.sequence import PackedSequence, pack_training

HEADS, HEAD_DIM, CLASS_TOKENS = 2, 16, 5
SPLITS = [[200], [150, 50], [1] * 40 + [60, 3, 97], [13, 100, 1, 80, 6]]


def sequence_of(plan: Plan, copies: int = 1) -> PackedSequence:
    rows, num_tokens = plan.order.shape
    clean, noised = torch.zeros(rows, num_tokens, 3), torch.zeros(rows, copies * num_tokens, 3)
    labels, timesteps = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, 1, dtype=torch.int64)
    return pack_training(labels, CLASS_TOKENS, clean, noised, plan, timesteps)


def shared(sizes: list[int], rows: int = 2) -> Plan:
    return Plan(torch.arange(sum(sizes)).expand(rows, -1), ar_step_of(sizes)[None], grid_width=10)


def per_image() -> Plan:
    config = FactorizationConfig(split="per_image")
    return plan_batch(config, 10, 16, seed=3, split_index=0, sample_indices=[0, 1, 2])


def run(attend: Attend, inputs: list[Tensor], first_query: int = 0) -> list[Tensor]:
    """The output and the gradients of q, k and v under a fixed random output gradient."""
    q, k, v = (x.clone().requires_grad_() for x in inputs)
    out = attend(0, q[:, :, first_query:], k, v)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


def random_inputs(sequence: PackedSequence, rows: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (rows, HEADS, sequence.num_tokens, HEAD_DIM)
    return [torch.randn(shape, generator=generator) for _ in range(3)]


def error(x: Tensor, reference: Tensor) -> float:
    return float((x.float() - reference.float()).abs().max() / reference.float().abs().max())


PLANS = [*(shared(sizes) for sizes in SPLITS), per_image()]


@pytest.mark.parametrize("plan", PLANS, ids=[*(f"S={len(s)}" for s in SPLITS), "per image"])
@pytest.mark.parametrize("last_layer", [False, True], ids=["all rows", "rows that are read"])
def test_segments_equal_dense(plan: Plan, last_layer: bool):
    sequence = sequence_of(plan)
    first = sequence.first_output if last_layer else 0
    inputs = random_inputs(sequence, len(plan.order))
    dense, segments = (run(A(sequence), inputs, first) for A in (DenseAttend, SegmentAttend))
    assert error(segments[0], dense[0]) < 2e-6
    for ours, naive in zip(segments[1:], dense[1:], strict=True):
        assert error(ours, naive) < 5e-6


def test_the_choice_follows_shape_and_precision():
    """Torch's kernel where nearly every pair is seen; row blocks where most are not, and always in bf16."""
    full, sparse = sequence_of(shared([60])), sequence_of(shared([256, 300, 212]))
    assert SegmentAttend(full).share == pytest.approx((60 * 65 + 5 * 5) / 65**2)
    assert SegmentAttend(sparse).share < 0.4
    assert choose_backend(full)[0] == "dense" and isinstance(select_attend(full), DenseAttend)
    assert choose_backend(sparse)[0] == "segments" and isinstance(select_attend(sparse), SegmentAttend)
    assert isinstance(select_attend(sparse, "dense"), DenseAttend)
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(select_attend(full), SegmentAttend)


def test_heads_too_narrow_for_flex_attention_take_another_backend_on_a_gpu():
    assert backend_on_gpu(16, triton=True)[0] == "flex"
    assert backend_on_gpu(8, triton=True) == (
        "dense", "FlexAttention takes heads of at least 16 on a GPU, these have 8",
    )  # fmt: skip
    assert backend_on_gpu(64, triton=False) == (
        "dense", "this GPU has no Triton to compile FlexAttention with",
    )  # fmt: skip


def test_several_timesteps_per_ar_step():
    sequence = sequence_of(shared([20, 40, 4]), copies=3)
    inputs = random_inputs(sequence, 2)
    for ours, naive in zip(*(run(A(sequence), inputs) for A in (SegmentAttend, DenseAttend)), strict=True):
        assert error(ours, naive) < 5e-6


def test_bf16_segments_are_as_exact_as_torch():
    """Measured against float32: no more than half as much again of torch's own bf16 error."""
    sequence = sequence_of(shared([45, 7, 74, 64, 66]))
    inputs = random_inputs(sequence, 2)
    exact = run(DenseAttend(sequence), inputs)
    rounded = [x.bfloat16() for x in inputs]
    ours, torchs = (run(A(sequence), rounded) for A in (SegmentAttend, DenseAttend))
    for mine, other, truth in zip(ours, torchs, exact, strict=True):
        assert (mine.float() - truth).norm() < 1.5 * (other.float() - truth).norm()


def test_segments_are_deterministic():
    sequence = sequence_of(per_image())
    inputs = random_inputs(sequence, 3)
    first, second = (run(SegmentAttend(sequence), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@settings(max_examples=30)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(1, 3))
def test_row_blocks_tell_the_mask(sizes: list[int], copies: int):
    """Blocks are a partition of the rows; columns and bias of a block say exactly what its rows see."""
    sequence = sequence_of(shared(sizes, rows=1), copies)
    mask = dense_mask(sequence.clean, sequence.ar_step)
    rebuilt, covered = torch.zeros_like(mask), 0
    for block in row_blocks(mask, sequence.boundaries):
        assert block.start == covered
        covered = block.end
        columns = torch.cat([torch.arange(a, b) for a, b in block.columns])
        rebuilt[:, :, block.start : block.end, columns] = block.bias == 0 if block.bias is not None else True
    assert covered == sequence.num_tokens
    assert torch.equal(rebuilt, mask)


def test_flex_equals_dense():
    sequence = sequence_of(shared([30, 20, 14]))
    q, k, v = random_inputs(sequence, 2)
    with torch.no_grad():
        assert error(FlexAttend(sequence)(0, q, k, v), DenseAttend(sequence)(0, q, k, v)) < 2e-6


@pytest.mark.parametrize("images_in_mask", [None, 1, 3])
def test_bf16_without_gradient_equals_float32(images_in_mask: int | None):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, HEADS, n, HEAD_DIM, generator=generator) for n in (20, 30, 30))
    mask = None
    if images_in_mask is not None:
        mask = torch.rand(images_in_mask, 1, 20, 30, generator=generator) < 0.5
        mask[..., 0] = True
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    rounded = attend_without_gradient(*(x.bfloat16() for x in (q, k, v)), mask)
    assert error(rounded, exact) < 0.02


def test_gelu_and_derivative():
    """Against torch's in float64; more numbers than a chunk, far into both tails."""
    h = torch.linspace(-12, 12, 2**18 + 1000, dtype=torch.float64).requires_grad_()
    F.gelu(h, approximate="tanh").sum().backward()
    ours = h.detach().float()
    activation = gelu_and_derivative_(ours)
    assert (activation - F.gelu(h, approximate="tanh")).abs().max() < 2e-6
    assert (ours - h.grad).abs().max() < 3e-6


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_feed_forward_equals_the_plain_layers(precision: torch.dtype):
    """In float32 to rounding; in bf16 no further from float32 than the plain layers under autocast."""
    torch.manual_seed(0)
    layer, x, grad = FeedForward(48, 192), torch.randn(2, 70, 48), torch.randn(2, 70, 48)

    def plain(x: Tensor) -> Tensor:
        return layer.fc2(F.gelu(layer.fc1(x), approximate="tanh"))

    def values(forward, dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.clone().requires_grad_(), *layer.parameters()]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            out = forward(inputs[0])
            with torch.no_grad():
                without_gradient = forward(x)
        return [out.detach(), without_gradient, *torch.autograd.grad(out, inputs, grad.to(out.dtype))]

    exact = values(plain, torch.float32)
    reference = exact if precision == torch.float32 else values(plain, precision)
    for ours, other, truth in zip(values(layer, precision), reference, exact, strict=True):
        assert ours.dtype == other.dtype
        if precision == torch.float32:
            assert error(ours, truth) < 2e-6
        else:
            assert (ours.float() - truth).norm() < 1.25 * (other.float() - truth).norm()


@pytest.mark.parametrize("conditioning", ["in_context", "adaln_zero"])
@pytest.mark.parametrize("split", ["per_batch", "per_image"])
def test_model_predicts_and_learns_the_same(conditioning, split):
    """Through the whole model: predictions to 1e-5 and gradients to 1e-4 of the dense naive path."""
    config = ModelConfig(
        hidden_size=32, depth=3, num_heads=2, num_class_tokens=4, num_classes=5, token_dim=6,
        grid_height=8, grid_width=10, conditioning=conditioning,
    )  # fmt: skip
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    plan = plan_batch(
        FactorizationConfig(split=split), 8, 10, seed=1, split_index=0, sample_indices=[0, 1, 2]
    )
    clean, noised = (torch.randn(3, 80, 6, generator=generator) for _ in range(2))
    timesteps = torch.tensor([[1], [300], [999]])
    sequence = pack_training(torch.arange(3), config.num_condition_tokens, clean, noised, plan, timesteps)
    results = []
    for backend in ("dense", "segments"):
        prediction = model(sequence, backend=backend).image
        grads = torch.autograd.grad(prediction.square().mean(), list(model.parameters()))
        results.append((prediction.detach(), grads))
    (naive, naive_grads), (ours, our_grads) = results
    assert error(ours, naive) < 1e-5
    for (name, _), a, b in zip(model.named_parameters(), our_grads, naive_grads, strict=True):
        if not name.endswith("k_norm.bias"):  # mathematically zero
            assert error(a, b) < 1e-4, name
