"""AdamW as in PAPER section 4, its state on disk, and the learning rate as a function of the images seen."""

from __future__ import annotations

import math
import warnings
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from causalfusion.config import TrainConfig
from causalfusion.errors import UserError
from causalfusion.train.sharding import local_part, shard_like
from causalfusion.train.share_file import ShareReader
from causalfusion.train.soundness import check_layout, first_not_finite

_FIELDS = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter."""


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: TrainConfig, of_text: Container[nn.Parameter] = ()
) -> torch.optim.AdamW:
    """Fused AdamW; the learning rate is set before every step (`set_rate`). Parameters `of_text` have one of
    their own."""
    trained = [p for p in parameters if p.requires_grad]
    parts = ([p for p in trained if p not in of_text], [p for p in trained if p in of_text])
    factors = (1.0, config.text_lr_factor)
    return torch.optim.AdamW(
        [{"params": part, "factor": factor} for part, factor in zip(parts, factors, strict=True) if part],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters their learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments and step counts by `parameter/field`, laid out as the parameters are: of every parameter
    that is trained. One that no step has touched yet has zeros, as the optimizer would begin with."""
    tensors = {}
    for name, parameter in _trained(model):
        state = optimizer.state.get(parameter) or {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(parameter.detach()),
            "exp_avg_sq": torch.zeros_like(parameter.detach()),
        }
        tensors |= {f"{name}/{field}": torch.as_tensor(value) for field, value in state.items()}
    return tensors


def load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, file: Path, folder: Path, *, gaps: bool
) -> None:
    """Put the state back from a file of whole tensors, or from a folder of shares if there is one.

    `gaps`: parameters may be missing, as no step had touched them when an earlier version wrote the file.
    Raises UserError for a state that is not that of this model's parameters, or not finite.
    """
    named = dict(_trained(model))
    expected: dict[str, Tensor] = {}
    for name, parameter in named.items():
        expected |= {f"{name}/{field}": parameter.detach() for field in _FIELDS[1:]}
        expected[f"{name}/step"] = torch.zeros(())
    if folder.is_dir():
        tensors, where = load_sharded(expected, folder, gaps=gaps), folder
    else:
        tensors, where = _read(file), file
        check_layout(tensors, _without_gaps(expected, tensors) if gaps else expected, str(file))
        tensors = {key: shard_like(value, expected[key]) for key, value in tensors.items()}
    wrong = first_not_finite(tensors.items()) or _first_negative(tensors)
    if wrong:
        raise UserError(f"{where}: {wrong} holds values that are not finite or not possible")
    for key, value in tensors.items():
        name, field = key.rsplit("/", 1)
        parameter = named[name]
        on_host = field == "step" and not optimizer.defaults.get("capturable") and not parameter.is_cuda
        optimizer.state[parameter][field] = value if on_host else value.to(parameter.device)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read ({error}); it is damaged or cut short") from error


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _first_negative(tensors: Mapping[str, Tensor]) -> str:
    """Name of a step count or a second moment below zero."""
    names = (name for name in tensors if name.endswith(("/step", "/exp_avg_sq")))
    return next((name for name in names if bool((local_part(tensors[name]) < 0).any())), "")


def _without_gaps(expected: dict[str, Tensor], stored: Iterable[str]) -> dict[str, Tensor]:
    """Only the parameters of which something is stored."""
    kept = {key.rsplit("/", 1)[0] for key in stored}
    return {key: value for key, value in expected.items() if key.rsplit("/", 1)[0] in kept}


def load_sharded(expected: dict[str, Tensor], folder: Path, *, gaps: bool) -> dict[str, Tensor]:
    """This process's part of the tensors in a folder of shares, laid out as the expected ones are."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = ShareReader(folder)
    stored = reader.layout()
    expected = _without_gaps(expected, stored) if gaps else expected
    check_layout(stored, expected, str(folder))
    if not expected:
        return {}
    tensors = {name: torch.zeros_like(value) for name, value in expected.items()}
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that one process is but one
        load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    return tensors


def learning_rate(config: TrainConfig, images_seen: int, seconds: float = 0.0) -> float:
    """Linear warm-up over `warmup_images`, then as `lr_schedule` says. The end of the run, at which falling
    rates arrive, is that of `images` or of `minutes` (of which `seconds` have passed), whichever is nearer.
    """
    if images_seen < config.warmup_images:
        return config.lr * (images_seen + config.batch_size) / (config.warmup_images + config.batch_size)
    if config.lr_schedule == "constant":
        return config.lr
    span = max(config.images - config.warmup_images, 1)
    progress = min((images_seen - config.warmup_images) / span, 1.0)
    if config.minutes:
        progress = max(progress, min(seconds / (60 * config.minutes), 1.0))
    if config.lr_schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * progress)) / 2
    return config.lr * min((1 - progress) / config.lr_decay, 1.0)
