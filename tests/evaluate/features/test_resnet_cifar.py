from __future__ import annotations

import io
import itertools
import json
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from causalfusion.encoders.resnet_cifar import ResNetCifarNetwork
from causalfusion.errors import UserError
from causalfusion.evaluate.features.resnet_cifar import (
    ResNetCifarExtractor,
    jpeg_round_trip,
    load_resnet_cifar_network,
)
from causalfusion.evaluate.measures.frechet import frechet_distance

SHARED = Path(__file__).resolve().parents[3].parent / "shared"
JUDGES = SHARED / "eval"
SHARD = SHARED / "data" / "cifar10" / "cifar10-test-000000.tar.gz"
needs_judges = pytest.mark.skipif(
    not (JUDGES / "report.json").exists() or not SHARD.exists(), reason=f"no judges or images under {SHARED}"
)


@cache
def first_images() -> tuple[np.ndarray, np.ndarray]:
    """The first 500 test images and labels, as the shard has them."""
    images, labels = [], []
    with tarfile.open(SHARD, "r|*") as tar:
        for member in itertools.islice(tar, 1000):
            file = tar.extractfile(member)
            assert file is not None
            if member.name.endswith(".jpg"):
                images.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
            else:
                labels.append(int(file.read()))
    return np.stack(images), np.array(labels)


@needs_judges
@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_recorded_logits_features_and_accuracy(name: str) -> None:
    report = json.loads((JUDGES / "report.json").read_text())[name]
    file = JUDGES / f"{name}_cifar10.safetensors"
    model, extractor = load_resnet_cifar_network(file), ResNetCifarExtractor(file)
    assert sum(p.numel() for p in model.parameters()) == report["params"]
    images, labels = first_images()
    assert labels[:3].tolist() == report["labels_first3"]
    first, every = extractor(images[:3]), extractor(images)
    assert first.logits is not None and every.logits is not None
    np.testing.assert_allclose(first.logits, report["logits_first3"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(first.pool[0, :8], report["feat_first_sample_first8"], rtol=0, atol=1e-5)
    # 500 of 10,000 images: three standard errors around the accuracy on all of them.
    accuracy = (every.logits.argmax(1) == labels).mean()
    assert accuracy == pytest.approx(report["test_acc_jpeg"], abs=0.053)


@needs_judges
def test_any_batch_size_agrees() -> None:
    extractor = ResNetCifarExtractor(JUDGES / "resnet20_cifar10.safetensors")
    images = first_images()[0][:7]
    whole, *parts = (extractor(batch).logits for batch in (images, images[:3], images[3:6], images[6:]))
    assert whole is not None
    np.testing.assert_allclose(np.concatenate([p for p in parts if p is not None]), whole, 1e-4, 1e-4)


@needs_judges
def test_jpeg_is_near_what_these_images_are_and_far_for_noise() -> None:
    """The images come from this very JPEG setting: a second pass changes them little, and noise much."""
    images = first_images()[0][:50]
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)

    def change(before: np.ndarray) -> float:
        return float(np.abs(jpeg_round_trip(before).astype(int) - before).mean())

    assert change(images) < 2 < 30 < change(noise)
    extractor = ResNetCifarExtractor(JUDGES / "resnet20_cifar10.safetensors")
    features = extractor(first_images()[0]).pool
    half = frechet_distance(features[:250], features[250:])
    assert half < frechet_distance(extractor(noise).pool, features[:250]) / 5


def test_a_plain_colour_survives_jpeg_in_shape_type_and_value() -> None:
    grey = np.full((2, 32, 32, 3), 128, dtype=np.uint8)
    assert np.array_equal(jpeg_round_trip(grey), grey)


def test_files_and_arrays_that_are_not_right_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_resnet_cifar_network(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(UserError, match="cannot be read"):
        load_resnet_cifar_network(tmp_path / "text.safetensors")
    weights = ResNetCifarNetwork(3).state_dict()
    del weights["layer2.1.bn2.bias"]
    save_file(weights, tmp_path / "partial.safetensors")
    with pytest.raises(UserError, match=r"layer2\.1\.bn2\.bias"):
        load_resnet_cifar_network(tmp_path / "partial.safetensors")
    save_file(ResNetCifarNetwork(1).state_dict(), tmp_path / "whole.safetensors")
    extractor = ResNetCifarExtractor(tmp_path / "whole.safetensors")
    with pytest.raises(UserError, match="expected uint8"):
        extractor(np.zeros((32, 32, 3), dtype=np.uint8))
