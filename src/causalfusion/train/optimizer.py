"""AdamW as in the paper, or Muon beside it, their state on disk, and the learning rate as a function of
the images seen."""

from __future__ import annotations

import math
import warnings
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from causalfusion.config import TrainConfig
from causalfusion.errors import UserError
from causalfusion.machine.runtime import compute_dtype
from causalfusion.train.muon import Muon
from causalfusion.train.sharding import local_part, shard_like
from causalfusion.train.share_file import ShareReader
from causalfusion.train.soundness import check_layout, first_not_finite

_ADAMW, _MUON = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)
"""The state of a parameter."""


class AdamWWithMuon:
    """AdamW and Muon, each on its own parameters, with the interface of one optimizer."""

    def __init__(self, adamw: torch.optim.AdamW, muon: Muon) -> None:
        muon.state = adamw.state
        self.state, self.defaults = adamw.state, adamw.defaults
        self.parts = (adamw, muon)
        self.param_groups = [*adamw.param_groups, *muon.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)


AnyOptimizer = torch.optim.Optimizer | AdamWWithMuon


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    config: TrainConfig,
    of_text: Container[nn.Parameter] = (),
    hidden: Container[nn.Parameter] = (),
    factors: Mapping[nn.Parameter, float] | None = None,
) -> AnyOptimizer:
    """Fused AdamW; with `train.optimizer` muon, Muon for the matrices in `hidden`. The learning rate is set
    before every step (`set_rate`). Parameters `of_text` have one of their own, and those in `factors` that
    multiple of it. Raises UserError for a Muon
    without matrices."""
    trained = [p for p in parameters if p.requires_grad]
    matrices = hidden if config.optimizer == "muon" else ()
    adamw = torch.optim.AdamW(
        _groups([p for p in trained if p not in matrices], config, of_text, factors or {}),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    if config.optimizer == "adamw":
        return adamw
    by_muon = [p for p in trained if p in matrices]
    if not by_muon:
        raise UserError(
            f"train.optimizer is muon, and with train.trainable {config.trainable} no matrix inside a block "
            "is trained; expected adamw"
        )
    groups = _groups(by_muon, config, of_text, factors or {})
    muon = Muon(groups, config.lr, config.weight_decay, compute_dtype(config.precision))
    return AdamWWithMuon(adamw, muon)


def _groups(
    parameters: list[nn.Parameter],
    config: TrainConfig,
    of_text: Container[nn.Parameter],
    factors: Mapping[nn.Parameter, float],
) -> list[dict[str, Any]]:
    """Those of images, then those of text, each by their multiples of the learning rate."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in parameters:
        text, factor = parameter in of_text, factors.get(parameter, 1.0)
        groups.setdefault((text, factor * (config.text_lr_factor if text else 1.0)), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: item[0])
    return [{"params": part, "factor": factor} for (_, factor), part in ordered]


def set_rate(optimizer: AnyOptimizer, rate: float) -> None:
    """Give all parameters their learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def _fields(optimizer: AnyOptimizer) -> dict[Tensor, tuple[str, ...]]:
    """The names of each parameter's state."""
    return {
        parameter: _MUON if "momentum" in group else _ADAMW
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def _at_first(parameter: nn.Parameter, fields: Iterable[str]) -> dict[str, Tensor]:
    """The state that no step has touched yet: zeros."""
    return {
        field: torch.zeros(()) if field == "step" else torch.zeros_like(parameter.detach())
        for field in fields
    }


def optimizer_tensors(model: nn.Module, optimizer: AnyOptimizer) -> dict[str, Tensor]:
    """The moments and step counts by `parameter/field`, laid out as the parameters are: of every parameter
    that is trained."""
    tensors, fields = {}, _fields(optimizer)
    for name, parameter in _trained(model):
        state = optimizer.state.get(parameter) or _at_first(parameter, fields[parameter])
        tensors |= {f"{name}/{field}": torch.as_tensor(value) for field, value in state.items()}
    return tensors


def load_optimizer(
    model: nn.Module, optimizer: AnyOptimizer, file: Path, folder: Path, *, gaps: bool
) -> None:
    """Put the state back from a file of whole tensors, or from a folder of shares if there is one.

    `gaps`: parameters may be missing, as no step had touched them when an earlier version wrote the file.
    Raises UserError for a state that is not that of this model's parameters, or not finite.
    """
    named = dict(_trained(model))
    expected, fields = dict[str, Tensor](), _fields(optimizer)
    for name, parameter in named.items():
        expected |= {
            f"{name}/{field}": torch.zeros(()) if field == "step" else parameter.detach()
            for field in fields[parameter]
        }
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
        parameter = named[name]  # the fused AdamW counts its steps there, too
        optimizer.state[parameter][field] = value.to(parameter.device)


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
