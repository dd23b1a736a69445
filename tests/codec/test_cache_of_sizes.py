"""Caches of images of several sizes: each image's latents are its own, whatever lies beside it."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from causalfusion.codec.blocks import gather, num_values, stored_order
from causalfusion.codec.cache import check_cache, open_cache
from causalfusion.codec.encode import write_cache
from causalfusion.codec.for_source import open_codec_for
from causalfusion.config import CodecConfig, DataConfig, RunConfig
from causalfusion.data import open_source
from causalfusion.data.loader import load_indices
from causalfusion.errors import UserError

SIZES = [(8, 8), (8, 12), (9, 8), (3, 8), (12, 8), (8, 8), (8, 13), (8, 8), (16, 32)]

pytestmark = pytest.mark.filterwarnings("ignore:left out 1 of 9 images")


def _tiny_autoencoder(folder: Path) -> Path:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        norm_num_groups=4,
        latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Pictures of several sizes, with a tiny autoencoder that halves the sides."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        for name in ("cat", "dog")[number % 2 : number % 2 + 1]:
            (folder / name).mkdir(exist_ok=True)
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    autoencoder = _tiny_autoencoder(tmp_path_factory.mktemp("vae"))
    data = DataConfig(source="folder", path=str(folder), image_size="native", max_area=200, flip=True)
    return RunConfig(data=data, codec=CodecConfig(autoencoder=str(autoencoder), patch_size=2))


def write(run: RunConfig, folder: Path, **options):
    source = open_source(run.data)
    codec = open_codec_for(source, run.data, run.codec)
    return source, codec, write_cache(folder, source, codec, run, dtype="float32", shard_size=4, **options)


def test_latents_are_those_of_the_images(run, tmp_path):
    source, codec, cache = write(run, tmp_path / "cache", batch_size=3)
    fit, sizes = run.data.fit(codec.cell), cache.sizes
    assert sizes is not None and codec.cell == 4
    read = {index: source.read(index).image.shape[:2] for index in range(len(source))}
    for index, size in read.items():
        expected = fit.size_of(*size) or (0, 0)
        assert sizes[index].tolist() == [side // 2 for side in expected]
        if not expected[0]:
            with pytest.raises(ValueError, match="left out"):
                cache.read(np.array([index]), None, None)
            continue
        image = load_indices(source, np.array([index]), run.data, fit).images
        for flip in (False, True):
            mean, std = codec.moments(image.flip(-1) if flip else image)
            found = cache.read(np.array([index]), np.array([flip]), None)
            assert torch.allclose(found, mean, atol=1e-5)
            noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(index))
            drawn = cache.read(np.array([index]), np.array([flip]), noise)
            assert std is not None and torch.allclose(drawn, mean + std * noise, atol=1e-5)
    assert cache.labels.tolist() == [
        0 if not sizes[i, 0] else int(source.read(i).label or 0) for i in range(len(source))
    ]


def test_images_of_one_size_are_read_together_across_shards(run, tmp_path):
    _, _, cache = write(run, tmp_path / "cache", batch_size=2)
    assert cache.sizes is not None
    same = np.flatnonzero((cache.sizes == 4).all(1))
    assert len(np.unique(same // 4)) > 1, "they lie in several shards"
    together = cache.read(same[::-1].copy(), None, None)
    for row, index in enumerate(same[::-1].tolist()):
        assert torch.equal(together[row], cache.read(np.array([index]), None, None)[0])
    with pytest.raises(ValueError, match="several sizes"):
        cache.read(np.arange(len(cache)), None, None)
    again = pickle.loads(pickle.dumps(cache))
    assert torch.equal(again.read(same, None, None), cache.read(same, None, None))


def test_an_interrupted_cache_is_finished_as_it_would_have_been(run, tmp_path):
    class Stop(Exception):
        pass

    def stop(done: int) -> None:
        if done >= 5:
            raise Stop

    with pytest.raises(Stop):
        write(run, tmp_path / "part", batch_size=3, progress=stop)
    write(run, tmp_path / "part", batch_size=3)
    write(run, tmp_path / "whole", batch_size=3)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in (tmp_path / "part").iterdir()} and "sizes.npy" in names
    for name in names - {"manifest.json"}:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes(), name


def test_statistics_are_those_of_all_latents(run, tmp_path):
    _, _, cache = write(run, tmp_path / "cache", batch_size=3)
    assert cache.sizes is not None
    stored = [i for i in range(len(cache)) if cache.sizes[i, 0]]
    values = torch.cat([cache.read(np.array([i]), None, None).flatten() for i in stored]).double()
    mean, std = cache.statistics("mode")
    assert mean == pytest.approx(float(values.mean()), abs=1e-6)
    assert std == pytest.approx(float(values.std(unbiased=False)), rel=1e-5)


def test_a_cache_of_other_settings_is_one_line(run, tmp_path):
    _, _, cache = write(run, tmp_path / "cache")
    assert check_cache(cache, run.codec, run.data).config.max_area == 200
    with pytest.raises(UserError, match=r"with data.max_area = 200, the run has 300; give --data.max-area"):
        check_cache(cache, run.codec, replace(run.data, max_area=300))
    with pytest.raises(UserError, match=r"made with data.image_size = native, the run has 8"):
        check_cache(cache, run.codec, replace(run.data, image_size=8))
    with pytest.raises(UserError, match=r"whole tokens for codec.patch_size 2, the run has 4; give 2"):
        cache.grids(4)
    assert cache.grids(1).max() == 2 * cache.grids(2).max()


@pytest.mark.parametrize("damage", ["sizes", "cut", "negative"])
def test_damaged_sizes_are_one_line(run, tmp_path, damage):
    write(run, tmp_path / "whole")
    folder = shutil.copytree(tmp_path / "whole", tmp_path / damage)
    sizes = np.load(folder / "sizes.npy")
    sizes = {"sizes": sizes + 1, "cut": sizes[:-1], "negative": -sizes}[damage]
    np.save(folder / "sizes.npy", sizes)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["sizes.npy"] = (folder / "sizes.npy").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"cannot be read .*; it is damaged: encode again"):
        open_cache(str(folder))


def test_blocks_of_a_shard():
    """Numbers that say where they come from: 100 image + 10 variant + moment."""
    sizes = np.array([[2, 3], [1, 1], [0, 0], [2, 3], [1, 4], [1, 1]])
    order = stored_order(sizes)
    assert order.tolist() == [1, 5, 4, 0, 3]
    parts = []
    for image in order.tolist():
        block = np.zeros((2, 2, 1, *sizes[image]))
        block += (
            100 * image + 10 * np.arange(2)[:, None, None, None, None] + np.arange(2)[:, None, None, None]
        )
        parts.append(block.ravel())
    shard = np.concatenate(parts)
    assert len(shard) == num_values(sizes, 4)
    found = gather(shard, sizes, (2, 2, 1), np.array([3, 0, 3]), np.array([0, 1, 1]))
    assert found.shape == (3, 2, 1, 2, 3)
    assert found[:, :, 0, 0, 0].tolist() == [[300, 301], [10, 11], [310, 311]]
    assert gather(shard, sizes, (2, 2, 1), np.array([4]), np.array([0]))[0, 1, 0].tolist() == [[401] * 4]
