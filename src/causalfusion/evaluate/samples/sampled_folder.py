"""The images in a folder that `causalfusion sample` wrote."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causalfusion.config.serialize import from_dict
from causalfusion.data.picture import UnreadableImage, decode_native, read_file
from causalfusion.data.source import Example
from causalfusion.data.written import SETTINGS
from causalfusion.errors import UserError
from causalfusion.files import hash_of, stamp
from causalfusion.generate.out_folder import image_name
from causalfusion.generate.store import TAG


@dataclass(frozen=True)
class _SampledSettings:
    """Settings of `sample` that are needed here."""

    first: int
    """Index of the first image."""
    labels: list[int]
    """Label of each image."""
    class_names: list[str]
    finished: bool = True
    """False for an interrupted `sample`. Folders of earlier versions do not have it."""
    identity: str = ""
    """Hash of the settings, which every image carries too."""


class SampledFolder:
    """The PNGs of a finished `sample`, with their classes; grey ones have one channel. Raises UserError for a
    folder of an interrupted `sample`, one that lacks images, and one with images of two runs."""

    has_captions = False

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        names = _SampledSettings.__dataclass_fields__
        try:
            told = from_dict(
                _SampledSettings, {key: value for key, value in settings.items() if key in names}
            )
        except UserError as error:
            raise UserError(f"{folder / SETTINGS['sample']}: {error}; it is damaged") from None
        self.name, self._folder, self._told = str(folder), folder, told
        known = all(0 <= label < len(told.class_names) for label in told.labels)
        self.class_names: list[str] = told.class_names if known else []
        if not told.finished:
            raise UserError(
                f"{folder} is not finished: its `sample` was stopped, or still runs; the same command again "
                "goes on with it"
            )
        there = {entry.name for entry in os.scandir(folder)}
        missing = [name for name in map(self._name, range(len(self))) if name not in there]
        if len(missing) == len(self):
            raise UserError(
                f"{folder} has no {self._name(0)}; expected the images of sample: write them with "
                "--output png, or give its samples.npz"
            )
        if missing:
            raise UserError(
                f"{folder} lacks {len(missing)} of its {len(self)} images ({missing[0]}, ...); run its "
                "`sample` again"
            )

    def __len__(self) -> int:
        return len(self._told.labels)

    def read(self, index: int) -> Example:
        from PIL import Image

        file = self._folder / self._name(index)
        try:
            content = read_file(file)
            image = decode_native(content, str(file))
            with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
                identity = opened.info.get(TAG, "")
        except OSError as error:
            raise UnreadableImage(str(file), error) from error
        if identity and identity != self._told.identity:
            settings = self._folder / SETTINGS["sample"]
            raise UserError(
                f"{file} was made by another `sample` than {settings} says: the folder holds images of two "
                "runs; run `sample` again"
            )
        return Example(image, self._told.labels[index] if self.class_names else None)

    def fingerprint(self) -> str:
        names = [self._name(index) for index in range(len(self))]
        return hash_of(
            [*self._told.labels, *(part for name in names for part in (name, *stamp(self._folder / name)))]
        )

    def _name(self, index: int) -> str:
        return image_name(self._told.first + index)
