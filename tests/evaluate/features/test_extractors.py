"""Feature spaces by name: pixels, digits, CIFAR ResNets, vision models of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from causalfusion.data.digits import Digits
from causalfusion.data.loader import split_holdout
from causalfusion.encoders.resnet_cifar import ResNetCifarNetwork
from causalfusion.errors import UserError
from causalfusion.evaluate.features.digits import HOLDOUT
from causalfusion.evaluate.features.extractor import Extractor
from causalfusion.evaluate.features.open import open_extractor
from causalfusion.evaluate.features.resnet_cifar import jpeg_round_trip, load_resnet_cifar_network


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def refused(name: str, *given: np.ndarray) -> str:
    """The one line with which this is refused."""
    with pytest.raises(UserError) as refusal:
        open_extractor(name)(*given)
    message = str(refusal.value)
    assert "\n" not in message and ("expected" in message or "there is no module" in message), message
    return message


def rows_depend_on_their_image_alone(extractor: Extractor, batch: np.ndarray) -> None:
    whole, half = extractor(batch), extractor(batch[1:])
    for name in ("pool", "spatial", "logits"):
        one, other = getattr(whole, name), getattr(half, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == np.float32 and len(one) == len(batch)
            assert np.allclose(one[1:], other, rtol=1e-4, atol=1e-4 * abs(one).max())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fid", "features are 'fid'; expected pixels, pixels:SIDE, digits"),
        ("pixels:", "expected something after the colon"),
        ("pixels:0", "expected the side of the small images"),
        ("pixels:8x8", "expected the side of the small images"),
        ("digits:2", "expected digits alone"),
        ("resnet-cifar", "expected the classifier's weights: resnet-cifar:FILE.safetensors"),
        ("resnet-cifar:/nope.safetensors", "judge /nope.safetensors cannot be read"),
        ("transformers", "expected a model: transformers:facebook/dinov2-base"),
        ("inception:/nope.pth", "inception weights /nope.pth do not exist"),
    ],
)
def test_names_that_mean_nothing(name, message):
    assert message in refused(name)


@pytest.mark.parametrize("name", ["pixels", "digits"])
def test_what_are_no_images(name):
    extractor = open_extractor(name)
    cases: list[tuple[Any, str]] = [
        (np.zeros((2, 8, 8, 1), np.float32), "float32 of shape (2, 8, 8, 1)"),
        (np.zeros((8, 8, 1), np.uint8), "uint8 of shape (8, 8, 1)"),
        (np.zeros((0, 8, 8, 1), np.uint8), "B > 0"),
        (np.zeros((2, 8, 8, 4), np.uint8), "expected uint8 of shape"),
    ]
    for wrong, words in cases:
        with pytest.raises(UserError) as refusal:
            extractor(wrong)
        assert words in str(refusal.value) and f"features {extractor.name}" in str(refusal.value)


def test_pixels_are_averaged():
    """Over whole squares as numpy does it; over parts of pixels, so that the mean of all stays."""
    batch = images(3, 32, 16, 3)
    pool = open_extractor("pixels:4")(batch).pool
    squares = batch.reshape(3, 4, 8, 4, 4, 3).mean(axis=(2, 4))
    assert np.allclose(pool, (squares / 127.5 - 1).reshape(3, -1), atol=1e-6)
    uneven = open_extractor("pixels:4")(images(3, 7, 9, 1)).pool
    assert np.allclose(uneven.mean(axis=1), images(3, 7, 9, 1).mean(axis=(1, 2, 3)) / 127.5 - 1, atol=1e-6)
    assert open_extractor("pixels").fingerprint == open_extractor("pixels:8").fingerprint
    assert open_extractor("pixels:4").fingerprint != open_extractor("pixels:8").fingerprint
    assert "choose pixels:7" in refused("pixels:8", images(1, 7, 9, 3))
    rows_depend_on_their_image_alone(open_extractor("pixels:4"), batch)


def test_the_digits_classifier_knows_digits_that_it_has_not_seen():
    """In the held-out fifth; read by itself from scikit-learn."""
    extractor = open_extractor("digits")
    digits: Any = load_digits()
    unseen = split_holdout(len(Digits()), HOLDOUT)[1]
    batch = np.round(digits.images[unseen] * 255 / 16).astype(np.uint8)[..., None]
    found = extractor(batch)
    assert found.logits is not None and found.pool.shape == (len(unseen), 64) and found.pool.min() >= 0
    assert (found.logits.argmax(axis=1) == digits.target[unseen]).mean() > 0.95
    assert np.allclose(np.exp(found.logits).sum(axis=1), 1, atol=1e-4), "log-probabilities"
    # Levels between the digits' own 17 count as the nearest of them.
    assert (extractor(np.minimum(batch, 250) + 3).pool == extractor(np.minimum(batch, 250)).pool).mean() > 0.9
    assert open_extractor("digits").fingerprint == extractor.fingerprint
    rows_depend_on_their_image_alone(extractor, batch[:5])
    assert (extractor(np.repeat(batch, 3, axis=3)).pool == found.pool).all(), "as a PNG is read"
    assert "the images have colours; expected grey ones" in refused("digits", images(1, 8, 8, 3))
    assert "expected uint8 of shape (B, 8, 8, 1 or 3)" in refused("digits", images(1, 16, 16, 1))


def test_a_cifar_resnet_with_jpeg_and_without(tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "judge.safetensors"
    save_file(ResNetCifarNetwork(1).state_dict(), file)
    plain, jpeg = (open_extractor(f"{kind}:{file}") for kind in ("resnet-cifar", "resnet-cifar-jpeg"))
    batch = images(3, 32, 32, 3)
    model = load_resnet_cifar_network(file)
    with torch.inference_mode():
        direct, after_jpeg = (model(torch.from_numpy(each)) for each in (batch, jpeg_round_trip(batch)))
    found = plain(batch)
    assert found.logits is not None and np.allclose(found.logits, direct.logits)
    assert np.allclose(found.pool, direct.pool)
    assert found.spatial is not None and found.spatial.shape == (3, 256)
    places = found.spatial.reshape(3, 64, 4)
    assert np.allclose(places.mean(axis=1), found.pool[:, :4], atol=1e-6), "the pool is their mean"
    assert np.allclose(jpeg(batch).pool, after_jpeg.pool)
    assert plain.fingerprint != jpeg.fingerprint and jpeg.name == "resnet-cifar-jpeg:judge"
    assert (plain(batch[..., :1]).pool == plain(np.repeat(batch[..., :1], 3, axis=3)).pool).all()
    rows_depend_on_their_image_alone(jpeg, batch)
    with pytest.raises(UserError, match=r"expected uint8 of shape \(B, 32, 32, 1 or 3\)"):
        plain(images(1, 28, 28, 3))


@pytest.fixture
def vit(tmp_path) -> Path:
    """A vision transformer of random weights with a classifier, in a folder."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16,
        patch_size=4, num_labels=5,
    )  # fmt: skip
    folder = tmp_path / "tiny-vit"
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_a_vision_model_of_transformers(vit):
    """Against the model itself on images that Pillow resized: its class token, and its logits."""
    import transformers

    extractor = open_extractor(f"transformers:{vit}")
    assert extractor.name == "transformers:tiny-vit"
    batch = images(3, 20, 28, 3)
    resized = [Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR) for image in batch]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2)
    model = transformers.ViTForImageClassification.from_pretrained(vit).eval()
    with torch.no_grad():
        output = model(pixels / 127.5 - 1, output_hidden_states=True)
        token = model.vit(pixels / 127.5 - 1).last_hidden_state[:, 0]
    found = extractor(batch)
    assert found.logits is not None
    assert np.allclose(found.pool, token, rtol=1e-4, atol=1e-4)
    assert np.allclose(found.logits, output.logits, rtol=1e-4, atol=1e-4)
    rows_depend_on_their_image_alone(extractor, batch)
    assert open_extractor(f"transformers:{vit}").fingerprint == extractor.fingerprint
    text = (vit / "preprocessor_config.json").read_text().replace("0.5", "0.4")
    (vit / "preprocessor_config.json").write_text(text)
    assert open_extractor(f"transformers:{vit}").fingerprint != extractor.fingerprint


def test_what_is_no_vision_model_of_transformers(vit, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "cannot be opened" in refused(f"transformers:{tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    assert "cannot be opened" in refused(f"transformers:{tmp_path / 'empty'}")
    weights = vit / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    assert "cannot be opened" in refused(f"transformers:{vit}")
    weights.write_bytes(whole)
    (vit / "preprocessor_config.json").unlink()
    assert "image processor" in refused(f"transformers:{vit}")


def test_a_checkpoint_that_lacks_weights_is_refused(vit):
    from safetensors.torch import load_file

    weights = load_file(vit / "model.safetensors")
    lacking = next(key for key in sorted(weights) if key.endswith("layernorm.weight"))
    del weights[lacking]
    save_file(weights, vit / "model.safetensors", metadata={"format": "pt"})
    assert f"lacks weight {lacking}" in refused(f"transformers:{vit}")
