"""`python -m benchmarks.compare_inception`: our Inception-v3 beside torch-fidelity's, on random weights.

torch-fidelity (Apache-2.0) is an independent implementation that its authors checked against TensorFlow. pip
fetches it into a folder that is removed at the end, without what it depends on; it is no dependency. Both
networks get the same random weights, with random statistics of batch normalization, and the same images of
several sizes; then resizing, pooled and spatial features and logits are compared in float32, and those of
images that need no resizing in float64 too. The exit code is 1 where they differ by more than rounding. At
the end come the numbers that tests/evaluate/features/test_inception.py holds, by the other implementation in
float64.

Shape letters: B images, C channels, H and W pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causalfusion.evaluate.features.inception_network import (
    InceptionNetwork,
    preprocess,
    resize_bilinear_legacy,
)

PACKAGE = "torch-fidelity==0.4.0"
SIZES = ((299, 299), (32, 32), (256, 256), (71, 400))
UNRESIZED = (299, 299)
SPATIAL_CHANNELS = 7
LIMITS = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest relative difference; the other network hands out float32 in either case."""
GOLDEN_SEED = 0
GOLDEN_SIZE = (40, 56)


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Weights by name, the same on every machine; sized so that activations neither vanish nor explode."""
    draw = np.random.default_rng(seed)
    weights = {}
    for key in sorted(shapes):
        shape = shapes[key]
        if key.endswith("num_batches_tracked"):  # without effect
            weights[key] = torch.tensor(0)
            continue
        unit = draw.random(shape, dtype=np.float32)
        if key.endswith(("running_var", "bn.weight")):
            values = 0.5 + unit
        elif len(shape) > 1:
            values = (2 * unit - 1) * np.float32(np.sqrt(6 / np.prod(shape[1:])))
        else:
            values = unit - 0.5
        weights[key] = torch.from_numpy(np.asarray(values, np.float32))
    return weights


def random_images(count: int, height: int, width: int, seed: int) -> Tensor:
    """(B, H, W, 3) uint8: noise."""
    shape = (count, height, width, 3)
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def other_network(folder: Path) -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    """torch-fidelity's network with its own initial weights, and its resizing."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder),
        PACKAGE,
    ]
    subprocess.run(command, check=True)
    package = types.ModuleType("torch_fidelity")  # without what its __init__ would import
    package.__path__ = [str(folder / "torch_fidelity")]
    sys.modules["torch_fidelity"] = package
    extractor = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    resizing = importlib.import_module("torch_fidelity.interpolate_compat_tensorflow")
    initial = folder / "initial.pth"
    torch.save(InceptionNetwork().state_dict(), initial)  # its constructor asks for some, with the same names
    names = ["2048", "logits_unbiased", "logits"]
    network = extractor.FeatureExtractorInceptionV3(
        "inception", names, feature_extractor_weights_path=str(initial)
    )
    return network, resizing.interpolate_bilinear_2d_like_tensorflow1x


@torch.no_grad()
def outputs_of_other(network: Any, images: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Features of images (B, H, W, 3), resized by itself; the spatial ones by a hook on the same branch."""
    seen: list[Tensor] = []
    hook = network.Mixed_6d.branch1x1.register_forward_hook(
        lambda _m, _i, output: seen.append(output.clone())
    )
    network.to(dtype)
    network.feature_extractor_internal_dtype = dtype
    pool, logits, biased = network(images.permute(0, 3, 1, 2))
    hook.remove()
    spatial = seen[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
    return {"pool": pool, "spatial": spatial, "logits": logits, "logits with bias": biased}


@torch.no_grad()
def outputs_of_ours(network: InceptionNetwork, images: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    output = network.to(dtype)(preprocess(images).to(dtype))
    biased = output.logits + network.fc.bias
    return {
        "pool": output.pool, "spatial": output.spatial, "logits": output.logits, "logits with bias": biased
    }  # fmt: skip


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Largest difference by the largest value."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def compare(ours: InceptionNetwork, other: Any, other_resize: Callable[..., Tensor], seed: int) -> float:
    """Print a line for each size and precision; the largest share of its limit that a difference reaches."""
    worst = 0.0
    for height, width in SIZES:
        images = random_images(2, height, width, seed)
        pixels = images.permute(0, 3, 1, 2).float()
        resized = other_resize(pixels, size=(299, 299), align_corners=False)
        difference = float((resize_bilinear_legacy(pixels, 299, 299) - resized).abs().max())
        print(f"{height}x{width}: resizing differs by at most {difference:.1e} of 255")
        worst = max(worst, difference / 1e-3)
        for dtype, limit in LIMITS.items():
            if dtype == torch.float64 and (height, width) != UNRESIZED:
                continue  # ours resizes in float32 always, as TensorFlow does
            a, b = outputs_of_ours(ours, images, dtype), outputs_of_other(other, images, dtype)
            differences = {name: relative_difference(a[name], b[name]) for name in b}
            words = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
            print(f"  {str(dtype).removeprefix('torch.')}: {words}")
            worst = max(worst, *(value / limit for value in differences.values()))
    return worst


def print_golden(ours: InceptionNetwork, other: Any) -> None:
    shapes = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    names = sorted(key for key in shapes if not key.endswith("num_batches_tracked"))
    print(f"parameters: {sum(p.numel() for p in other.parameters())}")
    print(f"names and shapes: {hash_names({name: shapes[name] for name in names})}")
    outputs = outputs_of_other(other, random_images(1, *GOLDEN_SIZE, GOLDEN_SEED), torch.float64)
    for name in ("pool", "spatial", "logits"):
        values = outputs[name][0]
        print(
            f"{name}: sum {float(values.double().sum()):.6g}, first {[f'{float(v):.6g}' for v in values[:6]]}"
        )


def hash_names(shapes: Mapping[str, tuple[int, ...]]) -> str:
    text = "\n".join(f"{key} {shapes[key]}" for key in sorted(shapes))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_inception", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="of random weights and images")
    arguments = parser.parse_args()
    ours = InceptionNetwork().eval()
    with tempfile.TemporaryDirectory() as folder:
        other, other_resize = other_network(Path(folder))
        shapes = {key: tuple(value.shape) for key, value in other.state_dict().items()}
        worst = 0.0
        for seed in reversed(range(arguments.seeds)):
            for network in (ours, other):
                network.float().load_state_dict(random_weights(shapes, seed))
            print(f"seed {seed}")
            worst = max(worst, compare(ours, other, other_resize, seed))
        print_golden(ours, other)
    print("equal to rounding" if worst < 1 else "DIFFERENT")
    return 0 if worst < 1 else 1


if __name__ == "__main__":
    sys.exit(main())
