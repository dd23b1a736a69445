"""Weight-only int8: the blocks' matrices as whole numbers with a scale for each row, by the package torchao.

Put on a model from outside, like compilation. A product turns the numbers back as it goes; what enters and
leaves stays in floating point, and so do embeddings, norms, biases and the layers outside the blocks.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from causalfusion.errors import UserError
from causalfusion.model.linear import is_quantized
from causalfusion.model.transformer import Transformer


def quantize_weights(model: Transformer) -> None:
    """Replace the weights of the blocks' linear layers, those of a per-token head's too. Raises UserError
    without torchao."""
    logging.disable(logging.WARNING)  # it tells of kernels for GPUs that it does not find
    try:
        from torchao.quantization import (  # pyright: ignore[reportMissingImports] - an extra
            Int8WeightOnlyConfig,
            quantize_,
        )
    except ImportError:
        raise UserError(
            "int8 weights need the package torchao, which is not installed: pip install 'causalfusion[int8]' "
            "-c constraints.txt"
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    config = Int8WeightOnlyConfig(set_inductor_config=False)
    parts: list[nn.Module] = list(model.each_block())
    if model.head is not None:
        parts.append(model.head)
    for part in parts:
        quantize_(part, config)


def bytes_of(model: nn.Module) -> int:
    """Memory of a model's parameters."""
    return sum(_bytes(parameter) for parameter in model.parameters())


def _bytes(tensor: Tensor) -> int:
    if not is_quantized(tensor):
        return tensor.numel() * tensor.element_size()
    names, _ = tensor.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]
    parts = (getattr(tensor, name) for name in names)
    return sum(_bytes(part) for part in parts if isinstance(part, torch.Tensor))
