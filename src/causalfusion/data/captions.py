"""Captions of images: read from a text file or a JSON record; each epoch draws one of them."""

from __future__ import annotations

import json
from typing import Any

from causalfusion.data.picture import UnreadableImage
from causalfusion.errors import UserError
from causalfusion.rng import derive_seed


def draw_caption(captions: tuple[str, ...], *, seed: int, epoch: int, index: int) -> str | None:
    """The caption of image `index` of the source in this epoch, drawn from (seed, epoch, index) alone; None
    for an image without captions."""
    if not captions:
        return None
    return captions[derive_seed(seed, "caption", epoch, index) % len(captions)]


def captions_of_text(content: bytes, name: str) -> tuple[str, ...]:
    """The captions in a caption file, one per non-blank line, stripped. Raises UnreadableImage for a file
    that is blank or not UTF-8: the image is then replaced, as a damaged one is."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is {content[error.start]:#04x}"
        raise UnreadableImage(name, f"the caption file is not UTF-8 ({byte}); save it as UTF-8") from error
    # Not `splitlines`, which would cut captions at form feeds and other rare characters too.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    captions = tuple(line.strip() for line in lines if line.strip())
    if not captions:
        raise UnreadableImage(
            name, "the caption file is blank; expected a caption on each line, at least one"
        )
    return captions


def captions_of_record(record: dict[str, Any], where: str) -> tuple[str, ...]:
    """The captions in a JSON object: `caption` (a string) or `captions` (a list of strings), not stripped;
    () if both are missing or null, or `caption` is "". Raises UserError, its message beginning with `where`,
    for any other value."""
    single, several = record.get("caption"), record.get("captions")
    if single is not None and several is not None:
        raise UserError(f"{where} has `caption` and `captions`; expected one of them")
    if several is None:
        return () if single in (None, "") else (_checked(single, f"{where}: `caption`"),)
    if not isinstance(several, list) or not several:
        raise UserError(f"{where}: `captions` is {_shown(several)}; expected a list of strings, not empty")
    return tuple(_checked(caption, f"{where}: `captions[{n}]`") for n, caption in enumerate(several))


def _checked(caption: object, what: str) -> str:
    if not isinstance(caption, str):
        raise UserError(f"{what} is {_shown(caption)}; expected a string")
    if not caption.strip():
        raise UserError(f"{what} is blank; expected text")
    try:
        caption.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair: JSON can write it, no tokenizer reads it
        raise UserError(f"{what} is not valid Unicode ({error.reason}); repair it") from error
    return caption


def _shown(value: object) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."
