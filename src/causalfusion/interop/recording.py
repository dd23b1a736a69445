"""Files of tensors recorded from the reference implementation, and the comparison of ours with them.

Every tensor of a file is used as an input or compared; `unknown` reports the others, so that no recorded
tensor is ignored silently. NaN is never within a tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causalfusion.errors import UserError
from causalfusion.interop.official_file import parse_json, read_safetensors

TOLERANCES = {
    "masks": 0.0,
    "orders": 0.0,
    "labels": 0.0,
    "token ids": 0.0,
    "timesteps": 0.0,
    "noised tokens": 1e-6,
    "AR weights": 1e-6,
    "predictions": 1e-5,
    "caches": 1e-5,
    "squared errors": 5e-5,
    "losses": 5e-6,
    "gradients": 1e-4,
    "sampling trajectories": 2e-5,
    "parameters after steps": 5e-6,
    "EMA after steps": 5e-6,
    "noise schedules": 1e-12,
    "autoencoder": 2e-5,
    "fixed-variance autoencoder": 5e-6,
    "norm probes": 2e-5,
    "variational terms": 1e-5,
    "weighted losses": 1e-5,
    "path coefficients": 2e-6,
    "frequencies": 1e-6,
    "position tables": 3e-6,
    "not replayed": 0.0,
}
"""Largest error allowed for each quantity, relative to the recorded tensor's largest value."""

_ABSOLUTE = {
    "masks",
    "orders",
    "labels",
    "token ids",
    "timesteps",
    "parameters after steps",
    "EMA after steps",
    "position tables",
}
LEFT_OUT = "left out"
"""Quantity of a `Check` that is none: its note says what the replay leaves out on purpose."""


@dataclass(frozen=True)
class Check:
    """The comparison of one tensor of ours with the recorded one."""

    file: str
    """Name of the file without `.safetensors`."""
    tensor: str
    quantity: str
    """A key of `TOLERANCES`."""
    error: float
    note: str = ""
    """A deviation that the replay accepted in addition to the tolerance, or what it left out."""
    limit: float | None = None
    """The tolerance of this recording, where it has one of its own."""

    @property
    def tolerance(self) -> float:
        return TOLERANCES.get(self.quantity, 0.0) if self.limit is None else self.limit

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance

    @property
    def severity(self) -> float:
        """The error for ranking checks, with NaN as infinity."""
        return math.inf if math.isnan(self.error) else self.error


class Recording:
    """The tensors of one file; records which were used, and collects the checks."""

    def __init__(self, path: Path, folder: str = "", tolerances: Mapping[str, float] | None = None) -> None:
        """`folder`: its name in the report, where several are replayed. `tolerances`: those of this
        recording, which replace `TOLERANCES`."""
        name = path.name.removesuffix(".safetensors")
        self.path, self.name = path, f"{folder}/{name}" if folder else name
        self.tolerances = dict(tolerances or {})
        self.tensors, self.metadata = read_safetensors(path)
        self.used: set[str] = set()
        self.checks: list[Check] = []

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.tensors

    def __getitem__(self, tensor: str) -> Tensor:
        """A recorded tensor, which is then marked as used. Raises UserError if it is missing."""
        if tensor not in self.tensors:
            raise UserError(
                f"{self.path} lacks the tensor {tensor}; expected a recording as its README describes"
            )
        self.used.add(tensor)
        return self.tensors[tensor]

    def json(self, key: str) -> dict[str, Any]:
        """A JSON object in the metadata. Raises UserError."""
        return parse_json(self.setting(key), f"{self.path}: metadata {key}")

    def setting(self, key: str) -> str:
        """A text in the metadata. Raises UserError if it is missing."""
        if key not in self.metadata:
            raise UserError(
                f"{self.path} lacks the metadata {key}; expected a recording as its README describes"
            )
        return self.metadata[key]

    def prefixes(self, stem: str) -> list[str]:
        """`case0/`, `case1/`, ... for the stem `case`, in numerical order."""
        heads = {name.split("/")[0] for name in self.tensors if "/" in name}
        numbers = sorted(int(h.removeprefix(stem)) for h in heads if h.removeprefix(stem).isdecimal())
        return [f"{stem}{number}/" for number in numbers if f"{stem}{number}" in heads]

    def below(self, prefix: str) -> list[str]:
        """Names, without the prefix, of the tensors whose names begin with it."""
        return sorted(name.removeprefix(prefix) for name in self.tensors if name.startswith(prefix))

    def compare(self, tensor: str, ours: Tensor, quantity: str, variant: str = "") -> None:
        """Add a check if the tensor was recorded; `variant` names another way of computing it."""
        if tensor in self:
            self.check(f"{tensor} ({variant})" if variant else tensor, ours, self[tensor], quantity)

    def check(self, name: str, ours: Tensor, recorded: Tensor, quantity: str) -> None:
        """Add a check against a tensor that is derived from recorded ones."""
        self._add(name, quantity, _error(ours, recorded, relative=quantity not in _ABSOLUTE))

    def compare_steps(self, tensor: str, ours: Sequence[Tensor], quantity: str, variant: str = "") -> None:
        """Add a check of a trajectory, if it was recorded: the largest error of its steps, each relative to
        that step's largest value."""
        if tensor not in self:
            return
        recorded = self[tensor]
        errors = [_error(mine, theirs, relative=True) for mine, theirs in zip(ours, recorded, strict=False)]
        error = max(errors, default=0.0) if len(ours) == len(recorded) else math.inf
        error = math.nan if any(map(math.isnan, errors)) else error
        self._add(f"{tensor} ({variant})" if variant else tensor, quantity, error)

    def _add(self, name: str, quantity: str, error: float) -> None:
        self.checks.append(Check(self.name, name, quantity, error, limit=self.tolerances.get(quantity)))

    def unknown(self) -> list[Check]:
        """A failed check for every tensor that the replay neither used nor compared."""
        return [
            Check(self.name, tensor, "not replayed", math.inf)
            for tensor in sorted(self.tensors.keys() - self.used)
        ]


def replay_file(
    path: Path,
    replay: Callable[[Recording], None],
    folder: str = "",
    tolerances: Mapping[str, float] | None = None,
) -> list[Check]:
    """The checks that `replay` makes of a file. A recorded tensor that it does not know, or an error that
    aborts it, is a failed check."""
    recording = Recording(path, folder, tolerances)
    try:
        replay(recording)
    except UserError:
        raise
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        # Inconsistent recorded shapes, or a defect of ours: neither may pass as success.
        reason = (str(error).splitlines() or [""])[0][:100]
        return [*recording.checks, Check(recording.name, f"broke off: {reason}", "not replayed", math.inf)]
    return recording.checks + recording.unknown()


def _error(ours: Tensor, recorded: Tensor, *, relative: bool) -> float:
    """The largest absolute difference, divided by the largest recorded value if `relative`; infinite if the
    shapes differ."""
    if ours.shape != recorded.shape:
        return math.inf
    if not recorded.numel():
        return 0.0
    largest = (ours.detach().double() - recorded.double()).abs().max()
    scale = recorded.double().abs().max() if relative else torch.ones(())
    # If all recorded values are zero, the error is the absolute difference.
    return float(largest / scale if scale > 0 else largest)


def format_checks(checks: Sequence[Check]) -> str:
    """Checks as text: a table by quantity, a table by file, and the failed checks."""
    lines = [f"{'quantity':24}{'checks':>7}{'largest error':>15}{'tolerance':>11}  at"]
    notes = dict.fromkeys(f"{c.file}: {c.note}" for c in checks if c.note)
    checks = [c for c in checks if c.quantity != LEFT_OUT]
    for quantity in TOLERANCES:
        of_quantity = [c for c in checks if c.quantity == quantity]
        for tolerance in sorted({c.tolerance for c in of_quantity}, reverse=True):
            group = [c for c in of_quantity if c.tolerance == tolerance]
            worst = max(group, key=lambda c: c.severity)
            at = f"{worst.file} {worst.tensor}" if worst.error else ""
            verdict = "" if all(c.ok for c in group) else "FAILED "
            limit = f"{tolerance:.0e}" if tolerance else "exact"
            lines.append(f"{quantity:24}{len(group):7}{worst.error:15.1e}{limit:>11}  {verdict}{at}")
    lines += ["", f"{'file':24}{'checks':>7}{'failed':>8}  largest error, in tolerances"]
    for file in dict.fromkeys(c.file for c in checks):
        group = [c for c in checks if c.file == file]
        worst = max((c for c in group if c.tolerance), key=lambda c: c.severity / c.tolerance, default=None)
        largest = f"{worst.error / worst.tolerance:.2f} ({worst.tensor})" if worst else ""
        lines.append(f"{file:24}{len(group):7}{sum(not c.ok for c in group):8}  {largest}")
    if notes:
        lines += ["", *notes]
    failed = [c for c in checks if not c.ok]
    if failed:
        lines += ["", "over their tolerance:"]
        lines += [f"  {c.file} {c.tensor} ({c.quantity}): {c.error:.3g} > {c.tolerance:.0e}" for c in failed]
    return "\n".join(lines)
