"""Quick judgement: what tells the class of an image."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion.config import DataConfig, ModelConfig, SampleConfig
from causalfusion.evaluate.features.extractor import Features
from causalfusion.evaluate.measures.gaussian import GaussianStatistics
from causalfusion.evaluate.quality import Judge, measure_quality, open_judge


class Classifier:
    """Says class 0 of every image."""

    name, fingerprint, image_size = "first", "", None

    def __init__(self, num_classes):
        self.num_classes = num_classes

    def __call__(self, images, /):
        pool = images.reshape(len(images), -1)[:, :2].astype(np.float32)
        return Features(pool, logits=np.eye(self.num_classes, dtype=np.float32)[[0] * len(images)])


def generate(labels, *_, **__):
    return torch.rand(len(labels), 1, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("num_classes", "accuracy"), [(4, 0.25), (1008, None), (3, None)])
def test_classes_of_a_classifier_for_others_tell_nothing(num_classes, accuracy):
    """Inception knows 1008 classes in an order of its own, whatever the model's are."""
    pipeline: Any = SimpleNamespace(
        model=SimpleNamespace(config=ModelConfig(num_classes=4)),
        tokenizer=None,
        generate=generate,
        codec=SimpleNamespace(to_uint8=lambda images: (images * 255).byte().numpy()),
    )
    judge = Judge(Classifier(num_classes), GaussianStatistics.of(np.random.default_rng(0).random((9, 2))))
    assert measure_quality(pipeline, SampleConfig(), judge, 8).accuracy == accuracy


def test_a_damaged_image_is_left_out_of_the_reference_as_it_is_in_training(tmp_path: Path):
    """A study trained for hours with it, and then could not be measured."""
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    data = DataConfig(source="folder", path=str(tmp_path))
    with pytest.warns(UserWarning, match=r"2\.png"):
        judge = open_judge("pixels:2", data, (8, 8), "cpu")
    assert judge.reference.count == 3
