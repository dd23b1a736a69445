"""Documents of a .jsonl file that generation goes on from."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from causalfusion.config.sizes import Fit
from causalfusion.data.documents_file import JsonlDocuments
from causalfusion.data.picture import UnreadableImage
from causalfusion.documents import ImageToCome, Text
from causalfusion.errors import UserError
from causalfusion.generate.prompts import given_documents
from causalfusion.generate.read import fitted
from causalfusion.generate.token_pipeline import TokenPipeline


class DocumentPrompts:
    """The documents, each checked when the file is opened, its images read when it is asked for: the texts
    and images (C, H, W) in [-1, 1] of the model's size, in their order."""

    def __init__(self, path: Path, pipeline: TokenPipeline, last: ImageToCome | Text, more: int) -> None:
        """`last` follows each document. Raises UserError, one line that names file and line, for a document
        that leaves no room in the model for it and `more` text tokens."""
        tokenizer, model = pipeline.with_text(), pipeline.model.config
        self.source, self._size = JsonlDocuments(str(path)), pipeline.codec.config
        for index in range(len(self)):
            parts = [part if part.kind == "image" else part.value for part in self.source.parts(index)]
            try:
                given_documents([parts], last, tokenizer, model, more)
            except UserError as error:
                raise UserError(f"{self.source.image_name(index)}: {error}") from None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> list[str | Tensor]:
        """One document. Raises UserError for one with an image that cannot be read."""
        size, name = self._size, self.source.image_name(index)
        fit = Fit(size.image_height, size.image_width)
        try:
            elements = self.source.read(index).elements
        except UnreadableImage as error:
            raise UserError(f"{error}; repair the image") from None
        return [e if isinstance(e, str) else fitted(e, fit, size.image_channels, name) for e in elements]

    def told(self, index: int) -> list[dict[str, str]]:
        """A document's elements as records, the images by their paths from here."""
        return [
            {"text": part.value} if part.kind == "text" else {"image": self.source.path_of(index, part)}
            for part in self.source.parts(index)
        ]

    def title(self, index: int) -> str:
        """A document in a few words: the last of its texts."""
        texts = self.source.texts(index)
        return texts[-1] if texts else ""
