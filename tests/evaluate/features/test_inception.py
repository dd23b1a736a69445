"""The Inception-v3 of FID, against torch-fidelity's numbers (`python -m benchmarks.compare_inception`); and
the files that its weights come from."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from causalfusion.errors import UserError
from causalfusion.evaluate.features.inception import (
    FILE_NAME,
    URL,
    InceptionExtractor,
    find_inception_weights,
    load_inception_network,
)
from causalfusion.evaluate.features.inception_network import (
    InceptionNetwork,
    preprocess,
    resize_bilinear_legacy,
)
from causalfusion.evaluate.features.open import open_extractor

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "compare_inception.py"


def script() -> ModuleType:
    """The comparison: its weights and images are the ones that the numbers below are of."""
    spec = importlib.util.spec_from_file_location("compare_inception", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def comparison() -> ModuleType:
    return script()


@pytest.fixture(scope="module")
def weights(comparison) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in InceptionNetwork().state_dict().items()}
    return comparison.random_weights(shapes, comparison.GOLDEN_SEED)


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory) -> Path:
    """As the public file: a state dict, without batch normalization's counters."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}, path)
    return path


@pytest.fixture(scope="module")
def extractor(file) -> InceptionExtractor:
    return InceptionExtractor(file)


def test_the_layout_is_that_of_the_public_weights(comparison, weights):
    """Names and shapes of all 23.9 million numbers, as the other implementation has them."""
    shapes = {k: tuple(v.shape) for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    assert comparison.hash_names(shapes) == "d84f693f2abd7fea"
    with torch.device("meta"):
        assert sum(p.numel() for p in InceptionNetwork().parameters()) == 23850960
    assert shapes["fc.weight"] == (1008, 2048) and shapes["Conv2d_1a_3x3.bn.running_var"] == (32,)


def test_features_are_those_of_an_independent_implementation(comparison, extractor):
    """In float64, by torch-fidelity 0.4.0."""
    images = comparison.random_images(1, *comparison.GOLDEN_SIZE, comparison.GOLDEN_SEED).numpy()
    found = extractor(images)
    assert found.spatial is not None and found.logits is not None
    for values, width, total, first in (
        (found.pool, 2048, 10596.1, [1.64188, 2.44886, 0, 0.00366804, 0, 0]),
        (found.spatial, 2023, 10013.1, [4.86933, 5.24884, 1.16958, 0.439828, 1.86703, 0]),
        (found.logits, 1008, -737.708, [-11.8008, -3.02254, 7.85604, -18.0812, -4.20521, -16.163]),
    ):
        assert values.shape == (1, width)
        assert values.sum(dtype=np.float64) == pytest.approx(total, rel=1e-4)
        assert values[0, :6] == pytest.approx(first, rel=1e-4, abs=1e-4 * float(abs(values).max()))


def test_an_image_alone_has_the_features_that_it_has_in_a_batch(extractor):
    images = np.random.default_rng(1).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    together, alone = extractor(images), extractor(images[1:2])
    assert np.allclose(together.pool[1], alone.pool[0], rtol=1e-4, atol=1e-4)
    grey = extractor(images[:1, ..., :1])
    assert np.allclose(grey.pool, extractor(np.repeat(images[:1, ..., :1], 3, axis=3)).pool, rtol=1e-5)


def resized_by_loops(image: np.ndarray, side: int) -> np.ndarray:
    """TensorFlow 1's rule, pixel by pixel: no half-pixel centres, the last pixel repeated."""
    height, width = image.shape
    result = np.empty((side, side))
    for i in range(side):
        for j in range(side):
            y, x = i * height / side, j * width / side
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] + (image[top, right] - image[top, left]) * (x - left)
            lower = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * (x - left)
            result[i, j] = upper + (lower - upper) * (y - top)
    return result


@pytest.mark.parametrize("size", [(5, 8), (16, 16), (40, 23)])
def test_resizing_is_tensorflows(size):
    image = np.random.default_rng(0).integers(0, 256, size).astype(np.float64)
    found = resize_bilinear_legacy(torch.from_numpy(image).float()[None, None], 16, 16)[0, 0]
    assert np.allclose(found, resized_by_loops(image, 16), rtol=0, atol=1e-3)


def test_the_input_range_is_that_of_the_graph():
    """(x - 128) / 128: 255 does not quite come to 1. An image of the network's size is not touched."""
    plain = torch.stack([torch.full((4, 4, 3), level, dtype=torch.uint8) for level in (0, 128, 255)])
    assert preprocess(plain).amax(dim=(1, 2, 3)).tolist() == [-1.0, 0.0, 127 / 128]
    whole = torch.randint(0, 256, (1, 299, 299, 3), dtype=torch.uint8)
    assert torch.equal(preprocess(whole), (whole.permute(0, 3, 1, 2).float() - 128) / 128)


def test_a_file_of_either_kind_is_the_same_network(weights, file, extractor, tmp_path):
    """With the counters that some files have; other weights have another fingerprint."""
    save_file(weights, tmp_path / "weights.safetensors")
    again = InceptionExtractor(tmp_path / "weights.safetensors")
    assert again.fingerprint == extractor.fingerprint and again.name == "inception"
    changed = {**weights, "fc.bias": weights["fc.bias"] + 1}
    torch.save(changed, tmp_path / "changed.pth")
    other = open_extractor(f"inception:{tmp_path / 'changed.pth'}")
    assert other.fingerprint != extractor.fingerprint


def test_wrong_files_are_refused_in_one_line(weights, tmp_path):
    lacking = {k: v for k, v in weights.items() if k != "Mixed_6d.branch1x1.conv.weight"}
    cases = {
        "none.pth": (None, "do not exist; expected a state dict"),
        "text.pth": (b"no weights", r"cannot be read \(.*expected a state dict"),
        "text.safetensors": (b"no weights", "cannot be read"),
        "empty.pth": (b"", "cannot be read"),
        "list.pth": ([1, 2], "hold something else"),
        "lacking.pth": (lacking, "lacks weight Mixed_6d.branch1x1.conv.weight; expected the weights of"),
        "other.pth": ({**weights, "AuxLogits.fc.bias": torch.zeros(2)}, "weight AuxLogits.fc.bias; expected"),
        "small.pth": ({**weights, "fc.bias": torch.zeros(1000)}, r"fc\.bias.*1000.*expected the weights of"),
    }  # fmt: skip
    for name, (content, message) in cases.items():
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(UserError, match=message) as refusal:
            load_inception_network(path)
        assert "\n" not in str(refusal.value) and name in str(refusal.value)
        path.unlink(missing_ok=True)


def test_the_public_file_is_fetched_once_and_its_hash_checked(tmp_path, monkeypatch):
    """From a folder that stands for the release; the name ends with the first digits of the hash."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()[:8]
    release = tmp_path / f"network-{digest}.pth"
    release.write_bytes(content)
    found = find_inception_weights(release.as_uri())
    assert found == tmp_path / "hub" / "checkpoints" / release.name and found.read_bytes() == content
    release.unlink()
    assert find_inception_weights(release.as_uri()) == found, "it is there already"
    found.write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"is damaged: its SHA-256 begins with .* expected {digest}; remove"):
        find_inception_weights(release.as_uri())
    found.unlink()
    with pytest.raises(UserError, match=r"cannot be downloaded .* or give --features inception:FILE"):
        find_inception_weights(release.as_uri())
    release.write_bytes(b"another")
    with pytest.raises(UserError, match="invalid hash value"):
        find_inception_weights(release.as_uri())
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())


def test_the_usual_release_is_meant():
    assert URL.endswith(f"/fid_weights/{FILE_NAME}") and FILE_NAME == "pt_inception-2015-12-05-6726825d.pth"
