"""Open images by a name: a built-in data set, a folder, shards, a file, a sample set."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from causalfusion.config import DataConfig, SplitName
from causalfusion.config.serialize import read_json
from causalfusion.config.sizes import size_text
from causalfusion.data import guess_source, open_source
from causalfusion.errors import UserError, printable
from causalfusion.evaluate.samples.images import ImageSet, SourceImages, size_of
from causalfusion.evaluate.samples.sample_set import SETTINGS, SampleSet, is_sample_set
from causalfusion.evaluate.samples.sampled_folder import SampledFolder

EXPECTED = (
    "expected digits, shapes[:SPLIT], a folder of images, a sample set, shards (*.tar), a .jsonl or .npz file"
)


def open_images(
    name: str,
    *,
    image_size: int | tuple[int, int] = 0,
    channels: int = 0,
    count: int | None = None,
    num_workers: int = 0,
    skip_damaged: bool = False,
) -> ImageSet:
    """The images of this name; see `SourceImages` for the options. Raises UserError where there are none."""
    folder = Path(name).expanduser()
    found = _settings_in(folder)
    if found is not None and is_sample_set(found[1]):
        samples = SampleSet(found[0], count)
        size = size_of(image_size) or samples.shape[:2]
        if size != samples.shape[:2] or channels not in (0, samples.shape[2]):
            wanted = f"{size_text(*size)} pixels, {channels or samples.shape[2]} channels"
            raise UserError(f"the samples in {name} have shape {samples.shape}; asked for are {wanted}")
        return samples
    if found is not None and found[1].get("command") == "sample":
        source = SampledFolder(*found)
    else:
        source = open_source(data_config(name, image_size))
    return SourceImages(
        source,
        image_size=image_size,
        channels=channels,
        count=count,
        num_workers=num_workers,
        skip_damaged=skip_damaged,
    )


def data_config(name: str, image_size: int | tuple[int, int] = 0) -> DataConfig:
    """Settings of the data set of this name; scenes of `shapes` are drawn at the size that is given. Raises
    UserError where there is none."""
    path = Path(name).expanduser()
    kind, _, split = name.partition(":")
    if kind == "shapes":
        splits = get_args(SplitName)
        if split and split not in splits:
            raise UserError(f"{name}: shapes has no split {split!r}; expected one of {', '.join(splits)}")
        chosen: SplitName = next((known for known in splits if known == split), "train")
        size = size_of(image_size)
        return DataConfig(source="shapes", split=chosen, image_size=size_text(*size) if size else 0)
    if name == "digits":
        return DataConfig(source="digits")
    try:
        source = guess_source(str(path))
    except UserError as error:
        if path.exists():
            raise
        raise UserError(f"{printable(name)} does not exist; {EXPECTED}") from error
    if source == "cache":
        raise UserError(f"{printable(name)} holds latents; {EXPECTED}")
    return DataConfig(source=source, path=str(path))


def sampled_settings(name: str) -> dict[str, Any] | None:
    """Settings that generated the images in the folder `name`; None if it holds no settings."""
    found = _settings_in(Path(name).expanduser())
    return None if found is None else found[1]


def _settings_in(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """A folder of generated images and its settings: `folder`, or `samples` in the folder of an evaluation.
    None if neither holds settings."""
    for place in (folder, folder / "samples"):
        path = place / SETTINGS
        if path.is_file():
            settings = read_json(path, f"the images in {printable(place)}")
            return (place, settings) if isinstance(settings, dict) else None
    return None
