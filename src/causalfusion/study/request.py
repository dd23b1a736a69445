"""The options of the command `study`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from causalfusion.config.options import Device, require_at_least
from causalfusion.errors import UserError


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    data: str = "digits"
    """digits, shapes, cifar10, cifar10-small, or a TOML file that says how to train on the data and how to
    judge."""
    features: str = ""
    """The feature space of the Fréchet distance, as for evaluate; by default the data file's."""
    seeds: Sequence[int] = (0, 1, 2)
    """Each setting is trained once with each seed; tables give mean and standard deviation."""
    out: Path = Path("runs/study")
    """Folder of the runs and of the results."""
    workers: int = 1
    """Number of runs to train at once."""
    device: Device = "auto"

    def __post_init__(self) -> None:
        require_at_least(1, self, "workers")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"--seeds are {list(self.seeds)}; expected one or more different numbers")
