"""Text in pictures, in any script: each character in the first font that has it.

ASCII text is drawn in Pillow's own font, any other in DejaVu, which comes with matplotlib. Characters that
DejaVu lacks are drawn in a font of the system, or as "?" with one warning.
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
"""Fonts to open at most, on a system without a list of the characters in its fonts."""
MISSING = "?"
"""Drawn instead of a character that no font has."""
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn"}
"""Unicode categories without glyphs: controls, joiners, lone surrogates, private use, unassigned."""


@dataclass(frozen=True)
class Face:
    """Letters of one size, in pixels, from as many fonts as a text needs."""

    size: int

    def getlength(self, text: str) -> float:
        """Width of a text in pixels."""
        return sum(font.getlength(part) for font, part in self.runs(text))

    def draw(
        self,
        draw: ImageDraw,
        at: tuple[float, float],
        text: str,
        fill: tuple[int, int, int],
        anchor: str = "ls",
    ) -> None:
        """Draw a text at (x, y), which is the point of the text that `anchor` names, as in Pillow: l, m or r
        (left, middle, right), then a, m or s (ascender, middle, baseline)."""
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
        """The text in parts, each with its font."""
        shown = shown_as(text)
        if shown.isascii():
            return [(_plain(self.size), shown)] if shown else []
        files = [(_file_of(character), character) for character in shown]
        return [
            (_truetype(str(file), self.size), "".join(character for _, character in part))
            for file, part in groupby(files, key=lambda pair: pair[0])
        ]


def shown_as(text: str) -> str:
    """The text as it is drawn: in composed form, on one line, without invisible characters, and with MISSING
    for those that no font has."""
    one_line = "".join(" " if c.isspace() else c for c in unicodedata.normalize("NFC", text))
    visible = "".join(c for c in one_line if unicodedata.category(c) not in _INVISIBLE)
    if visible.isascii():
        return visible
    if any(_file_of(c) is None for c in visible):
        _warn_once()
    return "".join(MISSING if _file_of(c) is None else c for c in visible)


@cache
def _warn_once() -> None:
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
    """File of the font that comes with matplotlib."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _file_of(character: str) -> Path | None:
    """File of a font that has the character: DejaVu, else the first of the system; None if none has it."""
    code = ord(character)
    for file, ranges in ((dejavu(), _ranges_of(dejavu())), *_system_fonts()):
        if any(low <= code <= high for low, high in ranges) and _is_usable(file):
            return file
    return None


@cache
def _is_usable(file: Path) -> bool:
    """False for damaged fonts and bitmap fonts, such as some of emoji, which have a single size."""
    try:
        _truetype(str(file), 12)
    except (OSError, ValueError):
        return False
    return True


_Ranges = tuple[tuple[int, int], ...]


@cache
def _system_fonts() -> tuple[tuple[Path, _Ranges], ...]:
    """(file, ranges of characters) of the fonts of this machine, regular ones first."""
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
    """Ranges, (first, last), of the code points in a font; () if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        codes = sorted(FT2Font(str(file)).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return ()
    runs = groupby(enumerate(codes), key=lambda pair: pair[1] - pair[0])
    ranges = [[code for _, code in run] for _, run in runs]
    return tuple((run[0], run[-1]) for run in ranges)
