"""Settings of a distillation: a student that takes a few diffusion steps where its teacher takes many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from causalfusion.errors import check, check_values

MOST_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    teacher: str = ""
    """The model to distil: a model folder, a training run (its last checkpoint), or the name of a packaged
    model. Empty: ordinary training."""
    steps: int = 0
    """Diffusion steps that the student takes in each AR step, K, 1 to 4."""
    teacher_steps: int = 8
    """Steps, n, in which the teacher goes through each of the K parts of the path."""
    ahead: int = 1
    """Steps that the teacher takes in a training step before the student's own jump is the target, 1 to n: 1
    is consistency distillation; with n, the target is the teacher's whole way."""
    guidance_scale: float = 1.0
    """Guidance scale of the teacher, which the student has inside: it is sampled without guidance."""
    teacher_hash: Annotated[str, Parameter(parse=False)] = ""
    """SHA-256 of the teacher's weights, filled in when a run begins."""

    def __post_init__(self) -> None:
        check_values(self, "distill")
        least = 1 if self.teacher else 0
        in_range = least <= self.steps <= MOST_STEPS
        check(in_range, "distill.steps", self.steps, f"1 to {MOST_STEPS}")
        check(self.teacher_steps >= 1, "distill.teacher_steps", self.teacher_steps, "at least 1")
        expected = f"1 to teacher_steps {self.teacher_steps}"
        check(1 <= self.ahead <= self.teacher_steps, "distill.ahead", self.ahead, expected)
        check(self.guidance_scale >= 0, "distill.guidance_scale", self.guidance_scale, "0 or more")
