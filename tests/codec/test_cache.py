"""Latents from a cache are those of the images; an interrupted or damaged cache is never taken as whole."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from causalfusion.codec.autoencoder import open_autoencoder
from causalfusion.codec.cache import LatentCache, check_cache, open_cache
from causalfusion.codec.codec import Codec, open_codec
from causalfusion.codec.encode import encode_to_cache, write_cache
from causalfusion.config import CodecConfig, DataConfig, RunConfig, TrainConfig
from causalfusion.data.loader import Loader, load_indices, split_holdout, stream
from causalfusion.data.source import Example, UnreadableImage
from causalfusion.errors import UserError
from causalfusion.files import hash_of
from causalfusion.machine.processes import World
from causalfusion.train.feed import open_training_data

GREY = DataConfig(source="npz", cache="no path")
PIXELS = RunConfig(data=DataConfig(source="npz", path="grey.npz", flip=True), codec=CodecConfig(patch_size=2))


class Grey:
    """Eleven random 8x8 images with one to three captions; `broken` ones cannot be read."""

    name, has_captions = "grey", True

    def __init__(self, broken: tuple[int, ...] = (), length: int = 11, content: str = "a") -> None:
        self.class_names = ["even", "odd"]
        self.broken, self.length, self.content = broken, length, content
        self.reads = 0

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> Example:
        if index in self.broken:
            raise UnreadableImage(f"image {index}", "it is broken")
        self.reads += 1
        image = np.random.Generator(np.random.Philox(key=[index, 7])).integers(
            0, 256, (8, 8, 3), dtype=np.uint8
        )
        return Example(image, index % 2, self.captions(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return (f"number {index} – ä", f"Nr.\u2028{index} 🟢\n", "third")[: index % 3 + 1]

    def fingerprint(self) -> str:
        return hash_of([self.name, self.content, self.length])


def _tiny_autoencoder(folder: Path, seed: int) -> Path:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(seed)
    kinds: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
    }
    AutoencoderKL(norm_num_groups=4, latent_channels=2, **kinds).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(_tiny_autoencoder(tmp_path_factory.mktemp("vae"), 0))


def _drawn(path: str, latents: str = "sample", flip: bool = True) -> RunConfig:
    codec = CodecConfig(autoencoder=path, latents=latents, patch_size=1)  # pyright: ignore[reportArgumentType]
    return RunConfig(data=replace(PIXELS.data, flip=flip), codec=codec)


def _pixel_codec() -> Codec:
    return open_codec(PIXELS.codec, image_shape=(3, 8, 8))


def _write(folder: Path, source: Grey, *, shard_size: int = 4, config: RunConfig = PIXELS) -> LatentCache:
    codec = open_codec(config.codec, image_shape=(3, 8, 8))
    return write_cache(folder, source, codec, config, dtype="float32", batch_size=3, shard_size=shard_size)


def _images(source: Grey, indices: np.ndarray) -> torch.Tensor:
    return load_indices(source, indices, DataConfig()).images


def test_pixels_come_back_exactly(tmp_path: Path) -> None:
    source = Grey()
    cache = _write(tmp_path, source)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".lock", "00000.npy", "00001.npy", "00002.npy", "captions.jsonl", "labels.npy", "manifest.json",
    ]  # fmt: skip
    indices, flips = np.array([10, 0, 3, 4, 3, 7]), np.array([True, False, True, False, False, True])
    images = _images(source, indices)
    mirrored = torch.where(torch.from_numpy(flips)[:, None, None, None], images.flip(-1), images)
    assert torch.equal(cache.read(indices, flips, None), mirrored)
    assert torch.equal(cache.read(indices, None, torch.ones(6, 3, 8, 8)), images)  # pixels have no deviation
    assert cache.labels.tolist() == [i % 2 for i in range(11)] and cache.labels.dtype == np.int64
    assert (len(cache), cache.class_names) == (11, ["even", "odd"])
    everything = _images(source, np.arange(11)).double()
    expected = [pytest.approx(float(v), rel=1e-12) for v in (everything.mean(), everything.std(correction=0))]
    assert list(cache.statistics("mode")) == list(cache.statistics("sample")) == expected
    with pytest.raises(IndexError):
        cache.read(np.array([11]), None, None)


def test_captions_are_those_a_run_on_the_images_sees(tmp_path: Path) -> None:
    source = Grey()
    cache = pickle.loads(pickle.dumps(_write(tmp_path, source)))
    assert cache.has_captions
    indices = np.array([10, 0, 3, 4, 2])
    assert cache.captions(indices) == [source.captions(i) for i in indices.tolist()]
    train, _ = split_holdout(11, 0.2)
    loader = Loader(source, GREY, seed=4, batch_size=6, indices=train, flip=True)
    second = set()
    for place, batch in zip(range(60, 600, 6), loader.iterate(60), strict=False):
        asked = stream(np.arange(place, place + 6), train, seed=4, flip=True)
        assert cache.draw_captions(asked.indices, asked.epochs, seed=4) == batch.captions
        second |= {caption.startswith("Nr.") for caption in batch.captions if caption is not None}
    assert second == {True, False}


def test_cache_without_captions(tmp_path: Path) -> None:
    class Silent(Grey):
        has_captions = False

        def captions(self, index: int) -> tuple[str, ...]:
            return ()

    cache = _write(tmp_path, Silent())
    assert not cache.has_captions and not (tmp_path / "captions.jsonl").exists()
    assert cache.captions(np.array([1, 2])) == [(), ()]
    assert cache.draw_captions(np.array([1]), np.array([0]), seed=0) == [None]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
def test_drawn_latents(tmp_path: Path, autoencoder: str, dtype: str, tolerance: float) -> None:
    config, source = _drawn(autoencoder), Grey()
    codec = open_codec(config.codec, image_shape=(3, 8, 8))
    cache = write_cache(tmp_path, source, codec, config, dtype=dtype, batch_size=4, shard_size=5)  # pyright: ignore[reportArgumentType]
    indices, flips = np.array([9, 2, 5]), np.array([False, True, True])
    images = _images(source, indices)
    images[1:] = images[1:].flip(-1)
    noise = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for given in (noise, None):
        found, expected = cache.read(indices, flips, given), codec.encode_raw(images, given)
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    assert found.dtype == torch.float32
    mean, std = (m.double() for m in codec.moments(_images(source, np.arange(11))) if m is not None)
    modes = cache.statistics("mode")
    assert modes == pytest.approx((float(mean.mean()), float(mean.std(correction=0))), rel=tolerance)
    drawn = (mean.var(correction=0) + std.square().mean()).sqrt()
    assert cache.statistics("sample") == pytest.approx((float(mean.mean()), float(drawn)), rel=tolerance)


@pytest.mark.parametrize("kind", ["pixels", "autoencoder"])
def test_training_batches_are_those_of_the_images(tmp_path: Path, autoencoder: str, kind: str) -> None:
    data = DataConfig(source="digits" if kind == "pixels" else "shapes", flip=True, holdout=0.1)
    codec = CodecConfig(patch_size=2) if kind == "pixels" else _drawn(autoencoder).codec
    config = RunConfig(data=data, codec=codec, train=TrainConfig(batch_size=8, evaluate_images=8))
    if kind == "autoencoder":  # 24 of the shapes are enough
        images = load_indices(_shapes(), np.arange(24), DataConfig())
        labels = images.labels.numpy()
        np.savez(
            tmp_path / "few.npz",
            images=((images.images + 1) * 127.5).round().byte().permute(0, 2, 3, 1),
            labels=labels,
        )
        config = replace(config, data=replace(data, source="npz", path=str(tmp_path / "few.npz")))
    out = tmp_path / "cache"
    encode_to_cache(config, out, batch_size=8, dtype="float32", device="cpu")
    world = World(rank=0, size=1, device=torch.device("cpu"))
    cached = replace(config, data=replace(config.data, cache=str(out)))
    a, b = (open_training_data(c, world) for c in (config, cached))
    assert a.class_names == b.class_names and a.config.model == b.config.model
    assert a.config.codec == b.config.codec
    seen = 16 if kind == "autoencoder" else 3200
    for x, y, _ in zip(a.batches(seen), b.batches(seen), range(4), strict=False):
        assert torch.equal(x.labels, y.labels) and torch.equal(x.sample_indices, y.sample_indices)
        if kind == "pixels":
            assert torch.equal(x.tokens, y.tokens)
        else:  # encoded in other batches: equal to rounding
            torch.testing.assert_close(x.tokens, y.tokens, atol=1e-5, rtol=1e-5)
    for x, y in zip(a.evaluation_batches(5), b.evaluation_batches(5), strict=True):
        torch.testing.assert_close(x.tokens, y.tokens, atol=1e-5, rtol=1e-5)
        assert torch.equal(x.labels, y.labels)


def _shapes():
    from causalfusion.data.shapes import Shapes

    return Shapes()


class _Killed(BaseException):
    pass


def _interrupt(folder: Path, after: int, source: Grey) -> None:
    def progress(done: int) -> None:
        if done >= after:
            raise _Killed

    with pytest.raises(_Killed):
        write_cache(
            folder,
            source,
            _pixel_codec(),
            PIXELS,
            dtype="float32",
            batch_size=3,
            shard_size=4,
            progress=progress,
        )


def test_interrupted_run_goes_on(tmp_path: Path) -> None:
    whole = _write(tmp_path / "whole", Grey())
    _interrupt(tmp_path / "cut", 6, Grey())
    with pytest.raises(UserError, match="not finished"):
        open_cache(str(tmp_path / "cut"))
    source = Grey()
    cache = _write(tmp_path / "cut", source)
    assert source.reads == 11 - 4  # the first shard was kept, the half-written second one was not
    assert cache.manifest == whole.manifest
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "cut" / file.name).read_bytes()
    source = Grey()
    _write(tmp_path / "cut", source)
    assert source.reads == 0


def test_finished_shards_of_other_settings_are_never_replaced(tmp_path: Path) -> None:
    _interrupt(tmp_path, 6, Grey(content="another data set"))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    another = r"delete the folder or give another --out"
    with pytest.raises(UserError, match=r"data\.path \(hash of the data\) = .*" + another):
        _write(tmp_path, Grey())
    with pytest.raises(UserError, match="shard_size = 4, this run has 12; " + another):
        _write(tmp_path, Grey(content="another data set"), shard_size=12)
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_damaged_shards_are_made_again(tmp_path: Path) -> None:
    _interrupt(tmp_path, 8, Grey())
    shard = tmp_path / "00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    source = Grey()
    cache = _write(tmp_path, source)
    assert source.reads == 11
    assert torch.equal(cache.read(np.arange(11), None, None), _images(source, np.arange(11)))


def test_whole_cache_of_another_content_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, Grey())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"data\.path.*another folder"):
        _write(tmp_path, Grey(content="b"))
    with pytest.raises(UserError, match=r"data\.flip = True, the run has False"):
        _write(tmp_path, Grey(), config=replace(PIXELS, data=replace(PIXELS.data, flip=False)))
    with pytest.raises(
        UserError, match=r"data\.source = npz, the run has digits; give --data\.source=npz, or"
    ):
        _write(tmp_path, Grey(), config=replace(PIXELS, data=DataConfig(flip=True)))
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_unreadable_images(tmp_path: Path) -> None:
    source = Grey(broken=(17,), length=101)
    with pytest.warns(UserWarning, match="image 17: it is broken"):
        cache = _write(tmp_path / "few", source, shard_size=50)
        (used,) = load_indices(source, np.array([17]), DataConfig()).image_indices.tolist()
    assert cache.manifest["replaced_images"] == 1
    assert cache.labels[17] == used % 2  # the label goes with the image that stands in
    assert torch.equal(cache.read(np.array([17]), None, None), _images(source, np.array([used])))
    with (
        pytest.warns(UserWarning, match="image 0"),
        pytest.raises(UserError, match="6 of 101 images cannot be read, more than 5"),
    ):
        _write(tmp_path / "many", Grey(broken=(0, 7, 14, 28, 60, 99), length=101), shard_size=50)


def test_values_beyond_float16(tmp_path: Path) -> None:
    class Huge(Codec):
        def moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            return images * 1e6, None

    codec = Huge(_pixel_codec().config)
    with pytest.raises(UserError, match="not finite numbers in float16; give --dtype float32"):
        write_cache(tmp_path, Grey(), codec, PIXELS, dtype="float16")


def test_damaged_caches(tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(UserError) as caught:
            open_cache(str(tmp_path))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "is not a cache" in message()
    _write(tmp_path, Grey())
    files = {p: p.read_bytes() for p in tmp_path.iterdir()}
    manifest = json.loads(files[tmp_path / "manifest.json"])

    shard, labels, text = (tmp_path / name for name in ("00001.npy", "labels.npy", "manifest.json"))
    shard.write_bytes(files[shard][:-100])
    assert "00001.npy has" in message()
    shard.unlink()
    assert "00001.npy is missing" in message()
    shard.write_bytes(b"x" * len(files[shard]))
    assert "damaged" in message()
    shard.write_bytes(files[shard])
    labels.write_bytes(b"")
    assert "labels.npy has 0 bytes" in message()
    labels.write_bytes(files[labels])
    captions = tmp_path / "captions.jsonl"
    captions.unlink()
    assert "captions.jsonl is missing" in message()
    for damaged in (b"x" + files[captions][1:], files[captions].replace(b"\n", b" ")):
        captions.write_bytes(damaged)
        cache = open_cache(str(tmp_path))
        with pytest.raises(
            UserError, match=r"captions\.jsonl cannot be read \(.*; it is damaged: encode again"
        ):
            cache.captions(np.array([0]))
    captions.write_bytes(files[captions])
    text.write_text(json.dumps(manifest | {"format": "causalfusion-latents-0"}))
    assert "'causalfusion-latents-0'; expected 'causalfusion-latents-4'" in message()
    text.write_text(json.dumps({"format": manifest["format"]}))
    assert "damaged" in message()
    text.write_text("{")
    assert "not valid JSON" in message()
    text.write_bytes(files[text])
    assert len(open_cache(str(tmp_path))) == 11


def test_only_a_cache_that_fits_is_used(tmp_path: Path, autoencoder: str) -> None:
    def message(cache: LatentCache, codec: CodecConfig, data: DataConfig) -> str:
        with pytest.raises(UserError) as caught:
            check_cache(cache, codec, data)
        return str(caught.value)

    pixels = _write(tmp_path / "pixels", Grey())
    check_cache(pixels, PIXELS.codec, replace(GREY, flip=True))
    check_cache(
        pixels, replace(PIXELS.codec, patch_size=4), replace(GREY, image_size=8)
    )  # also without the mirror images
    assert "codec (pixels or autoencoder) = pixels, the run has autoencoder" in message(
        pixels, _drawn(autoencoder).codec, GREY
    )
    assert "data.image_size = 0, the run has 16" in message(
        pixels, PIXELS.codec, replace(GREY, image_size=16)
    )
    assert "codec.image_width = 8, the run has 4" in message(
        pixels, replace(PIXELS.codec, image_width=4), GREY
    )
    pixels.manifest["data"]["split"] = "test"
    assert "data.split = test, the run has train; give --data.split=test" in message(
        pixels, PIXELS.codec, GREY
    )
    pixels.manifest["data"]["split"] = "train"
    np.savez(tmp_path / "other.npz", images=np.zeros((3, 8, 8, 3), np.uint8))
    other = DataConfig(source="npz", path=str(tmp_path / "other.npz"))
    assert "was made of 11 images, " in message(pixels, PIXELS.codec, other)
    np.savez(tmp_path / "other.npz", images=np.zeros((11, 8, 8, 3), np.uint8))
    assert "data.path (hash of the data)" in message(pixels, PIXELS.codec, other)

    config = _drawn(autoencoder, "mode", flip=False)
    modes = _write(tmp_path / "modes", Grey(), config=config)
    check_cache(modes, config.codec, GREY)
    assert "codec.latents = mode, the run has sample" in message(modes, _drawn(autoencoder).codec, GREY)
    assert "data.flip = False, the run has True" in message(modes, config.codec, replace(GREY, flip=True))
    with pytest.raises(UserError, match="no mirrored images"):
        modes.read(np.array([0]), np.array([True]), None)
    another = str(_tiny_autoencoder(tmp_path / "vae", 1))
    assert "codec.autoencoder (hash of the weights)" in message(
        modes, replace(config.codec, autoencoder=another), GREY
    )
    moments = _write(tmp_path / "moments", Grey(), config=_drawn(autoencoder))
    check_cache(moments, config.codec, GREY)  # the mode is the mean
    assert open_autoencoder(autoencoder).latent_channels == 2
    assert moments.codec_config(CodecConfig(patch_size=4)) == CodecConfig(
        patch_size=4, image_height=8, image_width=8, image_channels=3
    )


def test_the_autoencoder_is_opened_once(
    tmp_path: Path, autoencoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _drawn(autoencoder)
    _write(tmp_path, Grey(), config=config)
    opened = []

    def count(path: str) -> object:
        opened.append(path)
        return open_autoencoder(path)

    monkeypatch.setattr("causalfusion.codec.autoencoder.open_autoencoder", count)
    world = World(rank=0, size=1, device=torch.device("cpu"))
    config = replace(
        config,
        data=DataConfig(source="npz", cache=str(tmp_path)),
        codec=replace(config.codec, normalization="measured"),
        train=TrainConfig(batch_size=4),
    )
    for latents in ("sample", "mode"):
        codec = open_training_data(
            replace(config, codec=replace(config.codec, latents=latents)), world
        ).codec.config
        mean, std = open_cache(str(tmp_path)).statistics(latents)
        assert (codec.shift, codec.scale) == (mean, 1 / std)
    assert opened == [autoencoder] * 2
