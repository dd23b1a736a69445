"""The output of a training: some lines at its beginning, then one every few seconds."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from causalfusion.config import RunConfig
from causalfusion.data.sizes import counts_of
from causalfusion.estimate.show import announce
from causalfusion.machine.processes import World
from causalfusion.machine.progress import ProgressLine, in_digits, tell
from causalfusion.model.projector import is_of_projector
from causalfusion.model.transformer import Transformer, count_parameters
from causalfusion.train.clock import Clock
from causalfusion.train.feed import TrainingData
from causalfusion.train.trainer import StepResult


class Display:
    """Lines of one process; `show` is off in all but the main one."""

    def __init__(self, config: RunConfig, world: World, images_seen: int, *, show: bool, peak: float) -> None:
        self.world, self.on_screen, self.peak = world, show, peak
        self.has_text = config.model.vocab_size > 0 and config.learns_text
        self.aligned = bool(config.align.encoder)
        what = "documents" if config.data.has_documents else "images"
        batch = config.train.batch_size
        total = -(-config.train.images // batch) * batch  # the last batch is whole, too
        self.line = ProgressLine(total, images_seen, enabled=show, what=what)
        self.clock = Clock()
        self.recent: list[StepResult] = []

    def after_step(self, result: StepResult, images: int, flops: float) -> None:
        self.clock.add(images, flops)
        if not result.skipped:
            self.recent.append(result)

    def show(self, images_seen: int, *, seconds_left: float = math.inf, force: bool = False) -> None:
        """Print a line if it is time for one: the mean loss since the last line, rate, memory, time left."""
        if not (self.line.due() or (force and self.on_screen)) or not self.recent:
            return
        images_per_second, rate, _ = self.clock.read()
        count = len(self.recent)
        if self.has_text:
            text = sum(r.text_loss for r in self.recent) / count
            image = sum(r.image_loss for r in self.recent) / count
            shown = f"image {image:.4f}  text {text:.3f}" if image else f"text {text:.3f}"
        else:
            shown = f"loss {sum(r.image_loss if self.aligned else r.loss for r in self.recent) / count:.4f}"
        if self.aligned:
            shown += f"  alignment {sum(r.alignment for r in self.recent) / count:.3f}"
        share = rate / (self.peak * self.world.size)
        shown += f"  {in_digits(images_per_second)} images/s  {share:.0%} of peak FLOP/s"
        shown += f"  {memory_in_use(self.world.device) / 1e9:.1f} GB"
        self.line.show(images_seen, shown, force=force, limit=seconds_left)
        self.recent.clear()

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.on_screen:
            self.line.close()
            tell(text)


def beginning(
    folder: Path, data: TrainingData, model: Transformer, world: World, images_seen: int
) -> list[str]:
    """The lines before the first step: the run, what it costs, and where it goes on from."""
    config = data.config
    classes = config.model.num_classes
    held_out = f" and {len(data.held_out):,} held out" if len(data.held_out) else ""
    own = [p for n, p in model.named_parameters() if not is_of_projector(n)]
    in_all, num_parameters = sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)
    of_them = f" of {in_all:,}" if num_parameters < in_all else ""
    lines = [
        f"{folder}: {num_parameters:,}{of_them} parameters, {config.model.num_tokens} tokens of "
        f"{config.model.token_dim}, {len(data.train_indices):,} training {data.examples}{held_out}, "
        f"{classes} class{'es' * (classes != 1)}, "
        f"{world.size} process{'es' * (world.size > 1)} on {world.device}"
    ]
    if config.align.encoder:
        layer, beside = config.align.layer_of(config.model.depth), count_parameters(model) - num_parameters
        lines.append(
            f"layer {layer} is aligned with {config.align.encoder}, {config.align.feature_dim} features, "
            f"through {beside:,} parameters more"
        )
    if data.grids is not None:
        lines.append(_sizes(counts_of(data.grids, data.train_indices), config))
    lines += announce(config, world.size, world.device)
    if images_seen:
        lines.append(f"going on from {images_seen:,} {data.examples}")
    return lines


def _sizes(counts: dict[tuple[int, int], int], config: RunConfig) -> str:
    """The grids of images of any size, and their batches, in words; `counts`: images by rows and columns of
    tokens."""
    (rows, columns), most = max(counts.items(), key=lambda item: item[1])
    tokens = [rows * columns for rows, columns in counts]
    if config.data.batches == "padded":
        how = "; a batch's rows are filled up to its longest image"
    elif config.data.batches == "packed":
        how = f"; several in a row of up to {config.data.packed_tokens} tokens"
    else:
        few = sum(count for count in counts.values() if count < config.train.batch_size)
        how = f"; {few:,} in grids of less than a batch, which repeats them" if few else ""
    return (
        f"images of {len(counts)} grids of {min(tokens)} to {max(tokens)} tokens, {most:,} of them of "
        f"{columns}x{rows} (width x height){how}"
    )


def memory_in_use(device: torch.device) -> float:
    """Bytes: the most that was allocated on a GPU, or this process's resident memory (0 where the system does
    not tell)."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    import resource

    return float(pages * resource.getpagesize())
