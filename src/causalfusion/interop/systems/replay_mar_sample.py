"""Replaying MAR's recorded generation by our own: masks, conditions, guided outputs, trajectories.

Shape letters: N images, L tokens, K iterations, n tokens of an iteration, S diffusion steps, P numbers of a
token, D width. Rows of a recording are tokens of all images, image by image, in raster order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from causalfusion.codec.patches import unpatchify
from causalfusion.config import SampleConfig
from causalfusion.errors import UserError
from causalfusion.factorization import masked_cosine_split
from causalfusion.generate.context import prefill
from causalfusion.generate.guidance import guidance_of_steps, guidance_scales
from causalfusion.generate.tokens import StepEvent, generate_tokens
from causalfusion.interop.recording import Recording
from causalfusion.interop.systems.replay_mar import Order, all_conditions, masks_left, process_of
from causalfusion.interop.systems.replay_model import RecordedSystem, json_list, outputs_of
from causalfusion.model.transformer import Predictions, Transformer

_SCHEDULES = {"linear": "masked_linear", "constant": "constant"}
_EXPLOSIVE = 1e-4
"""Tolerance of trajectories that begin at the noisiest timestep, where 1/sqrt(ᾱ) is 20000."""


class RecordedNoise:
    """Noise for `generate_tokens`, from the rows of every iteration."""

    def __init__(self, r: Recording, prefix: str, order: Order, num_images: int) -> None:
        self.r, self.prefix, self.order, self.num_images = r, prefix, order, num_images

    def initial(self, ar_step: int, positions: Tensor) -> Tensor:
        return self._placed(self.r[f"{self.prefix}iter{ar_step}/noise_init"], positions)

    def during(self, ar_step: int, num_steps: int, positions: Tensor) -> Tensor:
        return self._placed(self.r[f"{self.prefix}iter{ar_step}/noise_steps"], positions)

    def _placed(self, rows: Tensor, positions: Tensor) -> Tensor:
        """(..., N, n, P) of rows (..., N n, P), for tokens at these positions (N, n)."""
        tokens = self.order.ours(rows).unflatten(-2, (self.num_images, -1))
        rank = positions.argsort(dim=1).argsort(dim=1)
        index = rank[:, :, None].expand(-1, -1, tokens.shape[-1])
        return tokens.gather(-2, index.expand(tokens.shape))


@torch.no_grad()
def replay_sample(r: Recording, system: RecordedSystem) -> None:
    """Replay X.sample: every case as a free run of our generation loop."""
    model, cases = system.model(), json_list(r, "cases")
    for number, prefix in enumerate(r.prefixes("case")):
        if number >= len(cases) or not isinstance(cases[number], dict):
            raise UserError(f"{r.path}: metadata cases has no case {number}")
        config = _settings(cases[number], f"{r.path}: {prefix[:-1]}")
        usual = r.tolerances.get("sampling trajectories", 2e-5)
        process = process_of(system)
        steps = process.num_steps(config)[0]
        timesteps = process.sampler(config, steps).timesteps
        if timesteps[0] == process.schedule.num_timesteps - 1:
            r.tolerances["sampling trajectories"] = _EXPLOSIVE
        r.compare(prefix + "t_model", torch.tensor(timesteps), "timesteps")
        _Run(r, prefix, system, model, config).replay()
        r.tolerances["sampling trajectories"] = usual


def _settings(case: dict[str, Any], where: str) -> SampleConfig:
    schedule = case.get("cfg_schedule", "constant")
    if schedule not in _SCHEDULES:
        raise UserError(f"{where}: cfg_schedule is {schedule!r}; known are {list(_SCHEDULES)}")
    return SampleConfig(
        num_ar_steps=int(case["num_iter"]),
        step_sizes="masked_cosine",
        respacing=str(case["steps"]),
        temperature=float(case["temperature"]),
        guidance_scale=float(case["cfg"]),
        guidance_schedule=_SCHEDULES[schedule],  # type: ignore[arg-type]
    )


class _Run:
    """One recorded generation."""

    def __init__(
        self, r: Recording, prefix: str, system: RecordedSystem, model: Transformer, config: SampleConfig
    ) -> None:
        self.r, self.prefix, self.system, self.model, self.config = r, prefix, system, model, config
        self.numbers = Order(system)
        orders = r[prefix + "orders"]
        self.num_images, self.length = orders.shape
        # What stands first in their order stays masked longest.
        self.order = orders.flip(1)
        self.sizes = masked_cosine_split(self.length, config.num_ar_steps)
        null = torch.full((self.num_images,), model.config.null_label)
        self.labels = r[prefix + "labels"] if prefix + "labels" in r else null  # noqa: SIM401
        self.guided = config.guidance_scale != 1
        self.rows = torch.cat([self.labels, null]) if self.guided else self.labels

    def replay(self) -> None:
        r, prefix = self.r, self.prefix
        embedding = self.model.class_embedding
        assert embedding is not None, "a system with class tokens"
        vectors = embedding.get_submodule("table")(self.rows)
        r.compare(prefix + "class_embedding", vectors, "predictions")
        r.compare(prefix + "mask_len", masks_left(self.length, len(self.sizes)), "masks")
        masks = self._masks()
        r.compare(prefix + "mask_in", masks, "masks")
        weights = torch.tensor(guidance_scales(self.config, self.sizes))
        r.compare(prefix + "cfg_iter", weights, "AR weights")
        self._compare_conditions(masks)
        self._run_freely(masks)

    def _masks(self) -> Tensor:
        """(K, N, L): 1 where a token is masked when an iteration begins."""
        masks, mask, start = [], torch.ones(self.num_images, self.length), 0
        for size in self.sizes:
            masks.append(mask)
            mask = mask.scatter(1, self.order[:, start : start + size], 0.0)
            start += size
        return torch.stack(masks)

    def _compare_conditions(self, masks: Tensor) -> None:
        """The transformer's conditions for all tokens, from recorded ones."""
        if self.prefix + "tokens_in" not in self.r:
            return
        tokens = self.numbers.ours(self.r[self.prefix + "tokens_in"])
        halves = len(self.rows) // self.num_images
        for name, number in (("z_all_iter0", 0), ("z_all_last", len(self.sizes) - 1)):
            if self.prefix + name not in self.r:
                continue
            # Of many iterations only the last are recorded; none is known when the first begins.
            kept = number - len(self.sizes)
            known = tokens[kept] if -kept <= len(tokens) else torch.zeros_like(tokens[0])
            z = all_conditions(
                self.model, self.rows, known.repeat(halves, 1, 1), masks[number].repeat(halves, 1)
            )
            self.r.compare(self.prefix + name, z, "sampling trajectories")

    def _run_freely(self, masks: Tensor) -> None:
        events: list[list[StepEvent]] = [[] for _ in self.sizes]
        conditions: list[Tensor] = []

        def keep(_module: object, _inputs: object, output: Predictions) -> None:
            assert output.condition is not None, "a per-token head has conditions"
            conditions.append(output.condition)

        assert self.model.head is not None, "a system with a per-token head"
        handle = self.model.register_forward_hook(keep)
        try:
            with outputs_of(self.model.head.image_out) as outputs:
                tokens = generate_tokens(
                    self.model,
                    process_of(self.system),
                    self.config,
                    prefill(self.model, self.labels, self.config),
                    self.order,
                    self.sizes,
                    RecordedNoise(self.r, self.prefix, self.numbers, self.num_images),
                    lambda event: events[event.ar_step - 1].append(event),
                    torch.ones(self.model.config.token_dim, dtype=torch.bool),
                )
        finally:
            handle.remove()
        self._compare_tokens(tokens, masks)
        start = 0
        for number, of_step in enumerate(events):
            self._compare_iteration(
                number, of_step, conditions[number], outputs[start : start + len(of_step)]
            )
            start += len(of_step)

    def _compare_tokens(self, tokens: Tensor, masks: Tensor) -> None:
        """The result, and what was known of it when each iteration began."""
        raster = torch.zeros_like(tokens).scatter(1, self.order[:, :, None].expand_as(tokens), tokens)
        known = raster[None] * (1 - masks)[..., None]
        if self.prefix + "tokens_in" in self.r:
            recorded = len(self.r[self.prefix + "tokens_in"])
            ours = self.numbers.theirs(known[len(known) - recorded :])
            self.r.compare(self.prefix + "tokens_in", ours, "sampling trajectories")
        config, patch = self.model.config, self.system.released.patch_size
        final = unpatchify(raster, config.grid_height, config.grid_width, patch)
        self.r.compare(self.prefix + "final", final, "sampling trajectories")

    def _compare_iteration(
        self, number: int, events: list[StepEvent], condition: Tensor, outputs: list[Tensor]
    ) -> None:
        there = f"{self.prefix}iter{number}/"
        if not self.r.below(there):
            return
        positions = events[0].positions
        self.r.compare(
            there + "z_pred",
            self._rows(condition[:, : positions.shape[1]], positions),
            "sampling trajectories",
        )
        states = [self.numbers.theirs(self._rows(event.tokens, positions)) for event in events]
        self.r.compare_steps(there + "x_steps", states, "sampling trajectories")
        if there + "net_out_steps" not in self.r:
            return
        size = self.model.config.token_dim
        guidance = guidance_of_steps(
            self.config, self.sizes, process_of(self.system), torch.ones(size, dtype=torch.bool)
        )[number]
        combined = []
        for output in outputs:
            if self.guided and len(output) > self.num_images:
                conditional, unconditional = output.chunk(2)
                guided = guidance.combine(conditional, unconditional)
                assert guidance.numbers is not None, "a predicted variance is never guided"
                output = torch.cat([guided, torch.where(guidance.numbers, guided, unconditional)])
            combined.append(self.numbers.theirs(self._rows(output, positions)))
        self.r.compare_steps(there + "net_out_steps", combined, "sampling trajectories")

    def _rows(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(rows n, P) of tokens (rows, n, P) at positions (N, n): as rows of the recording."""
        raster = positions.argsort(dim=1).repeat(len(tokens) // len(positions), 1)
        return tokens.gather(1, raster[:, :, None].expand_as(tokens)).flatten(0, 1)
