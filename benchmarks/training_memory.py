"""`python -m benchmarks.training_memory`: what a train step keeps in memory, by size of the model.

State: 20 bytes a parameter, shared by the processes of a group under FSDP. Activations: counted, as the
storages that are alive between the forward and the backward pass, on models of the real width and of 2 and 4
layers; further layers keep as much as the third and fourth. bfloat16, 16x16 tokens of 16 numbers, 64 class
tokens, a split into 4 equal AR steps. Counted on the CPU, whose attention keeps about what a GPU's does.
"""

from __future__ import annotations

import argparse
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from causalfusion.config import ModelConfig, RunConfig
from causalfusion.config.recipes import load_layer
from causalfusion.diffusion.process import make_process
from causalfusion.estimate.optimizer import STATE_BYTES
from causalfusion.factorization import Plan, ar_step_of
from causalfusion.machine.skeleton import skeleton
from causalfusion.model.transformer import Transformer, count_parameters
from causalfusion.train.draws import Draws
from causalfusion.train.parallel import checkpoint_activations
from causalfusion.train.step import Objective, TokenBatch

Which = Literal["none", "selective", "full"]
SIZES = ("L", "XL", "H")
GIB = 2**30


class Kept(TorchDispatchMode):
    """Storages that are made within, and which of them are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        return out

    @property
    def num_bytes(self) -> int:
        return sum(size for reference, size in self.made.values() if not reference.expired())


def model_config(size: str, depth: int | None = None) -> ModelConfig:
    """A named size of the paper, on 256x256 images."""
    named = load_layer(size)["model"]
    return ModelConfig(
        **{**named, "depth": depth or named["depth"]}, num_class_tokens=64, num_classes=1000, token_dim=16,
        grid_height=16, grid_width=16,
    )  # fmt: skip


def kept_by(config: ModelConfig, which: Which, images: int) -> int:
    """Bytes alive after the forward pass of a micro-batch."""
    model = Transformer(config)
    checkpoint_activations(model, which)
    length = config.num_tokens
    tokens, noise = torch.randn(images, length, 16), torch.randn(images, 1, length, 16)
    order = torch.stack([torch.randperm(length) for _ in range(images)])
    plan = Plan(order, ar_step_of([length // 4] * 4)[None], config.grid_width)
    draws = Draws(plan, torch.randint(1000, (images, 1)), noise, torch.zeros(images, dtype=torch.bool))
    batch = TokenBatch(tokens, torch.zeros(images, dtype=torch.long), torch.arange(images))
    run = RunConfig(model=config)
    objective = Objective(run, make_process(run.diffusion))
    piece = objective.arrange(batch, draws)
    with Kept() as kept, torch.autocast("cpu", torch.bfloat16):
        errors = objective.errors(model, piece)
    held = kept.num_bytes
    del errors
    return held


def activations(size: str, which: Which) -> float:
    """Bytes that an image keeps for the backward pass of a model of this size."""
    shallow, deep = (_of_an_image(model_config(size, depth), which) for depth in (2, 4))
    depth = model_config(size).depth
    return deep + (deep - shallow) * (depth - 4) / 2


def _of_an_image(config: ModelConfig, which: Which) -> int:
    """Apart from what any batch keeps, such as weights in bfloat16."""
    return kept_by(config, which, 2) - kept_by(config, which, 1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_memory", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    names: tuple[Which, ...] = get_args(Which)
    print("| size | parameters | state, GiB | " + " | ".join(f"an image, {n}, MiB" for n in names) + " |")
    print("|---" * (3 + len(names)) + "|")
    for size in parser.parse_args().sizes:
        with skeleton():
            count = count_parameters(Transformer(model_config(size)))
        cells = [f"{activations(size, which) / 2**20:,.0f}" for which in names]
        state = f"{STATE_BYTES * count / GIB:.1f}"
        print(f"| {size} | {count / 1e6:,.0f}M | {state} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
