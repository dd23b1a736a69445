"""docs/images/architecture.png: the rooms of the package, and who imports whom.

    python -m benchmarks.architecture

Rooms stand on the floor that the imports allow: a room imports from lower floors and from rooms to its left.
Sizes are lines of code; lines between rooms are imports, as thick as there are many.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "causalfusion"
FLOORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ground", ("errors", "files", "weight_files", "rng", "config", "machine")),
    ("what comes in", ("data", "codec")),
    (
        "the method",
        (
            "factorization",
            "sequence",
            "elements",
            "documents",
            "rows",
            "mask",
            "model",
            "diffusion",
            "losses",
        ),
    ),
    ("models in use", ("saved", "estimate", "pictures", "generate", "encoders", "train", "show")),
    ("figures", ("evaluate", "autoencode", "study", "planner", "probe", "interop", "doctor")),
    ("doors", ("app", "demo", "commands", "vocabulary", "cli")),
)
WIDTH = 1.55 * max(len(rooms) for _, rooms in FLOORS)
"""Of the picture, with room for the boxes of every floor, each 1.44 wide."""
COLORS = ("#8a8f98", "#4c8b6b", "#c0504d", "#3f6fb0", "#8a5fa8", "#b98022")


def files_of(room: str) -> list[Path]:
    folder = SOURCE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [SOURCE / f"{room}.py"]


def imports_of(room: str) -> Counter[str]:
    """How many files of the room import from each other room."""
    found: Counter[str] = Counter()
    for path in files_of(room):
        nodes = ast.walk(ast.parse(path.read_text()))
        names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        modules = {name.split(".")[1] for name in names if name.startswith("causalfusion.")}
        found.update(modules - {room})
    return found


def draw(target: Path) -> None:
    figure, axes = plt.subplots(figsize=(1.5 + WIDTH, 8.6), dpi=110)
    centres: dict[str, tuple[float, float]] = {}
    for floor, (name, rooms) in enumerate(FLOORS):
        axes.text(-0.1, floor, name, ha="right", va="center", fontsize=11, color=COLORS[floor])
        width = WIDTH / len(rooms)
        for place, room in enumerate(rooms):
            centres[room] = (place * width + width / 2, floor)
    for room, (x, y) in centres.items():
        for other, count in imports_of(room).items():
            if other not in centres or other in ("errors", "config", "files"):  # all use them
                continue
            line = FancyArrowPatch(
                (x, y - 0.2 if centres[other][1] < y else y), centres[other],
                connectionstyle="arc3,rad=0.08", arrowstyle="-", color=COLORS[int(y)], alpha=0.32,
                linewidth=0.5 + 0.35 * count, zorder=1,
            )  # fmt: skip
            axes.add_patch(line)
    for room, (x, y) in centres.items():
        lines = sum(len(path.read_text().splitlines()) for path in files_of(room))
        box = FancyBboxPatch(
            (x - 0.72, y - 0.21), 1.44, 0.42, boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor="white", edgecolor=COLORS[int(y)], linewidth=1.6, zorder=2,
        )  # fmt: skip
        axes.add_patch(box)
        label = f"{room}/" if (SOURCE / room).is_dir() else f"{room}.py"
        axes.text(x, y + 0.05, label, ha="center", va="center", fontsize=9.5, zorder=3)
        axes.text(
            x, y - 0.12, f"{lines:,} lines", ha="center", va="center", fontsize=8, color="#666", zorder=3
        )
    axes.set_xlim(-1.5, WIDTH + 0.1)
    axes.set_ylim(-0.5, len(FLOORS) - 0.4)
    axes.axis("off")
    figure.savefig(target, bbox_inches="tight", facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    draw(ROOT / "docs" / "images" / "architecture.png")
