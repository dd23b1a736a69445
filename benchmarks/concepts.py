"""docs/images/concepts-*.png: the two axes, the mask and plans, drawn from the code that the model runs on.

python -m benchmarks.concepts
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle

from causalfusion.config import OrderName
from causalfusion.factorization import Plan, ar_step_of, cosine_split, draw_order, even_split
from causalfusion.mask import dense_mask
from causalfusion.sequence import PackedSequence, pack_training

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
SIZES = [3, 2, 3]
"""Tokens of the AR steps in the picture of the mask."""
CLASS_TOKENS = 2
NOT_STARTED = "#e4e7ec"
RULES = ("#ffffff", "#b9c0cc", "#3f6fb0", "#c0504d")
"""No attention; clean to clean; noised to clean; noised to noised."""


def noise_of_tokens(num_tokens: int, num_ar_steps: int, diffusion_steps: int) -> np.ndarray:
    """(L, S x diffusion steps) noise level of each token during each call of the model: NaN before its AR
    step, 0 after it. Tokens stand in the order of the plan."""
    ar_step = ar_step_of(even_split(num_tokens, num_ar_steps)).numpy()
    levels = np.full((num_tokens, num_ar_steps * diffusion_steps), np.nan)
    for step in range(1, num_ar_steps + 1):
        first = (step - 1) * diffusion_steps
        levels[ar_step == step, first : first + diffusion_steps] = np.linspace(1, 0, diffusion_steps + 1)[:-1]
        levels[ar_step == step, first + diffusion_steps :] = 0
    return levels


def packed_row() -> PackedSequence:
    """The training sequence of one image, in AR steps of SIZES."""
    length = sum(SIZES)
    plan = Plan(torch.arange(length)[None], ar_step_of(SIZES)[None], grid_width=length)
    tokens = torch.zeros(1, length, 1)
    label = torch.zeros(1, dtype=torch.int64)
    return pack_training(label, CLASS_TOKENS, tokens, tokens, plan, torch.zeros(1, 1))


def rules_of_mask(row: PackedSequence) -> np.ndarray:
    """(T, T) which rule lets a query (row) see a key (column): 0 none, then as in RULES."""
    seen = dense_mask(row.clean, row.ar_step)[0, 0]
    to_clean = torch.where(row.clean[:, None], 1, 2)
    return (seen * torch.where(row.clean[None, :], to_clean, 3)).numpy()


def labels_of(row: PackedSequence) -> list[str]:
    """A name for each token: c class tokens, x clean, x~ noised, with the index of the token."""
    names = []
    for segment in row.segments:
        letter = {"class": "c", "clean": "x"}.get(segment.kind if segment.kind == "class" else segment.role)
        names += [f"${letter or chr(92) + 'tilde{x}'}_{{{i + 1}}}$" for i in range(segment.num_tokens)]
    return names


def draw_axes(target: Path) -> None:
    choices = ((1, 16, "S = 1: diffusion"), (4, 6, "S = 4: in between"), (16, 2, "S = L: token after token"))
    figure, panels = plt.subplots(1, 3, figsize=(12.5, 3.6), dpi=110, layout="constrained")
    colors = plt.get_cmap("viridis").with_extremes(bad=NOT_STARTED)
    for panel, (num_ar_steps, diffusion_steps, title) in zip(panels, choices, strict=True):
        panel.imshow(
            np.ma.masked_invalid(noise_of_tokens(16, num_ar_steps, diffusion_steps)),
            aspect="auto", cmap=colors, vmin=0, vmax=1, interpolation="nearest",
            extent=(0.5, num_ar_steps * diffusion_steps + 0.5, 16.5, 0.5),
        )  # fmt: skip
        ar_steps = f"{num_ar_steps} AR step{'s' * (num_ar_steps != 1)}"
        panel.set_title(f"{title}\n{ar_steps} x {diffusion_steps} diffusion steps", fontsize=11)
        panel.set_xlabel("call of the model")
        panel.set_yticks([1, 16])
    panels[0].set_ylabel("token, in the order of the plan")
    bar = figure.colorbar(ScalarMappable(cmap=colors), ax=panels, shrink=0.9, pad=0.01)
    bar.set_ticks([0, 1], labels=["clean", "noise"])
    figure.savefig(target, facecolor="white")
    plt.close(figure)


def draw_mask(target: Path) -> None:
    row = packed_row()
    names, edges = labels_of(row), row.boundaries
    figure, axes = plt.subplots(figsize=(7.6, 7.2), dpi=110, layout="constrained")
    axes.imshow(rules_of_mask(row), cmap=ListedColormap(RULES), vmin=0, vmax=3)
    steps = row.ar_step[0].numpy()
    for place in range(1, len(names)):
        new_segment = place in edges
        if new_segment or steps[place] != steps[place - 1]:
            for line in (axes.axhline, axes.axvline):
                line(place - 0.5, color="#333", linewidth=1.8 if new_segment else 0.5)
    for ticks in (axes.set_xticks, axes.set_yticks):
        ticks(range(len(names)), [f"{name}" for name in names], fontsize=10)
    axes.xaxis.tick_top()
    axes.set_xlabel("key: what is seen", labelpad=8)
    axes.set_ylabel("query: who looks")
    axes.xaxis.set_label_position("top")
    said = ("clean sees clean", "noised sees clean of earlier AR steps", "noised sees its own AR step")
    handles = [Rectangle((0, 0), 1, 1, color=color) for color in RULES[1:]]
    figure.legend(handles, said, loc="outside lower center", ncols=3, frameon=False, fontsize=9.5)
    figure.savefig(target, facecolor="white")
    plt.close(figure)


def draw_plans(target: Path) -> None:
    side, generator = 8, torch.Generator().manual_seed(0)
    even, cosine = even_split(side * side, 4), cosine_split(side * side, 4)
    choices: tuple[tuple[OrderName, list[int], str], ...] = (
        ("random", even, "random order, even"),
        ("random", cosine, "random, growing (cosine)"),
        ("raster", even, "raster"),
        ("block_raster", even, "block_raster"),
        ("dilated", even, "dilated"),
    )
    figure, panels = plt.subplots(1, len(choices), figsize=(13, 3.3), dpi=110, layout="constrained")
    for panel, (order, sizes, title) in zip(panels, choices, strict=True):
        grid = np.zeros(side * side, dtype=int)
        grid[draw_order(order, side, side, 4, generator).numpy()] = ar_step_of(sizes).numpy()
        panel.imshow(grid.reshape(side, side), cmap="viridis", vmin=1, vmax=4)
        for (y, x), step in np.ndenumerate(grid.reshape(side, side)):
            panel.text(x, y, str(step), ha="center", va="center", fontsize=8, color="w" if step < 3 else "k")
        panel.set_title(f"{title}\nsizes {', '.join(map(str, sizes))}", fontsize=10)
        panel.set_xticks([])
        panel.set_yticks([])
    figure.savefig(target, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    draw_axes(FOLDER / "concepts-axes.png")
    draw_mask(FOLDER / "concepts-mask.png")
    draw_plans(FOLDER / "concepts-plans.png")
