"""Where a run's records go besides log.jsonl: TensorBoard, Weights & Biases, trackio.

Each is an optional package, imported when a run uses it. A run that goes on is the same run there: its id is
kept in the run's folder, and every record carries the number of images seen, by which charts are drawn.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from causalfusion.errors import UserError
from causalfusion.files import write_whole

IDS_FILE = "log_ids.json"
"""File in a run's folder with the run's id in each tool that has ids."""
PROJECT = "causalfusion"
"""Project of the runs, unless WANDB_PROJECT names another."""


class Logger(Protocol):
    """A place for numbers and pictures. Its methods may raise anything: the caller decides what follows."""

    where: Path | str
    """For messages."""

    def scalars(self, values: Mapping[str, float], images_seen: int) -> None: ...

    def picture(self, name: str, file: Path, images_seen: int) -> None: ...

    def close(self) -> None: ...


def check_installed(names: Sequence[str]) -> None:
    """Raises UserError for a tool that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.log_to names {name}, which is not installed; install it: {_INSTALL[name]}"
            )


def open_loggers(
    names: Sequence[str], run: Path, images_seen: int, settings: Mapping[str, Any]
) -> list[Logger]:
    """The loggers of a run that goes on from `images_seen` images. Raises UserError for a tool that is not
    installed, or refuses to begin."""
    check_installed(names)
    made: list[Logger] = []
    for name in names:
        try:
            made.append(_KINDS[name](run, images_seen, settings))
        except (OSError, UserError):
            raise
        except Exception as error:  # no account, no network, ...
            raise UserError(
                f"{name} does not begin ({' '.join(str(error).split())[:200]}); see its settings, or leave "
                "it out of train.log_to"
            ) from None
    return made


class TensorBoard:
    """Event files in RUN/tensorboard; records after those that a run goes on from are marked as removed."""

    def __init__(self, run: Path, images_seen: int, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.where: Path | str = run / "tensorboard"
        self._board = SummaryWriter(str(self.where), purge_step=images_seen + 1)
        if settings and not images_seen:
            rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
            self._board.add_text("settings", f"| setting | value |\n| --- | --- |\n{rows}", 0)

    def scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, images_seen)

    def picture(self, name: str, file: Path, images_seen: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(file) as picture:
            self._board.add_image(name, np.array(picture.convert("RGB")), images_seen, dataformats="HWC")

    def close(self) -> None:
        self._board.close()


class WandB:
    """A run of Weights & Biases, with its usual variables (WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, ...)."""

    def __init__(self, run: Path, images_seen: int, settings: Mapping[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(f"wandb cannot be imported ({error}); install it anew") from None
        self.where: Path | str = "wandb"
        self._make_picture = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=id_of(run, "wandb"),
            name=run.name,
            dir=str(run),
            config=dict(settings),
            resume="allow",
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("images_seen")
        self._run.define_metric("*", step_metric="images_seen")

    def scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        self._run.log({**values, "images_seen": images_seen})

    def picture(self, name: str, file: Path, images_seen: int) -> None:
        self._run.log({name: self._make_picture(str(file)), "images_seen": images_seen})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio, in its local database (TRACKIO_DIR), or a space that its variables name."""

    def __init__(self, run: Path, images_seen: int, settings: Mapping[str, Any]) -> None:
        try:
            import trackio  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(f"trackio cannot be imported ({error}); install it anew") from None
        self.where: Path | str = "trackio"
        self._make_picture = trackio.Image
        self._run = trackio.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=f"{run.name}-{id_of(run, 'trackio')}",
            config=dict(settings),
            resume="allow",
            embed=False,
        )

    def scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        self._run.log(dict(values), step=images_seen)

    def picture(self, name: str, file: Path, images_seen: int) -> None:
        self._run.log({name: self._make_picture(str(file))}, step=images_seen)

    def close(self) -> None:
        self._run.finish()


_INSTALL = {
    "tensorboard": "pip install tensorboard -c constraints.txt",
    "wandb": "pip install 'causalfusion[logs]' -c constraints.txt",
    "trackio": "pip install 'causalfusion[trackio]'",
}
"""trackio asks for an older pillow than this project is tested with."""
_KINDS = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def id_of(run: Path, tool: str) -> str:
    """The run's id in a tool: kept in its folder, so that a run that goes on is the same run there."""
    file = run / IDS_FILE
    try:
        ids = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or a damaged file
        ids = {}
    if not isinstance(ids, dict) or not isinstance(ids.get(tool), str):
        ids = {**(ids if isinstance(ids, dict) else {}), tool: secrets.token_hex(4)}
        write_whole(file, json.dumps(ids) + "\n")
    return ids[tool]
