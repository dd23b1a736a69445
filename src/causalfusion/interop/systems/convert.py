"""Model folders from what other systems' authors released, with the way they sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from causalfusion.config import FactorizationConfig, SampleConfig
from causalfusion.errors import UserError
from causalfusion.interop.official import downsample_of, infer_codec
from causalfusion.interop.official_file import OfficialFile, read_official
from causalfusion.interop.systems.diffusers_dit import FREQUENCIES_NOTE, read_diffusers_dit
from causalfusion.interop.systems.dit import read_dit, read_sit
from causalfusion.interop.systems.fit import read_fit
from causalfusion.interop.systems.fit_settings import settings_beside
from causalfusion.interop.systems.large_dit import read_large_dit
from causalfusion.interop.systems.latentlm import read_latentlm
from causalfusion.interop.systems.mar import read_mar
from causalfusion.interop.systems.released import Released
from causalfusion.saved.folder import ModelSpec

Reader = Callable[[Mapping[str, Tensor], Mapping[str, Any], str], Released]
READERS: dict[str, Reader] = {
    "dit": read_dit,
    "sit": read_sit,
    "large-dit": read_large_dit,
    "fit": read_fit,
    "mar": read_mar,
    "latentlm": read_latentlm,
}
_HEADS = ("num_heads", "n_heads", "encoder_num_heads", "decoder_num_heads")


@dataclass(frozen=True)
class ConvertedSystem:
    """A released model under our names."""

    spec: ModelSpec
    weights: dict[str, Tensor]
    """For generation: the EMA if the checkpoint has one."""
    raw: dict[str, Tensor] | None
    sampling: SampleConfig
    notes: list[str] = field(default_factory=list)
    """Assumptions that were made, one line each, for the user."""


def convert_system(
    system: str,
    path: Path,
    *,
    autoencoder: str = "",
    num_heads: int = 0,
    image_size: int = 0,
    patch_size: int = 0,
) -> ConvertedSystem:
    """Read a released checkpoint of a system in `READERS`; of dit, also a folder in diffusers' format. 0:
    what the checkpoint says, or the released models have. Raises UserError for any other file, and for a
    weight that is missing, unknown or of another shape."""
    notes: list[str] = []
    if path.is_dir():
        if system != "dit":
            raise UserError(f"{path} is a folder; expected the file of a checkpoint of {system}")
        state, settings = read_diffusers_dit(path)
        file = OfficialFile(ema=None, model=state, settings=settings)
        notes.append(FREQUENCIES_NOTE)
    else:
        file = read_official(path)
        file.require_finite(path)
    if system == "fit":
        beside, of_beside = settings_beside(path, file.states[0])
        file, notes = replace(file, settings={**beside, **file.settings}), [*notes, *of_beside]
    settings = _with_options(
        file.settings,
        num_heads=num_heads,
        image_size=image_size,
        patch_size=patch_size,
        downsample=_downsample(system, file.states[0]),
    )
    released = [_read(system, state, settings, str(path)) for state in file.states]
    weights = [one.weights(state, str(path)) for one, state in zip(released, file.states, strict=True)]
    first = released[0]
    if any(other.model != first.model for other in released):
        raise UserError(f"{path}: its ema and model weights are of different sizes; the file is damaged")
    codec, of_codec = infer_codec(first.model, {}, autoencoder=autoencoder, patch_size=first.patch_size)
    if image_size and codec.image_height not in (0, image_size):
        raise UserError(
            f"--image-size is {image_size}; the weights of {path} are of images of {codec.image_height} "
            "pixels: leave it out"
        )
    if patch_size and first.patch_size != patch_size:
        raise UserError(
            f"--patch-size is {patch_size}; the weights of {path} are of patches of {first.patch_size}: "
            "leave it out"
        )
    spec = ModelSpec(
        model=first.model,
        codec=codec,
        diffusion=first.diffusion,
        factorization=_factorization(first),
        origin=f"released {system} checkpoint {path.name}",
    )
    raw = weights[1] if len(weights) > 1 else None
    return ConvertedSystem(spec, weights[0], raw, first.sampling, [*notes, *of_codec])


def _read(system: str, state: Mapping[str, Tensor], settings: Mapping[str, Any], where: str) -> Released:
    try:
        return READERS[system](state, settings, where)
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(where) else f"{where}: {text}") from error
    except (RuntimeError, LookupError, ValueError, TypeError, ArithmeticError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where} is no checkpoint of {system}: its sizes do not fit ({reason})") from error


def _downsample(system: str, state: Mapping[str, Tensor]) -> int:
    """Pixels of a latent's side: those of SD's autoencoder, or of LatentLM's with so many channels."""
    last = state.get("final_layer.linear.weight")
    return downsample_of(len(last) if system == "latentlm" and last is not None else 4)


def _with_options(
    settings: Mapping[str, Any], *, num_heads: int, image_size: int, patch_size: int, downsample: int
) -> dict[str, Any]:
    """The settings with the user's, under the names of all systems."""
    complete = dict(settings)
    if num_heads:
        complete |= dict.fromkeys(_HEADS, num_heads)
    if patch_size:
        complete["patch_size"] = patch_size
    size = image_size or complete.get("image_size")
    if isinstance(size, int) and size >= downsample and (image_size or "input_size" not in complete):
        complete["input_size"] = size // downsample
        if image_size:
            side = complete["input_size"] // int(complete.get("patch_size") or 2)
            complete["context_size"] = side * side
    return complete


def _factorization(released: Released) -> FactorizationConfig:
    """How such a model was trained."""
    model = released.model
    if model.context == "bidirectional":
        return FactorizationConfig(
            distribution="mask_ratio", loss_weight="none", timesteps="per_token", timesteps_per_ar_step=4
        )
    if model.head.ask == "previous":
        return FactorizationConfig(
            distribution="fixed",
            num_ar_steps=model.num_tokens,
            order="raster",
            loss_weight="none",
            timesteps="per_token",
            timesteps_per_ar_step=4,
        )
    return FactorizationConfig(distribution="fixed", loss_weight="none")
