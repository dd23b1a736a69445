from __future__ import annotations

import io
import itertools
import json
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from causalfusion.errors import UserError
from causalfusion.evaluate.features.resnet_cifar import (
    ResNetCifar,
    class_accuracy,
    jpeg_round_trip,
    judge,
    load_resnet_cifar,
)
from causalfusion.evaluate.measures.frechet import frechet_distance

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
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
    model = load_resnet_cifar(JUDGES / f"{name}_cifar10.safetensors")
    assert sum(p.numel() for p in model.parameters()) == report["params"]
    images, labels = first_images()
    assert labels[:3].tolist() == report["labels_first3"]
    features, logits = judge(images[:3], model)
    torch.testing.assert_close(logits, torch.tensor(report["logits_first3"]), rtol=0, atol=1e-4)
    expected = torch.tensor(report["feat_first_sample_first8"])
    torch.testing.assert_close(features[0, :8], expected, rtol=0, atol=1e-5)
    # 500 of 10,000 images: three standard errors around the accuracy on all of them.
    assert class_accuracy(images, labels, model) == pytest.approx(report["test_acc_jpeg"], abs=0.053)


@needs_judges
def test_uint8_and_float_images_and_any_batch_size_agree() -> None:
    model = load_resnet_cifar(JUDGES / "resnet20_cifar10.safetensors")
    images = first_images()[0][:7]
    features, logits = judge(images, model)
    by_float = model(torch.from_numpy(images).float() / 255)
    torch.testing.assert_close(by_float[0], features)
    torch.testing.assert_close(judge(images, model, batch_size=3)[1], logits, rtol=1e-4, atol=1e-4)


@needs_judges
def test_jpeg_is_near_what_these_images_are_and_far_for_noise() -> None:
    """The images come from this very JPEG setting: a second pass changes them little, and noise much."""
    images = first_images()[0][:50]
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)

    def change(before: np.ndarray) -> float:
        return float(np.abs(jpeg_round_trip(before).astype(int) - before).mean())

    assert change(images) < 2 < 30 < change(noise)
    model = load_resnet_cifar(JUDGES / "resnet20_cifar10.safetensors")
    features, _ = judge(first_images()[0], model)
    half = frechet_distance(features[:250], features[250:])
    assert half < frechet_distance(judge(noise, model)[0], features[:250]) / 5


def test_a_plain_colour_survives_jpeg_in_shape_type_and_value() -> None:
    grey = np.full((2, 32, 32, 3), 128, dtype=np.uint8)
    assert np.array_equal(jpeg_round_trip(grey), grey)


def test_files_and_arrays_that_are_not_right_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_resnet_cifar(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(UserError, match="cannot be read"):
        load_resnet_cifar(tmp_path / "text.safetensors")
    weights = ResNetCifar(3).state_dict()
    del weights["layer2.1.bn2.bias"]
    save_file(weights, tmp_path / "partial.safetensors")
    with pytest.raises(UserError, match=r"layer2\.1\.bn2\.bias"):
        load_resnet_cifar(tmp_path / "partial.safetensors")
    model = ResNetCifar(1).eval()
    images = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    with pytest.raises(UserError, match="expected uint8"):
        judge(images[0], model)
    with pytest.raises(UserError, match="3 labels for 2 images"):
        class_accuracy(images, np.zeros(3, dtype=int), model)
