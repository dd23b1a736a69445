"""AdamW as in PAPER section 4, its state on disk, and the learning rate as a function of the images seen."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from causalfusion.config import TrainConfig
from causalfusion.train.sharding import share


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW; the learning rate is set before every step."""
    return torch.optim.AdamW(
        [p for p in parameters if p.requires_grad],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments and step counts by `parameter/field`, laid out as the parameters are."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, file: Path, folder: Path) -> None:
    """Put the state back from a file of whole tensors, or from a folder of shares if there is one."""
    named = dict(model.named_parameters())
    if folder.is_dir():
        tensors = _load_shares(named, folder)
    else:
        whole = load_file(file)
        tensors = {k: v if k.endswith("/step") else share(v, named[_parameter(k)]) for k, v in whole.items()}
    for key, value in tensors.items():
        parameter, field = named[_parameter(key)], key.rsplit("/", 1)[1]
        on_host = field == "step" and not optimizer.defaults.get("capturable") and not parameter.is_cuda
        optimizer.state[parameter][field] = value if on_host else value.to(parameter.device)


def _load_shares(named: dict[str, nn.Parameter], folder: Path) -> dict[str, Tensor]:
    import torch.distributed as dist
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(folder)
    stored = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {
        key: torch.zeros(()) if key.endswith("/step") else torch.zeros_like(named[_parameter(key)].detach())
        for key in stored
    }
    if not tensors:
        return {}
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that one process is but one
        load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    return tensors


def _parameter(key: str) -> str:
    return key.rsplit("/", 1)[0]


def learning_rate(config: TrainConfig, images_seen: int) -> float:
    """Linear warm-up over `warmup_images`, then constant or a cosine to zero at `images`."""
    if images_seen < config.warmup_images:
        return config.lr * (images_seen + config.batch_size) / (config.warmup_images + config.batch_size)
    if config.lr_schedule == "constant":
        return config.lr
    span = max(config.images - config.warmup_images, 1)
    progress = min((images_seen - config.warmup_images) / span, 1.0)
    return config.lr * (1 + math.cos(math.pi * progress)) / 2
