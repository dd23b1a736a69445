"""The forms of linear layer and tanh-GELU on a CPU against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from causalfusion.model import cpu_feed_forward
from causalfusion.model.cpu_feed_forward import GeluForm, feed_forward, gelu_, gelu_and_derivative_, gelu_form


def inputs(rows: int = 70, width: int = 24) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, rows, width), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("form", ["fused", "in place", "torch"])
def test_every_form_is_the_same_function(form: GeluForm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_feed_forward, "gelu_form", lambda dtype, rows: form)
    x, w1, b1, w2, b2 = inputs()
    with torch.no_grad():
        found = feed_forward(x, w1, b1, w2, b2)
    expected = F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2)
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize(
    ("capability", "form"), [("AVX2", "in place"), ("AVX512", "fused"), ("DEFAULT", "fused")]
)
def test_the_kind_of_cpu_decides(capability: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert gelu_form() == form and gelu_form(rows=4) == "torch"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert gelu_form() in ("in place", "torch")
    monkeypatch.setattr(cpu_feed_forward, "computes_bfloat16", lambda: False)
    assert gelu_form(torch.bfloat16) == "torch"


def test_the_size_of_a_chunk_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    h = torch.randn(3, 5000, generator=torch.Generator().manual_seed(1))
    whole, (value, slope) = gelu_(h.clone()), derivative(h)
    monkeypatch.setattr(cpu_feed_forward, "CHUNK", 512)
    monkeypatch.setattr(cpu_feed_forward, "TRAINING_CHUNK", 512)
    assert gelu_(h.clone()).equal(whole)
    again = derivative(h)
    assert again[0].equal(value) and again[1].equal(slope)


def derivative(h: Tensor) -> tuple[Tensor, Tensor]:
    slope = h.clone()
    return gelu_and_derivative_(slope), slope
