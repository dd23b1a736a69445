"""Text <-> ids: any Hugging Face tokenizer, with five markers behind its vocabulary.

The markers are ids only. They are in no vocabulary, so no text can produce one: "<image>" in a caption is
ordinary text, whatever the tokenizer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from causalfusion.errors import UserError

if TYPE_CHECKING:
    pass

MARKERS = ("<text>", "</text>", "<image>", "</image>", "<end>")
"""Begin and end of a text, begin and end of an image, end of the sequence: how the markers are shown."""

FILE_NAME = "tokenizer.json"
MIN_VOCAB_SIZE = 256 + len(MARKERS)
"""Every byte is a token, so that any text has ids."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_GAPS = 16
"""Ids for each token that a vocabulary with gaps may have."""
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Markers:
    """The ids of `MARKERS`."""

    text: int
    text_end: int
    image: int
    image_end: int
    end: int


class Tokenizer:
    """`json` is the content of a tokenizer.json. Raises ValueError where it is not one."""

    def __init__(self, json: str) -> None:
        import tokenizers

        try:
            self._base = tokenizers.Tokenizer.from_str(json)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # its errors are bare `Exception`s, and its panics not even that
            raise ValueError(str(error)) from None
        # What some files ask for would cut texts off, lengthen them, or read a text's words as commands.
        self._base.no_truncation()
        self._base.no_padding()
        self._base.encode_special_tokens = True
        # Not their number: the ids of a vocabulary may have gaps.
        ids = self._base.get_vocab(with_added_tokens=True).values()
        self.base_size = max(ids, default=-1) + 1
        if self.base_size == 0:
            raise ValueError("its vocabulary is empty")
        if self.base_size > _MAX_GAPS * len(ids) + 2**16:  # each id has a row of embeddings
            raise ValueError(f"it has {len(ids):,} tokens, and one of them has the id {self.base_size - 1:,}")
        first = self.base_size
        self.markers = Markers(*range(first, first + len(MARKERS)))
        self.vocab_size = first + len(MARKERS)
        """Number of ids, markers included."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, never a marker's. What is no character (a lone surrogate, from a command line that
        is not UTF-8) is read as U+FFFD."""
        text = _LONE_SURROGATES.sub(_REPLACEMENT, text)
        return self._base.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text. Markers and ids that do not exist are left out; bytes that are not UTF-8 become U+FFFD."""
        known = [token for token in ids if 0 <= token < self.base_size]
        return self._base.decode(known, skip_special_tokens=False)

    def decode_stream(self) -> DecodeStream:
        return DecodeStream(self)

    def to_json(self) -> str:
        """The content of a tokenizer.json, from which `Tokenizer` makes an equal one."""
        return self._base.to_str()

    @property
    def fingerprint(self) -> str:
        """A short hash of all that decides which ids a text has."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


class DecodeStream:
    """Text from ids that come one by one: all that is fed and flushed, joined, is `decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.given = 0
        """Characters handed out."""

    def feed(self, token: int) -> str:
        """The text that has become final. A character whose last bytes are still to come is held back: at the
        end of what is decoded it shows as U+FFFD."""
        self.ids.append(token)
        # All of it each time, as some decoders depend on what comes before (a first word's space, say).
        return self._advance(self.tokenizer.decode(self.ids).rstrip(_REPLACEMENT))

    def flush(self) -> str:
        """What was held back."""
        return self._advance(self.tokenizer.decode(self.ids))

    def _advance(self, text: str) -> str:
        new = text[self.given :]
        self.given += len(new)
        return new


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` ids, markers included; fewer where the texts have no more to
    merge. Lossless: decode(encode(text)) == text for any Unicode text. Words are split as GPT-2 does, a word
    with the space before it."""
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            f"vocab_size is {vocab_size}; expected at least {MIN_VOCAB_SIZE}: 256 bytes and "
            f"{len(MARKERS)} markers"
        )
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    base = tokenizers.Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKERS),
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    base.train_from_iterator((_LONE_SURROGATES.sub(_REPLACEMENT, text) for text in texts), trainer)
    return Tokenizer(base.to_str())


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json, of a folder that holds one (a model's, say), or of a hub id."""
    path = Path(name)
    if name and path.is_dir():
        if not (path / FILE_NAME).is_file():
            raise UserError(f"{name} holds no {FILE_NAME}; expected a folder with one, such as a model's")
        path = path / FILE_NAME
    if path.is_file():
        try:
            return _from_text(path.read_bytes(), str(path))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); check the file") from None
    if path.suffix == ".json" or not _HUB_ID.fullmatch(name):
        raise UserError(f"there is no tokenizer at {name!r}; expected a {FILE_NAME}, its folder, or a hub id")
    return _from_text(_hub_file(name).read_bytes(), name)


def check_fits(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """Raises UserError unless the model of `where` has this tokenizer's number of ids."""
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens ({len(MARKERS)} markers included), "
            f"the model's vocabulary {vocab_size}; use the tokenizer that the model was trained with"
        )


def _from_text(content: bytes, where: str) -> Tokenizer:
    try:
        return Tokenizer(content.decode("utf-8-sig"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(
            f"{where} is not a {FILE_NAME} of Hugging Face tokenizers: {str(error)[:300]}"
        ) from None


def _hub_file(name: str) -> Path:
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        return Path(hub.hf_hub_download(name, FILE_NAME, local_files_only=True))
    except Exception:  # not fetched yet
        pass
    try:
        hub.model_info(name, timeout=20)  # one question; a download asks again and again without a network
        return Path(hub.hf_hub_download(name, FILE_NAME))
    except Exception as error:  # no network, no such repository, no access, no such file
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"the tokenizer {name!r} is neither a file nor a folder here, and the hub does not give its "
            f"{FILE_NAME} ({reason[0]}); expected a {FILE_NAME}, its folder, or a hub id such as owner/name"
        ) from None
