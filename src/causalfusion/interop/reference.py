"""Replaying tensors that were recorded from the reference implementation, through our own code.

The format is that of `shared/parity/README.md`: for each model X a file X.weights.safetensors under the
official names, and any of X.train, X.infer, X.sample and X.loop; beside them, possibly, the noise schedules
and the autoencoder. Any sizes will do: they are read from the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from causalfusion.config import DiffusionConfig, ModelConfig
from causalfusion.diffusion.schedule import NoiseSchedule
from causalfusion.errors import UserError
from causalfusion.interop.official import CLASS_TABLE, convert_state_dict, official_name
from causalfusion.interop.recording import Check, Recording
from causalfusion.model.transformer import Transformer
from causalfusion.saved import load_strictly


@dataclass(frozen=True)
class Reference:
    """A recorded model under our names, and what its recordings share."""

    config: ModelConfig
    weights: dict[str, Tensor]
    patch_size: int
    class_dropout: float
    learnable_positions: bool
    num_class_rows: int
    """Of the reference's class table, which has no null row where it never drops labels."""
    schedule: NoiseSchedule

    def model(self) -> Transformer:
        """A fresh copy. Positions that the reference froze are frozen also where ours could learn them."""
        model = Transformer(self.config)
        load_strictly(model, self.weights, "the recorded weights")
        if self.config.position_embedding == "learnable":
            model.image_position.requires_grad_(self.learnable_positions)
        return model

    def official_tensors(self, model: Transformer, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by our parameter names, as the reference names and shapes them; fixed positions too."""
        official = {official_name(name): value for name, value in tensors.items()}
        official.setdefault("pos_embed", model.image_position.detach())
        for name in ("pos_embed", "cond_pos_embed"):
            official[name] = official[name][None]
        official[CLASS_TABLE] = official[CLASS_TABLE][: self.num_class_rows]
        return official


def read_reference(path: Path) -> Reference:
    """X.weights.safetensors; its constructor arguments must agree with the shapes of its weights."""
    recording = Recording(path)
    arguments = recording.json("config")

    def argument(name: str, default: Any = None) -> Any:
        value = arguments.get(name, default)
        if not isinstance(value, int | float):
            raise UserError(f"{path}: metadata config has {name} {value!r}; expected a number")
        return value

    frozen = not argument("trainable_pos", False)
    config, weights = convert_state_dict(
        recording.tensors,
        str(path),
        num_classes=argument("num_classes"),
        learnable_positions=None if frozen else True,
    )
    patch_size = argument("patch_size")
    inferred = {
        "hidden_size": config.hidden_size,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "num_cond_tokens": config.num_class_tokens,
        "input_size": config.grid_height * patch_size,
        "latent_channels": config.token_dim / patch_size**2,
    }
    for name, value in inferred.items():
        if argument(name) != value:
            raise UserError(f"{path}: metadata config has {name} {argument(name)}, its weights mean {value:g}")
    mlp_size = weights["blocks.0.mlp.fc1.weight"].shape[0]
    if int(config.hidden_size * argument("mlp_ratio", 4.0)) != mlp_size:
        raise UserError(f"{path}: metadata config has another mlp_ratio than an MLP of {mlp_size} means")
    return Reference(
        config=config,
        weights=weights,
        patch_size=patch_size,
        class_dropout=argument("class_dropout_prob", 0.0),
        learnable_positions=not frozen,
        num_class_rows=recording.tensors[CLASS_TABLE].shape[0],
        schedule=NoiseSchedule.from_config(DiffusionConfig()),
    )


def replay_reference(folder: Path) -> list[Check]:
    """Replay everything recorded in the folder, on the CPU in float32; UserError if it cannot be read.

    What is recorded but unknown to the replay, or breaks it off, is a check that failed.
    """
    from causalfusion.interop.reference_autoencoder import replay_autoencoder
    from causalfusion.interop.reference_generation import replay_inference, replay_sampling
    from causalfusion.interop.reference_loop import replay_loop
    from causalfusion.interop.reference_schedules import replay_schedules
    from causalfusion.interop.reference_training import replay_training

    weights = sorted(folder.glob("*.weights.safetensors"))
    if not weights:
        raise UserError(f"{folder} has no *.weights.safetensors; expected a folder of recorded tensors")
    checks: list[Check] = []
    replays = {
        "train": replay_training, "infer": replay_inference, "sample": replay_sampling, "loop": replay_loop
    }  # fmt: skip
    for path in weights:
        reference = read_reference(path)
        for kind, replay in replays.items():
            part = path.with_name(path.name.replace(".weights.", f".{kind}."))
            if part.is_file():
                checks += _replay(part, lambda recording, r=reference, f=replay: f(recording, r))
    if (folder / "schedules.safetensors").is_file():
        checks += _replay(folder / "schedules.safetensors", replay_schedules)
    if (folder / "autoencoder" / "vae.safetensors").is_file():
        checks += _replay(folder / "autoencoder" / "vae.safetensors", replay_autoencoder)
    return checks


def _replay(path: Path, replay: Callable[[Recording], None]) -> list[Check]:
    recording = Recording(path)
    try:
        replay(recording)
    except UserError:
        raise
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        # Recorded shapes that contradict one another, or a defect of ours: neither may look like a pass.
        reason = (str(error).splitlines() or [""])[0][:100]
        return [*recording.checks, Check(recording.name, f"broke off: {reason}", "not replayed", math.inf)]
    return recording.checks + recording.unknown()
