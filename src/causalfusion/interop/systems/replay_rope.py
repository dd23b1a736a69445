"""Replaying FiTv2's tables of rotary positions on grids larger than that of training."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from causalfusion.config import RopeConfig
from causalfusion.errors import UserError
from causalfusion.factorization import places_of
from causalfusion.interop.recording import Recording
from causalfusion.interop.systems.fit import rope_of
from causalfusion.interop.systems.replay_fit import places_in
from causalfusion.interop.systems.replay_model import RecordedSystem
from causalfusion.model.positions import axis_frequencies, rotation_at


def replay_rope(r: Recording, system: RecordedSystem) -> None:
    """Replay X.rope: `hd<H>/<h>x<w>/<mode>/<decouple|joint>/...` and `online/<mode>/<decouple|joint>/...`."""
    theta, sides = float(r.setting("theta")), r.json("ori_max_pe_len")
    found = {m[0] for name in r.tensors if (m := re.match(r"hd\d+/\d+x\d+/[^/]+/(decouple|joint)/", name))}
    for there in sorted(found):
        head, size, mode, axes, _ = there.split("/")
        if size not in sides:
            raise UserError(f"{r.path}: metadata ori_max_pe_len lacks {size}")
        config = _rope(mode, axes, theta, int(sides[size]), f"{r.path}: {there}")
        grid = torch.tensor([[int(side) for side in size.split("x")]])
        # Their angles are products in float32, as large as the longer side.
        r.tolerances["position tables"] = max(3e-6, int(grid.max()) * 2.0**-23)
        _compare_table(r, there, config, int(head.removeprefix("hd")), grid, r[f"{head}/{size}/token_index"])
    _compare_online(r, system, theta, sides)


def _rope(mode: str, axes: str, theta: float, side: int, where: str) -> RopeConfig:
    settings = {"custom_freqs": mode, "decouple": axes == "decouple", "theta": theta, "ori_max_pe_len": side}
    return rope_of(settings, where, side)


def _compare_table(
    r: Recording, there: str, config: RopeConfig, head_dim: int, grid: Tensor, index: Tensor
) -> None:
    trained = config.trained_side, config.trained_side
    frequencies, factor = axis_frequencies(grid, config, head_dim, trained)
    r.compare(there + "freqs_h", frequencies[0, 0], "frequencies")
    r.compare(there + "freqs_w", frequencies[0, 1], "frequencies")
    r.compare(there + "factor", factor, "frequencies")
    places = places_of(index, int(grid[0, 1]))[None]
    cosines, sines = rotation_at(places, grid, config, head_dim, trained)[:, 0]
    r.compare(there + "cos", cosines, "position tables")
    r.compare(there + "sin", sines, "position tables")


def _compare_online(r: Recording, system: RecordedSystem, theta: float, sides: dict[str, int]) -> None:
    """Frequencies of each image by its own size. The side of training is not recorded with them: it is that
    of all other tables, or that of the model."""
    modes = {m[0] for name in r.tensors if (m := re.match(r"online/[^/]+/(decouple|joint)/", name))}
    if not modes:
        return
    places, grid = places_in(r["online/grid"]), r["online/size"][:, 0].long()
    known = sorted({int(side) for side in sides.values()})
    own = system.settings.get("ori_max_pe_len")
    candidates = [*known, *([own] if isinstance(own, int) else [])]
    for there in sorted(modes):
        _, mode, axes, _ = there.split("/")
        head_dim = r[there + "cos"].shape[-1]
        tables = []
        for side in candidates:
            config = _rope(mode, axes, theta, side, f"{r.path}: {there}")
            tables.append(rotation_at(places, grid, config, head_dim, (side, side)))
        cosines, sines = min(tables, key=lambda table: float((table[0] - r[there + "cos"]).abs().max()))
        r.compare(there + "cos", cosines, "position tables")
        r.compare(there + "sin", sines, "position tables")
