"""`python -m benchmarks.judge_cifar10 SAMPLES.npz --judge WEIGHTS`: a CIFAR-10 classifier judges samples.

SAMPLES.npz is what `causalfusion sample --output npz` writes. The images go through the JPEG round trip of
the judge's own data first (quality 75, 4:2:0). With `--real`, the test images are judged beside them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from causalfusion.config import DataConfig
from causalfusion.data import open_source
from causalfusion.evaluate.features.extract import ExtractedFeatures, ExtractionSettings, extract_features
from causalfusion.evaluate.features.resnet_cifar import ResNetCifarExtractor
from causalfusion.evaluate.measures.frechet import gaussian_frechet_distance
from causalfusion.evaluate.samples.images import ArrayImages


def judged(images: np.ndarray, extractor: ResNetCifarExtractor) -> tuple[ExtractedFeatures, np.ndarray]:
    """Features of images (N, 32, 32, 3), and the class (N,) that each is read as."""
    found = extract_features(ArrayImages(images), extractor, ExtractionSettings(batch_size=500))
    assert found is not None and found.logits is not None, "one process, a classifier"
    return found, found.logits.argmax(1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judge_cifar10", description=__doc__)
    parser.add_argument("samples", type=Path, nargs="+")
    parser.add_argument("--judge", type=Path, required=True, help="resnet20 or resnet56 weights")
    parser.add_argument("--real", default="", help="shards of the test images, for their figures")
    arguments = parser.parse_args()
    of_real, of_samples = (ResNetCifarExtractor(arguments.judge, jpeg=jpeg) for jpeg in (False, True))
    real: ExtractedFeatures | None = None
    if arguments.real:
        source = open_source(DataConfig(source="webdataset", path=arguments.real))
        examples = [source.read(index) for index in range(len(source))]
        images = np.stack([example.image for example in examples])
        labels = np.array([example.label for example in examples])
        real, read = judged(images, of_real)
        print(f"{len(images)} real test images: class accuracy {(read == labels).mean():.1%}")
    for path in arguments.samples:
        with np.load(path) as arrays:
            images, labels = arrays["arr_0"], arrays["arr_1"]
        samples, read = judged(images, of_samples)
        line = f"{path}: {len(images)} samples, class accuracy {(read == labels).mean():.1%}"
        if real is not None:
            distance = gaussian_frechet_distance(samples.statistics, real.statistics)
            line += (
                f", Fréchet distance to the test images {distance:.2f} ({arguments.judge.stem}'s 64 features)"
            )
        print(line)
        by_class = [f"{(read[labels == c] == c).mean():.0%}" for c in range(10) if (labels == c).any()]
        print("  by class: " + " ".join(by_class))
    return 0


if __name__ == "__main__":
    sys.exit(main())
