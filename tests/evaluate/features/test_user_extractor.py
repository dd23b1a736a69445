"""A user's own feature space: `module:attribute`, its promises checked."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from causalfusion.errors import UserError
from causalfusion.evaluate.features.open import open_extractor


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def refused(name: str, *given: np.ndarray) -> str:
    """The one line with which this is refused."""
    with pytest.raises(UserError) as refusal:
        open_extractor(name)(*given)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


OWN = '''
import numpy as np
from causalfusion.errors import UserError
from causalfusion.evaluate.features.open import Features

class Means:
    """The mean of each channel."""
    name, fingerprint, image_size = "means", "1", None
    def __call__(self, images, /):
        return Features(images.mean(axis=(1, 2)))

class Sized(Means):
    image_size = 4

class Placed(Means):
    def __init__(self, device):
        self.fingerprint = f"on {device}"

ready = Sized()
number = 3

class Nameless:
    fingerprint, image_size = "1", None

class Taken(Means):
    name = "inception:better"

class Empty(Means):
    fingerprint = " "

class Grown(Means):
    image_size = "4"

class Silent:
    name, fingerprint, image_size = "silent", "1", None

class Arrays(Means):
    def __call__(self, images, /):
        return images.mean(axis=(1, 2))

class Short(Means):
    def __call__(self, images, /):
        return Features(images.mean(axis=(1, 2))[:1])

class Broken(Means):
    def __call__(self, images, /):
        return Features(images.mean(axis=(1, 2)) * np.nan)

class Raising(Means):
    def __call__(self, images, /):
        return images.no_such_thing

class Failing(Means):
    def __init__(self):
        raise RuntimeError("no\\nweights")
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of a user's, in the working directory."""
    (tmp_path / "own_features.py").write_text(OWN)
    (tmp_path / "broken_features.py").write_text("import numpy\n1 / 0\n")
    (tmp_path / "lacking_features.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.endswith("_features"):
            del sys.modules[name]


def test_a_users_own(own):
    batch = images(3, 4, 4, 3)
    path = list(sys.path)
    for name in ("Means", "ready", "Placed"):
        extractor = open_extractor(f"own_features:{name}")
        found = extractor(batch)
        assert extractor.name == "means" and np.allclose(found.pool, batch.mean(axis=(1, 2)))
        assert found.pool.dtype == np.float32 and found.logits is None
    assert open_extractor("own_features:Placed").fingerprint == "on cpu"
    assert "expected uint8 of shape (B, 4, 4, 1 or 3)" in refused("own_features:ready", images(1, 5, 5, 3))
    assert sys.path == path and str(Path(os.getcwd())) not in path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_features:Nameless", "have no name; expected name"),
        ("own_features:Taken", "name is 'inception:better'"),
        ("own_features:Empty", "fingerprint is ' '"),
        ("own_features:Grown", "image_size is '4'"),
        ("own_features:Silent", "cannot be called"),
        ("own_features:Arrays", "returned ndarray; expected name"),
        ("own_features:Short", "pool of 2 images has shape (1, 3)"),
        ("own_features:Broken", "or is not finite; expected (2, D) numbers"),
        ("own_features:Raising", "failed on images (2, 4, 4, 3) (AttributeError: "),
        ("own_features:number", "have no name"),
        ("./own_features.py:Means", "expected module:attribute, as in my_features:Edges"),
        ("not_there:Means", "there is no module not_there"),
    ],
)
def test_what_breaks_the_promise(own, name, message):
    assert message in refused(name, images(2, 4, 4, 3))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_features:Failing", "making Failing failed (RuntimeError: no weights)"),
        ("own_features:Lost", "the module own_features has no Lost"),
        ("broken_features:Means", "importing broken_features failed (ZeroDivisionError"),
        ("lacking_features:Means", "importing lacking_features failed (No module named"),
    ],
)
def test_a_users_file_that_fails(own, name, message):
    assert message in refused(name)
