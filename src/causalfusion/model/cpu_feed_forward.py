"""A linear layer, tanh-GELU and a linear layer, in a form that a CPU computes fast.

torch's tanh-GELU spends most of its time in an exact tanh. With tanh(u) = 2σ(2u) - 1,

    gelu(h) = h σ(2u),   2u = 2√(2/π) (h + 0.044715 h³),
    gelu'(h) = σ(2u) + gelu(h) (1 - σ(2u)) d(2u)/dh,

needs one sigmoid for value and derivative. The derivative is taken in the forward pass, while everything is
in the processor's cache, and kept in place of h, so that the backward pass is a single product.

Shape letters: B images, T tokens, D width, M rows, F width of the hidden layer.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from causalfusion.machine.runtime import computes_bfloat16

GeluForm = Literal["fused", "in place", "torch"]
"""`fused`: oneDNN's linear layer with GELU; `in place`: `gelu_` after torch's linear layer; `torch`: its own
GELU after it."""
LINEAR = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715 * LINEAR
FEW_ROWS = 16
"""With fewer rows, oneDNN's pass costs more than it saves on any CPU."""
TRAINING_CHUNK = 2**18
"""Numbers that are worked on at a time in training; `causalfusion estimate` counts with the buffers of it."""
CHUNK = 2**16
"""Numbers that a thread works on at a time: a few float32 buffers of this size fit into a core's cache."""


def feed_forward(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """x (B, T, D) -> (B, T, D), in the precision of autocast where it is on."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    x, w1, b1, w2, b2 = (tensor.to(dtype) for tensor in (x, w1, b1, w2, b2))
    if torch.is_grad_enabled():
        return _FeedForward.apply(x, w1, b1, w2, b2)  # pyright: ignore[reportReturnType]
    return F.linear(_linear_gelu(x, w1, b1), w2, b2)


def runs_here(x: Tensor) -> bool:
    """True for inputs that `feed_forward` computes: on a CPU, not in float64, outside of torch.compile."""
    return x.device.type == "cpu" and x.dtype != torch.float64 and not torch.compiler.is_compiling()


class _FeedForward(torch.autograd.Function):
    """Both layers as one node, so that the hidden layer's memory is its own to overwrite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        h = F.linear(x, w1, b1)
        activation = gelu_and_derivative_(h)
        ctx.save_for_backward(x, w1, w2, h, activation)
        return F.linear(activation, w2, b2)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, ...]:
        x, w1, w2, derivative, activation = ctx.saved_tensors
        grad = grad_outputs[0].flatten(0, -2)
        grad_h = torch.mm(grad, w2).mul_(derivative.flatten(0, -2))
        return (
            torch.mm(grad_h, w1).view_as(x),
            torch.mm(grad_h.t(), x.flatten(0, -2)),
            grad_h.sum(0),
            torch.mm(grad.t(), activation.flatten(0, -2)),
            grad.sum(0),
        )


def gelu_and_derivative_(h: Tensor) -> Tensor:
    """gelu(h) as a new tensor; h itself becomes gelu'(h). Computed in float32 and rounded once."""
    assert h.is_contiguous()
    activation = torch.empty_like(h)
    linear = torch.tensor(LINEAR)
    buffers = torch.empty(4, min(TRAINING_CHUNK, h.numel()))
    for h_part, activation_part in zip(
        h.view(-1).split(TRAINING_CHUNK), activation.view(-1).split(TRAINING_CHUNK), strict=True
    ):
        x, value, sigmoid, slope = buffers[:, : h_part.numel()]
        x.copy_(h_part)
        torch.addcmul(linear, x, x, value=CUBIC, out=sigmoid).mul_(x).sigmoid_()
        torch.addcmul(linear, x, x, value=3 * CUBIC, out=slope)
        torch.mul(x, sigmoid, out=value)
        activation_part.copy_(value)
        slope.mul_(value)
        h_part.copy_(slope.addcmul_(slope, sigmoid, value=-1).add_(sigmoid))
    return activation


def gelu_(h: Tensor) -> Tensor:
    """gelu(h) in place of h, float32."""
    chunk, linear = max(1, min(CHUNK * torch.get_num_threads(), h.numel())), torch.tensor(LINEAR)
    buffer = torch.empty(chunk)
    for part in h.view(-1).split(chunk):
        sigmoid = buffer[: part.numel()]
        torch.addcmul(linear, part, part, value=CUBIC, out=sigmoid).mul_(part).sigmoid_()
        part.mul_(sigmoid)
    return h


def gelu_form(dtype: torch.dtype = torch.float32, rows: int = FEW_ROWS) -> GeluForm:
    """How the first layer and its GELU are computed without gradients. By the kind of CPU, not by a clock, so
    that a machine always gives the same numbers; docs/performance.md has the measurement."""
    onednn = torch.backends.mkldnn.is_available()
    if rows < FEW_ROWS and dtype == torch.float32:
        return "torch"
    if dtype == torch.bfloat16:
        return "fused" if computes_bfloat16() else "torch"
    if dtype != torch.float32:
        return "fused" if onednn else "torch"
    return "fused" if onednn and torch.backends.cpu.get_cpu_capability() != "AVX2" else "in place"


def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    form = gelu_form(x.dtype, x.numel() // x.shape[-1])
    if form == "fused":
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh")
    h = F.linear(x, weight, bias)
    return gelu_(h) if form == "in place" else F.gelu(h, approximate="tanh")
