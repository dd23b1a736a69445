"""Features of FID's Inception-v3. Its public weights come from a file, torch.hub's cache, or a download."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from causalfusion.errors import UserError
from causalfusion.evaluate.features.extractor import (
    Features,
    Images,
    as_rgb,
    check_images,
    exact_inference,
    fingerprint_of,
    to_array,
)
from causalfusion.evaluate.features.inception_network import InceptionNetwork, preprocess
from causalfusion.files import sha256_of
from causalfusion.machine.skeleton import skeleton
from causalfusion.saved.folder import load_strictly

FILE_NAME = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE_NAME}"
PREPROCESSING = "RGB, TensorFlow 1 bilinear to 299x299, (x - 128) / 128"
_COUNTER = "num_batches_tracked"
"""Ending of the names of batch normalization's counters, which some files hold; they have no effect."""


class InceptionExtractor:
    """Pool (2048), spatial (2023) and logits (1008) of images of any size; see `InceptionOutput`."""

    name = "inception"
    image_size = None

    def __init__(self, path: Path, device: str = "cpu") -> None:
        model = load_inception_network(path)
        weights = {key: value for key, value in model.state_dict().items() if not key.endswith(_COUNTER)}
        self.fingerprint = fingerprint_of(PREPROCESSING, weights)
        self._device = torch.device(device)
        self._model = model.to(self._device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def __call__(self, images: Images, /) -> Features:
        check_images(images, self.name)
        with exact_inference():
            pixels = preprocess(torch.from_numpy(as_rgb(images)).to(self._device))
            output = self._model(pixels.contiguous(memory_format=torch.channels_last))
        return Features(to_array(output.pool), to_array(output.spatial), to_array(output.logits))


def load_inception_network(path: Path) -> InceptionNetwork:
    """The network in evaluation mode, from a state dict in a .pth or .safetensors file. Raises UserError for
    a file that cannot be read or holds another network."""
    weights = {key: value.float() for key, value in _read(path).items()}
    with skeleton():  # no random weights that would be overwritten
        model = InceptionNetwork()
    counters = {key: torch.tensor(0) for key in model.state_dict() if key.endswith(_COUNTER)}
    try:
        load_strictly(model, {**counters, **weights}, f"inception weights {path}", assign=True)
    except UserError as error:
        raise UserError(f"{str(error).split(';')[0]}; expected the weights of {URL}") from None
    return model.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    """The weights in a file. Raises UserError where it is missing or holds something else."""
    expected = f"expected a state dict, .pth or .safetensors, such as {URL}"
    if not path.is_file():
        raise UserError(f"inception weights {path} do not exist; {expected}")
    try:
        is_safe = path.suffix == ".safetensors"
        weights = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        is_foreign = isinstance(error, pickle.UnpicklingError)  # its own message fills a page
        reason = "it holds no weights" if is_foreign else " ".join(str(error).split())[:120]
        raise UserError(f"inception weights {path} cannot be read ({reason}); {expected}") from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"inception weights {path} hold something else; {expected}")
    return weights


def find_inception_weights(url: str = URL) -> Path:
    """Path of the released weights in torch.hub's cache, downloaded if they are missing. Raises UserError
    where they cannot be downloaded, and for a file whose SHA-256 is wrong."""
    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    expected = name.rsplit(".", 1)[0].rsplit("-", 1)[-1]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=expected)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"inception's weights are not at {path} and cannot be downloaded ({reason}); fetch {url} "
                "where there is a network and put it there, or give --features inception:FILE"
            ) from None
    found = sha256_of(path)
    if not found.startswith(expected):
        raise UserError(
            f"{path} is damaged: its SHA-256 begins with {found[:8]}, expected {expected}; remove the file"
        )
    return path
