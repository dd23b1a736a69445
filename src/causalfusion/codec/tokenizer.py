"""Text <-> ids: any Hugging Face tokenizer, with five markers appended to its vocabulary.

The markers are ids only. They are in no tokenizer's vocabulary, so no text can produce one: "<image>" in a
caption is ordinary text.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from causalfusion.config import NUM_MARKERS
from causalfusion.errors import UserError

if TYPE_CHECKING:
    import tokenizers

FILE_NAME = "tokenizer.json"
LANGUAGE_FOLDER = "language"
"""Folder in a model's folder with the settings that came with a language model's tokenizer and weights."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_GAPS = 16
"""Largest ratio of ids to tokens in a vocabulary whose ids have gaps."""
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
_NAMED = 8
"""Words that a note names."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Markers:
    """The ids of the markers: begin and end of a text, begin and end of an image, end of the sequence."""

    text: int
    text_end: int
    image: int
    image_end: int
    end: int


assert len(fields(Markers)) == NUM_MARKERS
MARKERS_OF_EXAMPLE = 4
"""Markers of a caption and its image in a sequence: begin and end of each."""
MIN_VOCAB_SIZE = 256 + NUM_MARKERS
"""Smallest vocabulary: one token for every byte, so that any text can be encoded, and the markers."""


def parse_tokenizer(json: str) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json, without the truncation and padding that some files request. Raises
    ValueError for other content."""
    import tokenizers

    try:
        parsed = tokenizers.Tokenizer.from_str(json)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare `Exception`s; its panics are not even those
        raise ValueError(str(error)) from None
    parsed.no_truncation()
    parsed.no_padding()
    return parsed


class Tokenizer:
    """A tokenizer with its markers."""

    def __init__(
        self, json: str, vocabulary: int = 0, language_files: Mapping[str, bytes] | None = None
    ) -> None:
        """`json` is the content of a tokenizer.json; anything else raises ValueError. Of a language model's
        tokenizer, `vocabulary` is the number of rows of the model's embedding, behind which the markers
        stand, and `language_files` are what its folder `language` holds."""
        self._base = parse_tokenizer(json)
        self._json = json if vocabulary else ""
        self.language_files = dict(language_files or {})
        self._base.encode_special_tokens = True  # some files request special tokens inside ordinary text
        # Not the number of tokens, as the ids of a vocabulary may have gaps.
        ids = self._base.get_vocab(with_added_tokens=True).values()
        self.base_size = max(ids, default=-1) + 1
        if self.base_size == 0:
            raise ValueError("its vocabulary is empty")
        if self.base_size > _MAX_GAPS * len(ids) + 2**16:  # each id has a row of embeddings
            raise ValueError(f"it has {len(ids):,} tokens, and one of them has the id {self.base_size - 1:,}")
        if vocabulary and vocabulary < self.base_size:
            raise ValueError(f"it has {self.base_size:,} ids, the model's vocabulary {vocabulary:,}")
        added = {} if vocabulary else self._base.get_added_tokens_decoder()
        self._words = {
            token: word.content for token, word in added.items() if word.lstrip and not word.special
        }
        """Words of `with_word`, by their ids."""
        first = vocabulary or self.base_size
        self.markers = Markers(*range(first, first + NUM_MARKERS))
        self.vocab_size = first + NUM_MARKERS
        """Number of ids, markers included."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, never those of markers. A lone surrogate (from a command line that is not UTF-8)
        is encoded as U+FFFD."""
        text = _LONE_SURROGATES.sub(_REPLACEMENT, text)
        return self._base.encode(text, add_special_tokens=False).ids

    def with_word(self, word: str) -> Tokenizer:
        """This tokenizer with one more word, its last id before the markers, wherever it stands, but not
        within a longer word; the space before it is part of it. Raises UserError for a word that it has, and
        for a language model's."""
        import tokenizers

        if self._json:
            raise UserError(
                f"a language model's tokenizer takes no new word, such as {word}; train --adapter lora"
            )
        base = parse_tokenizer(self.to_json())
        alone = [ids for ids in map(self.encode, (word, f" {word}")) if len(ids) == 1]
        if base.token_to_id(word) is not None or any(self.decode(ids).strip() == word for ids in alone):
            raise UserError(f"the tokenizer has the word {word!r}; expected a new one, such as '<heart>'")
        # Scripts with capitals have spaces between words; in others a word's neighbours tell nothing.
        apart = all(end.upper() != end.lower() or end in "_0123456789" for end in (word[0], word[-1]))
        added = tokenizers.AddedToken(word, single_word=apart, lstrip=True, normalized=False)
        base.add_tokens([added])
        grown = Tokenizer(base.to_str())
        if grown.encode(f"a {word}")[-1] != self.base_size or grown.base_size != self.base_size + 1:
            raise UserError(
                f"the tokenizer has no room for {word!r} behind its words; expected another model"
            )
        return grown

    def pieces(self, word: str) -> int:
        """The fewest tokens that a word consists of, at the beginning of a text or inside it."""
        return min(len(self.encode(text)) for text in (word, f" {word}"))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Markers and unknown ids are skipped; bytes that are not UTF-8 become U+FFFD."""
        text, between = "", list[int]()
        for token in (token for token in ids if 0 <= token < self.base_size):
            word = self._words.get(token)
            if word is None:
                between.append(token)
                continue
            # By itself: a decoder of bytes would take its letters for bytes. The space before is part of it.
            text += self._base.decode(between, skip_special_tokens=False)
            text += word if not text or text[-1].isspace() else f" {word}"
            between = []
        return text + self._base.decode(between, skip_special_tokens=False)

    def decode_stream(self) -> DecodeStream:
        """A decoder for ids that arrive one by one."""
        return DecodeStream(self)

    def to_json(self) -> str:
        """The content of a tokenizer.json, from which `Tokenizer` restores this tokenizer."""
        return self._json or self._base.to_str()

    @property
    def fingerprint(self) -> str:
        """A short hash of everything that determines the ids of a text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


class Decoder(Protocol):
    def decode(self, ids: Iterable[int]) -> str: ...


class DecodeStream:
    """Decodes ids one by one: the texts returned by `feed` and `flush`, joined, equal `decode` of all ids."""

    def __init__(self, tokenizer: Decoder) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.given = 0
        """Number of characters returned so far."""

    def feed(self, token: int) -> str:
        """The text that became final with this id. An incomplete character, decoded as a final U+FFFD, is
        held back until its last bytes arrive."""
        self.ids.append(token)
        # All ids each time, as some decoders depend on the preceding ones (such as a first word's space).
        return self._advance(self.tokenizer.decode(self.ids).rstrip(_REPLACEMENT))

    def flush(self) -> str:
        """The text that is still held back."""
        return self._advance(self.tokenizer.decode(self.ids))

    def _advance(self, text: str) -> str:
        new = text[self.given :]
        self.given += len(new)
        return new


def words_in_pieces(tokenizer: Tokenizer, texts: Iterable[str]) -> str:
    """The words of texts that the tokenizer spells in pieces, the most frequent first, for a note; empty: it
    has them all."""
    counts = Counter(word for text in texts for word in _WORD.findall(text))
    pieces = {word: tokenizer.pieces(word) for word, _ in counts.most_common()}
    strange = [f"{word} ({number} pieces)" for word, number in pieces.items() if number > 1]
    more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
    return ", ".join(strange[:_NAMED]) + more


def check_vocab_size(vocab_size: int) -> None:
    """Raise UserError for fewer ids than every tokenizer has."""
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            f"vocab_size is {vocab_size}; expected at least {MIN_VOCAB_SIZE}: 256 bytes and "
            f"{NUM_MARKERS} markers"
        )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` ids, markers included; fewer if the texts have nothing more to
    merge. Lossless: decode(encode(text)) == text for any Unicode text. Words are split as in GPT-2, each with
    the space before it. Raises UserError for a `vocab_size` below MIN_VOCAB_SIZE."""
    check_vocab_size(vocab_size)
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    base = tokenizers.Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - NUM_MARKERS,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    base.train_from_iterator((_LONE_SURROGATES.sub(_REPLACEMENT, text) for text in texts), trainer)
    return Tokenizer(base.to_str())


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer in a tokenizer.json, in a folder with one (such as a model's), or under a hub id. Raises
    UserError."""
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
    """Raises UserError, its message beginning with `where`, unless a model's vocabulary has the tokenizer's
    size."""
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens ({NUM_MARKERS} markers included), "
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
    except Exception:  # not in the local cache
        pass
    try:
        # A single request first: a download would retry for minutes without a network.
        hub.model_info(name, timeout=20)
        return Path(hub.hf_hub_download(name, FILE_NAME))
    except Exception as error:  # no network, no such repository, no access, no such file
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"the tokenizer {name!r} is neither a file nor a folder here, and the hub does not give its "
            f"{FILE_NAME} ({reason[0]}); expected a {FILE_NAME}, its folder, or a hub id such as owner/name"
        ) from None
