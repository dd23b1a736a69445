"""Text in pictures, in any script: each character in the first font that has it.

Plain ASCII is drawn in Pillow's own font; what has accents, Greek or Cyrillic in DejaVu, which comes with
matplotlib; what that lacks in a font of the system, if one has it, else as "?", which is said once.
"""

from __future__ import annotations

import shutil
import subprocess
import unicodedata
import warnings
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

    Font = FreeTypeFont | BitmapFont

MAX_FONTS = 300
"""Of a system that does not tell what its fonts have, so that each has to be opened."""
MISSING = "?"
"""In place of a character that no font has."""
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn"}
"""Unicode categories that have no glyph: controls, joiners, half surrogates, private, unassigned."""


@dataclass(frozen=True)
class Face:
    """Letters of one size."""

    size: int

    def getlength(self, text: str) -> float:
        return sum(font.getlength(part) for font, part in self.runs(text))

    def draw(
        self, draw: ImageDraw, at: tuple[float, float], text: str, fill: tuple[int, int, int],
        anchor: str = "ls",
    ) -> None:  # fmt: skip
        """`anchor`: l, m or r for the side of `at`, then a (ascender), m (middle) or s (baseline), as
        Pillow's. All runs stand on one baseline."""
        x, y = at
        x -= self.getlength(text) * {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]]
        if anchor[1] == "a":
            y += self.ascent
        elif anchor[1] == "m":
            y += self.size * 0.35  # half the height of a capital
        for font, part in self.runs(text):
            draw.text((x, y), part, fill=fill, font=font, anchor="ls")
            x += font.getlength(part)

    @property
    def ascent(self) -> int:
        return round(self.size * 0.95)

    def runs(self, text: str) -> list[tuple[Font, str]]:
        """The text in parts of one font each."""
        shown = shown_as(text)
        if shown.isascii():
            return [(_plain(self.size), shown)] if shown else []
        files = [(_file_of(character), character) for character in shown]
        return [
            (_truetype(str(file), self.size), "".join(character for _, character in part))
            for file, part in groupby(files, key=lambda pair: pair[0])
        ]


def shown_as(text: str) -> str:
    """The text as it is drawn: composed, on one line, without what no font has."""
    one_line = "".join(" " if c.isspace() else c for c in unicodedata.normalize("NFC", text))
    visible = "".join(c for c in one_line if unicodedata.category(c) not in _INVISIBLE)
    if visible.isascii():
        return visible
    if any(_file_of(c) is None for c in visible):
        _say_once()
    return "".join(MISSING if _file_of(c) is None else c for c in visible)


@cache
def _say_once() -> None:
    warnings.warn(
        f'pictures show "{MISSING}" for characters that no font of this machine has; install one that does, '
        "such as Noto Sans CJK",
        stacklevel=2,
    )


@cache
def _plain(size: int) -> Font:
    from PIL import ImageFont

    return ImageFont.load_default(size)


@cache
def _truetype(file: str, size: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(file, size)


@cache
def dejavu() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _file_of(character: str) -> Path | None:
    """The font that has a character: DejaVu, else the system's first."""
    code = ord(character)
    for file, ranges in ((dejavu(), _ranges_of(dejavu())), *_system_fonts()):
        if any(low <= code <= high for low, high in ranges) and _is_usable(file):
            return file
    return None


@cache
def _is_usable(file: Path) -> bool:
    """Fonts of bitmaps, such as some of emoji, have one size only."""
    try:
        _truetype(str(file), 12)
    except (OSError, ValueError):
        return False
    return True


_Ranges = tuple[tuple[int, int], ...]


@cache
def _system_fonts() -> tuple[tuple[Path, _Ranges], ...]:
    """The fonts of this machine, upright regular ones first, with the characters that they have."""
    program = shutil.which("fc-list")
    found: dict[Path, _Ranges] = {}
    if program is not None:
        query = [program, "--format", r"%{file}\t%{charset}\n"]
        try:
            said = subprocess.run(query, capture_output=True, timeout=60, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            said = b""
        for line in said.decode("utf-8", "surrogateescape").splitlines():
            name, _, ranges = line.partition("\t")
            found[Path(name)] = tuple(
                (int(low, 16), int(high or low, 16))
                for low, _, high in (part.partition("-") for part in ranges.split())
            )
    else:
        from matplotlib.font_manager import findSystemFonts

        found = {path: _ranges_of(path) for path in sorted(map(Path, findSystemFonts()))[:MAX_FONTS]}
    return tuple(sorted(found.items(), key=lambda font: ("Regular" not in font[0].name, str(font[0]))))


@cache
def _ranges_of(file: Path) -> _Ranges:
    from matplotlib.ft2font import FT2Font

    try:
        codes = sorted(FT2Font(str(file)).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return ()
    runs = groupby(enumerate(codes), key=lambda pair: pair[1] - pair[0])
    ranges = [[code for _, code in run] for _, run in runs]
    return tuple((run[0], run[-1]) for run in ranges)
