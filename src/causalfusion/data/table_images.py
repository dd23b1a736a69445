"""Images in the rows of a table: what sources of tables have in common, however they keep their rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from causalfusion.data.columns import Columns, classes_of_column, texts_of_row
from causalfusion.data.names import say_left_out
from causalfusion.data.picture import UnreadableImage, decode_image, size_of
from causalfusion.data.source import Example, digest


class TableImages(ABC):
    """Images in the order of the rows; a label is a class's number or name, captions are a text, or a list of
    texts."""

    name: str

    def _take(
        self, columns: Columns, names: list[str], labels: list[Any], listed: list[str], captions: list[Any]
    ) -> None:
        """Take over the values of the chosen columns, of all that have these names; `listed`: the names of
        numbered classes. Says which columns are left out. Raises UserError."""
        self._columns = columns
        self.classes = classes_of_column(labels, columns.label, self.name, listed)
        self.class_names = self.classes.names if self.classes else []
        self._captions = [
            texts_of_row(text, columns.caption, self.image_name(n)) for n, text in enumerate(captions)
        ]
        self.has_captions = bool(columns.caption)
        say_left_out(self.name, {f"column {name}": 1 for name in names if name not in columns.named})

    @abstractmethod
    def image_name(self, index: int) -> str: ...

    @abstractmethod
    def _encoded(self, index: int) -> bytes:
        """The encoded picture of a row; empty where it has none. Raises OSError or ValueError."""

    def _content(self, index: int) -> bytes:
        try:
            content = self._encoded(index)
        except (OSError, ValueError) as error:
            raise UnreadableImage(self.image_name(index), error) from error
        if not content:
            raise UnreadableImage(self.image_name(index), "the row has no picture")
        return content

    def read(self, index: int) -> Example:
        image = decode_image(self._content(index), self.image_name(index))
        return Example(image, self.label(index), self.captions(index))

    def label(self, index: int) -> int | None:
        return None if self.classes is None else int(self.classes.labels[index])

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions[index] if self.has_captions else ()

    def image_size(self, index: int) -> tuple[int, int]:
        return size_of(self._content(index), self.image_name(index))

    def content_hash(self, index: int) -> bytes:
        label = "" if self.classes is None else self.class_names[self.classes.labels[index]]
        return digest(label, *self.captions(index), self._content(index))
