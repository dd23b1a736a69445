"""Which objective a run has."""

from __future__ import annotations

from causalfusion.codec.tokenizer import Markers
from causalfusion.config import RunConfig
from causalfusion.diffusion.process import make_process
from causalfusion.machine.processes import World
from causalfusion.train.alignment import AlignedObjective
from causalfusion.train.captioning import CaptionObjective
from causalfusion.train.classification import ClassifyObjective
from causalfusion.train.distillation import DistillationObjective
from causalfusion.train.step import Objective


def make_objective(config: RunConfig, world: World, markers: Markers | None) -> Objective:
    """What the run minimises; a distillation's teacher is loaded."""
    process = make_process(config.diffusion)
    multiple = config.train.length_multiple or (64 if world.device.type == "cuda" else 1)
    if config.finetune.task == "classify":
        return ClassifyObjective.of(config, process, markers, multiple)
    if config.finetune.task == "caption":
        return CaptionObjective(config, process, markers, multiple)
    if config.align.encoder:
        return AlignedObjective(config, process, markers, multiple)
    if config.distill.teacher:
        return DistillationObjective.of(config, process, markers, multiple, world.device)
    return Objective(config, process, markers, multiple)
