"""A recorded model of another system: its weights under our names, and passes through it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from causalfusion.codec.patches import patchify, unpatchify
from causalfusion.config import SampleConfig
from causalfusion.diffusion.process import Process, make_process
from causalfusion.errors import UserError
from causalfusion.factorization import places_of
from causalfusion.generate.context import prefill
from causalfusion.generate.tokens import StepEvent, generate_tokens
from causalfusion.interop.recording import Recording
from causalfusion.interop.reference_generation import RecordedNoise
from causalfusion.interop.systems.links import follow_back
from causalfusion.interop.systems.released import Released
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import load_strictly
from causalfusion.sequence import PackedSequence, class_segment, image_segment


@dataclass(frozen=True)
class RecordedSystem:
    """A released model with the weights of a recording, in the layout of its authors."""

    released: Released
    state: Mapping[str, Tensor]
    where: str
    settings: Mapping[str, object] = field(default_factory=dict)
    """Constructor arguments of its authors' code."""

    @cached_property
    def process(self) -> Process:
        return make_process(self.released.diffusion)

    @property
    def flow(self) -> bool:
        """True if its time runs from noise, 0, to data, 1, so that its output has the opposite sign of
        ours."""
        return self.released.diffusion.path != "ddpm"

    @property
    def sign(self) -> float:
        return -1.0 if self.flow else 1.0

    def model(self, factor: float = 1.0, scaled: Callable[[str], bool] | None = None) -> Transformer:
        """A new copy; weights of theirs whose names are `scaled` are multiplied by `factor`."""
        state = self.state
        if scaled is not None:
            state = {name: value * factor if scaled(name) else value for name, value in state.items()}
        model = Transformer(self.released.model)
        load_strictly(model, self.released.weights(state, self.where), self.where)
        fixed = self.released.model.position_embedding == "sincos"
        if scaled is not None and fixed and "pos_embed" in self.state and scaled("pos_embed"):
            model.image_position.mul_(factor)
        return model

    def official(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by our parameters' names, in their names and layout."""
        return follow_back(self.released.links, tensors)

    def levels(self, t: Tensor) -> Tensor:
        """Our noise levels of recorded times."""
        return 1 - t if self.flow else t

    def tokens(self, latents: Tensor) -> Tensor:
        """(..., B, L, P) of latents (..., B, C, h, w)."""
        flat = patchify(latents.flatten(0, -4), self.released.patch_size)
        return flat.unflatten(0, latents.shape[:-3])

    def latents(self, tokens: Tensor) -> Tensor:
        """(B, C, h, w) of tokens (B, L, P); of predictions with variances, (B, 2 C, h, w)."""
        config = self.released.model
        parts = tokens.split(config.token_dim, dim=-1)
        grid = config.grid_height, config.grid_width
        return torch.cat([unpatchify(part, *grid, self.released.patch_size) for part in parts], dim=1)

    def outputs(self, latents: Tensor) -> Tensor:
        """(..., B, L, P or 2 P): the inverse of `latents`, for recorded outputs."""
        patch = self.released.patch_size
        channels = self.released.model.token_dim // patch**2
        return torch.cat([self.tokens(part) for part in latents.split(channels, dim=-3)], dim=-1)

    def guided(self, channels: int) -> Tensor:
        """(P,) bool: the numbers of a token that belong to the first channels."""
        token_dim = self.released.model.token_dim
        return torch.arange(token_dim) % (token_dim // self.released.patch_size**2) < channels

    def predict(self, model: Transformer, latents: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Our model's output (B, L, P or 2 P) for noised latents at recorded times (B,)."""
        told = self.process.timesteps(self.levels(t))[:, None]
        tokens = self.tokens(latents)
        places = places_of(torch.arange(tokens.shape[1])[None], self.released.model.grid_width)
        ar_step = torch.ones(1, tokens.shape[1], dtype=torch.int64)
        image = image_segment("noised", tokens, ar_step, places, told)
        return model(PackedSequence((class_segment(labels, 0), image))).image

    def with_diffusion(self, **settings: object) -> RecordedSystem:
        """The same network under other settings of the process."""
        diffusion = replace(self.released.diffusion, **settings)  # type: ignore[arg-type]
        return replace(self, released=replace(self.released, diffusion=diffusion))


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of a module while the block runs, call by call."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append(output)

    handle = module.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


def scaled_parts(recording: Recording) -> tuple[float, Callable[[str], bool]]:
    """(factor, whether a weight is multiplied by it) of a recorded probe of the norms' epsilons."""
    parts = json_list(recording, "eps_probe_scaled")
    factor = float(recording.setting("eps_probe_factor"))
    return factor, lambda name: any(str(part) in name for part in parts)


def json_list(recording: Recording, key: str) -> list:
    """A JSON list in the metadata. Raises UserError."""
    try:
        values = json.loads(recording.setting(key))
    except ValueError as error:
        raise UserError(f"{recording.path}: metadata {key} is not valid JSON ({error})") from error
    if not isinstance(values, list):
        raise UserError(f"{recording.path}: metadata {key} is not a list")
    return values


def sample_freely(
    system: RecordedSystem,
    model: Transformer,
    config: SampleConfig,
    labels: Tensor,
    start: Tensor,
    added: Tensor | None = None,
) -> list[StepEvent]:
    """The diffusion steps of one AR step in our generation loop. `start` (B, L, P); `added`
    (K, B, L, P)."""
    order = torch.arange(start.shape[1])
    noise = RecordedNoise(start, start[None] if added is None else added, order)
    events: list[StepEvent] = []
    guided = system.guided(config.guided_channels) if config.guided_channels else None
    if guided is None and system.process.numbers_per_prediction == 2:
        guided = torch.ones(start.shape[2], dtype=torch.bool)
    generate_tokens(
        model,
        system.process,
        config,
        prefill(model, labels, config),
        order[None].expand(len(start), -1),
        [len(order)],
        noise,
        events.append,
        guided,
    )
    return events
