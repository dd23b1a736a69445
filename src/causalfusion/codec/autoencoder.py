"""Opening an autoencoder: a diffusers folder, a hub id, or a KL autoencoder's original checkpoint.

A folder tells its class: one of diffusers' (`AutoencoderKL`, `AutoencoderDC`, `AutoencoderRAE`), or the
autoencoder of fixed variance. Its own `scaling_factor` is not used: the scale is a setting of the codec
alone.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from causalfusion.codec.codec import Autoencoder
from causalfusion.codec.deterministic import DeterministicAutoencoder
from causalfusion.errors import UserError, brief
from causalfusion.machine.skeleton import skeleton
from causalfusion.weight_files import read_pickle, share_saved

SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_EXPECTED = "a diffusers folder, an original checkpoint file, or a hub id such as owner/name"


@dataclass(frozen=True)
class OpenedAutoencoder:
    """An autoencoder with its sizes."""

    network: Any
    """An `Autoencoder`, in evaluation mode, without gradients."""
    latent_channels: int
    downsample: int
    """Image pixels per latent pixel, along a side."""
    image_channels: int
    image_size: tuple[int, int] | None = None
    """(height, width) of the only images that it takes; None: any multiple of `downsample`."""


def open_autoencoder(path: str) -> OpenedAutoencoder:
    """The autoencoder in a folder, a file, or on the hub. Raises UserError."""
    place = Path(path).expanduser()
    if place.is_dir():
        network = _from_folder(place)
    elif place.is_file():
        network = _from_checkpoint(place)
    elif _HUB_ID.fullmatch(path) and place.suffix not in SUFFIXES:
        network = _from_hub(path)
    else:
        raise UserError(f"the autoencoder {path} does not exist; expected {_EXPECTED}")
    return opened_network(network, path)


def opened_network(network: Any, path: str) -> OpenedAutoencoder:
    """An autoencoder of one of the known classes with its sizes; `path`: its name in messages. Raises
    UserError."""
    if type(network).__name__ not in _KINDS:
        raise UserError(
            f"the autoencoder {path} is of the class {type(network).__name__}; expected one of "
            f"{', '.join(_KINDS)}"
        )
    network.eval().requires_grad_(False)
    writes = getattr(network.config, "out_channels", None)
    if writes is not None and network.config.in_channels != writes:
        raise UserError(
            f"the autoencoder {path} reads {network.config.in_channels} image channels and writes "
            f"{writes}; expected the same number"
        )
    return _KINDS[type(network).__name__].opened(network, path)


def _opened_kl(network: Any, path: str) -> OpenedAutoencoder:
    config = network.config
    downsample = 2 ** (len(config.block_out_channels) - 1)
    return OpenedAutoencoder(network, config.latent_channels, downsample, config.in_channels)


def _opened_dc(network: Any, path: str) -> OpenedAutoencoder:
    config, downsample = network.config, network.spatial_compression_ratio
    own = DeterministicAutoencoder(network)
    return OpenedAutoencoder(own, config.latent_channels, downsample, config.in_channels)


def _opened_rae(network: Any, path: str) -> OpenedAutoencoder:
    config, side = network.config, network.decoder_image_size
    if not config.reshape_to_2d:
        raise UserError(
            f"the autoencoder {path} gives its latents as a row of tokens; expected reshape_to_2d true in "
            "its config.json"
        )
    own = DeterministicAutoencoder(network, low=0, high=1)
    channels, patch = config.encoder_hidden_size, network.decoder_patch_size
    return OpenedAutoencoder(own, channels, patch, config.num_channels, (side, side))


def _opened_fixed_variance(network: Any, path: str) -> OpenedAutoencoder:
    config = network.config
    size = (config.image_height, config.image_width)
    return OpenedAutoencoder(network, config.latent_channels, config.patch_size, config.in_channels, size)


def _kl_class() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL


def _dc_class() -> Any:
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

    return AutoencoderDC


def _rae_class() -> Any:
    from diffusers.models.autoencoders.autoencoder_rae import AutoencoderRAE

    return AutoencoderRAE


def _fixed_variance_class() -> Any:
    from causalfusion.codec.fixed_variance import FixedVarianceAutoencoder

    return FixedVarianceAutoencoder


@dataclass(frozen=True)
class _Kind:
    load_class: Callable[[], Any]
    """Imports the class, which takes seconds. Raises ImportError where diffusers is too old for it."""
    opened: Callable[[Any, str], OpenedAutoencoder]


_KINDS = {
    "AutoencoderKL": _Kind(_kl_class, _opened_kl),
    "AutoencoderDC": _Kind(_dc_class, _opened_dc),
    "AutoencoderRAE": _Kind(_rae_class, _opened_rae),
    "FixedVarianceAutoencoder": _Kind(_fixed_variance_class, _opened_fixed_variance),
}
"""Classes of autoencoders by the name in `config.json`."""


def fingerprint(autoencoder: Autoencoder) -> str:
    """SHA-256 of all weights in the order of their names, whatever kind of file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(autoencoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_autoencoder(autoencoder: Any, folder: Path) -> None:
    """Write an autoencoder as a diffusers folder."""
    autoencoder.save_pretrained(folder)
    share_saved(folder)


def _from_folder(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise UserError(
            f"the autoencoder's folder {folder} has no config.json; expected a diffusers autoencoder "
            "(in a whole pipeline: its folder vae)"
        )
    try:
        return _from_pretrained(str(folder), local=True)
    except UserError:
        raise
    except Exception as error:  # diffusers, safetensors and json raise many kinds
        raise UserError(
            f"the autoencoder in {folder} cannot be read ({brief(error)}); it is damaged or incomplete"
        ) from error


def _from_hub(name: str) -> Any:
    from huggingface_hub import HfApi

    try:
        return _from_pretrained(name, local=True, pickles=False)
    except UserError:
        raise
    except Exception:  # not in the local cache
        pass
    try:
        # A single request first: loading would retry for minutes without a network.
        HfApi().model_info(name, timeout=20)
        return _from_pretrained(name, local=False, pickles=False)
    except UserError:
        raise
    except Exception as error:  # no network, no such repository, no access, no such file
        raise UserError(
            f"the autoencoder {name} is neither a folder nor a file here, and the hub does not give it "
            f"({brief(error)}); expected {_EXPECTED}"
        ) from error


def _class_named(kind: object, name: str) -> Any:
    """The class of an autoencoder by its name in a config.json. Raises UserError."""
    if kind not in _KINDS:
        raise UserError(f"the autoencoder {name} is of the class {kind}; expected one of {', '.join(_KINDS)}")
    try:
        return _KINDS[str(kind)].load_class()
    except ImportError as error:
        raise UserError(
            f"the autoencoder {name} is of the class {kind}, which the installed diffusers lacks "
            f"({brief(error)}); install a newer one"
        ) from None


def _from_pretrained(name: str, *, local: bool, pickles: bool = True) -> Any:
    """`pickles`: read pickled weights where there are no others, which only a user's own folder may hold."""
    with warnings.catch_warnings():  # diffusers passes an argument that huggingface_hub no longer uses
        warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument is deprecated")
        kind = _kl_class().load_config(name, local_files_only=local).get("_class_name")
    cls = _class_named(kind, name)
    autoencoder, loaded = cls.from_pretrained(
        name,
        local_files_only=local,
        low_cpu_mem_usage=False,
        output_loading_info=True,
        torch_dtype=torch.float32,
        use_safetensors=None if pickles else True,
    )
    # Diffusers would only warn, and continue with random weights.
    for word, keys in (("lacks", loaded["missing_keys"]), ("has the unexpected", loaded["unexpected_keys"])):
        if keys:
            raise UserError(
                f"the autoencoder {name} {word} weight {min(keys)}; its files do not fit its config"
            )
    return autoencoder


def _from_checkpoint(file: Path) -> Any:
    from causalfusion.codec.kl_autoencoder import convert_kl_autoencoder, unwrap_checkpoint

    if file.suffix not in SUFFIXES:
        raise UserError(
            f"the autoencoder {file} ends in {file.suffix or 'nothing'}; expected {', '.join(SUFFIXES)}"
        )
    weights, settings = convert_kl_autoencoder(unwrap_checkpoint(_read_file(file), str(file)))
    try:
        with skeleton():  # avoids drawing random weights only to discard them
            autoencoder = _kl_class()(**settings)
        autoencoder.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the weights in {file} do not fit together ({brief(error)}); not a KL autoencoder's"
        ) from error
    return autoencoder


def _read_file(file: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.suffix != ".safetensors":
        return read_pickle(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read ({brief(error)}); it is damaged or cut short") from error
