"""Class names as captions: classes become something that a model of text is asked for (MonoFormer
2409.16280)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from causalfusion.data.names import same_name
from causalfusion.data.source import Example, ImageSource, label_of
from causalfusion.errors import UserError

SIZED_OR_TRACED = ("image_size", "image_name", "content_hash", "sizes_fingerprint")
"""What `SizedSource` and `TracedSource` ask for: from Python 3.12 on, a protocol does not see what
`__getattr__` finds."""


class ClassCaptions:
    """A source whose images have one caption each, the words of their class; all else is the source's."""

    has_captions = True

    def __init__(self, source: ImageSource, words_file: str = "") -> None:
        """`words_file`: as `read_words`; empty: the names themselves. Raises UserError for data without
        classes."""
        if not source.class_names:
            raise UserError(f"{source.name} has no classes; expected some, for data.captions class_names")
        self._source, self.name, self.class_names = source, source.name, source.class_names
        for name in SIZED_OR_TRACED:
            if hasattr(source, name):
                setattr(self, name, getattr(source, name))
        names = source.class_names
        self.words = (
            read_words(Path(words_file), names) if words_file else [n.replace("_", " ") for n in names]
        )

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> Example:
        example = self._source.read(index)
        return replace(example, captions=(self.words[example.label or 0],))

    def label(self, index: int) -> int | None:
        return label_of(self._source, index)

    def captions(self, index: int) -> tuple[str, ...]:
        return (self.words[self.label(index) or 0],)

    def fingerprint(self) -> str:
        return self._source.fingerprint()

    def __getattr__(self, name: str) -> Any:
        """What else the source can do."""
        if name == "_source":  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self._source, name)


def read_words(path: Path, names: Sequence[str]) -> list[str]:
    """The words of each class, from lines of a class's name, white space, and words, such as those of
    ImageNet's LOC_synset_mapping.txt. Raises UserError for a class without a line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.class_words {path} cannot be read ({error}); expected a text file") from None
    pairs = (line.split(maxsplit=1) for line in lines)
    words = {same_name(pair[0]): pair[1].strip() for pair in pairs if len(pair) == 2}
    missing = [name for name in names if same_name(name) not in words]
    if missing:
        raise UserError(
            f"data.class_words {path} has no line for {len(missing)} of {len(names)} classes, such as "
            f"{missing[0]!r}; expected lines of a class's name, a space, and its words"
        )
    return [words[same_name(name)] for name in names]
