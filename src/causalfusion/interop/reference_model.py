"""A recorded model: its weights under our names, and the settings that its recordings share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from causalfusion.config import DiffusionConfig, ModelConfig
from causalfusion.diffusion.ddpm import DDPM
from causalfusion.errors import UserError
from causalfusion.interop.official import CLASS_TABLE, convert_state_dict, official_name
from causalfusion.interop.recording import Recording
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import load_strictly


@dataclass(frozen=True)
class Reference:
    """A recorded model of the reference implementation."""

    config: ModelConfig
    weights: dict[str, Tensor]
    patch_size: int
    class_dropout: float
    learnable_positions: bool
    num_class_rows: int
    """Rows of the reference's class table, which has no null row if labels are never dropped."""
    process: DDPM

    def model(self) -> Transformer:
        """A new copy of the model. Positions that the reference froze are frozen, even if ours could learn
        them."""
        model = Transformer(self.config)
        load_strictly(model, self.weights, "the recorded weights")
        if self.config.position_embedding == "learnable":
            model.image_position.requires_grad_(self.learnable_positions)
        return model

    def official_tensors(self, model: Transformer, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by our parameter names, renamed and reshaped as in the reference, with fixed positions."""
        official = {official_name(name): value for name, value in tensors.items()}
        official.setdefault("pos_embed", model.image_position.detach())
        for name in ("pos_embed", "cond_pos_embed"):
            official[name] = official[name][None]
        official[CLASS_TABLE] = official[CLASS_TABLE][: self.num_class_rows]
        return official


def read_reference(path: Path) -> Reference:
    """The model in X.weights.safetensors. Raises UserError if its constructor arguments contradict the shapes
    of its weights."""
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
            raise UserError(
                f"{path}: metadata config has {name} {argument(name)}, its weights mean {value:g}"
            )
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
        process=DDPM(DiffusionConfig()),
    )
