"""The tokenizer of a language model, with its special tokens and chat template: text <-> ids, as its authors'
library has them.

Unlike `Tokenizer`, it adds no markers, and special tokens that stand in a text become their ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from causalfusion.codec.chat import Message, render_chat
from causalfusion.codec.tokenizer import FILE_NAME, LANGUAGE_FOLDER, Tokenizer, parse_tokenizer
from causalfusion.config.serialize import read_object
from causalfusion.errors import UserError

SETTINGS_FILE, TEMPLATE_FILE, GENERATION_FILE = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class LanguageTokenizer:
    """`json` is the content of a tokenizer.json, `settings` that of a tokenizer_config.json, `chat_template`
    that of a file of its own, if there is one. Raises ValueError for content that is neither."""

    def __init__(self, json: str, settings: Mapping[str, Any], chat_template: str = "") -> None:
        self._base = parse_tokenizer(json)
        self.json = json
        self.special_tokens = {
            name: text for name in _NAMED if (text := _content(settings.get(name))) is not None
        }
        """Texts of the named special tokens: bos_token, eos_token, ..."""
        self._add_missing(settings)
        self.size = max(self._base.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        """One more than its largest id."""
        if "add_bos_token" in settings or "add_eos_token" in settings:
            self._begin_and_end(bool(settings.get("add_bos_token")), bool(settings.get("add_eos_token")))
        self.chat_template = chat_template or _template_of(settings.get("chat_template"))
        """Empty: none."""

    def _add_missing(self, settings: Mapping[str, Any]) -> None:
        """Special tokens that only the settings name."""
        from tokenizers import AddedToken

        known = {token.content for token in self._base.get_added_tokens_decoder().values()}
        table = settings.get("added_tokens_decoder")
        entries = table.values() if isinstance(table, Mapping) else ()
        for entry in (*entries, *self.special_tokens.values()):
            content = _content(entry)
            if content is None or content in known:
                continue
            known.add(content)
            flags = entry if isinstance(entry, Mapping) else {"special": True}
            names = ("single_word", "lstrip", "rstrip", "normalized", "special")
            self._base.add_tokens(
                [AddedToken(content, **{name: bool(flags[name]) for name in names if name in flags})]
            )

    def _begin_and_end(self, begin: bool, end: bool) -> None:
        """Put the begin and the end token around every text."""
        from tokenizers import processors

        pattern, used = "$A:0", []
        for wanted, name in ((begin, "bos_token"), (end, "eos_token")):
            text = self.special_tokens.get(name)
            if wanted and text is not None:
                used.append((text, self.id_of(text)))
                pattern = f"{text}:0 {pattern}" if name == "bos_token" else f"{pattern} {text}:0"
        self._base.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=used)

    def encode(self, text: str, *, begin: bool = True) -> list[int]:
        """The ids of a text; with `begin`, also those that the model expects around it, such as the begin
        token. A lone surrogate (from a command line that is not UTF-8) is encoded as U+FFFD."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._base.encode(text, add_special_tokens=begin).ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation, up to where the model answers. Raises UserError for a model without a
        chat template."""
        return self.encode(self.chat_text(messages), begin=False)

    def chat_text(self, messages: Sequence[Message]) -> str:
        """The conversation as one text. Raises UserError as `encode_chat` does."""
        if not self.chat_template:
            raise UserError("this model has no chat template; give it a text to go on from, without --chat")
        return render_chat(self.chat_template, messages, self.special_tokens)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of ids; special tokens are left out unless `special`."""
        known = [token for token in ids if 0 <= token < self.size]
        return self._base.decode(known, skip_special_tokens=not special)

    def id_of(self, token: str) -> int | None:
        """The id of a token of the vocabulary."""
        return self._base.token_to_id(token)

    @property
    def fingerprint(self) -> str:
        """A short hash of the tokenizer's file."""
        return hashlib.sha256(self.json.encode()).hexdigest()[:16]


def open_language_tokenizer(folder: Path, vocab_size: int, fingerprint: str = "") -> LanguageTokenizer:
    """The tokenizer of a language model's folder, ours: tokenizer.json and the folder `language`. Raises
    UserError if it is missing, damaged, larger than the model's vocabulary, or has another fingerprint than
    the one that is given."""
    path, beside = folder / FILE_NAME, folder / LANGUAGE_FOLDER
    if not path.is_file():
        raise UserError(f"{folder} holds no {FILE_NAME}; put the model's own there")
    settings = read_object(beside / SETTINGS_FILE, "tokenizer") if (beside / SETTINGS_FILE).is_file() else {}
    template = beside / TEMPLATE_FILE
    text = template_text(template.read_bytes(), str(template)) if template.is_file() else ""
    tokenizer = make_language_tokenizer(path.read_bytes(), settings, text, vocab_size, str(path))
    if fingerprint and tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"{folder} holds another {FILE_NAME} than it was converted with; convert the model again"
        )
    return tokenizer


def template_text(content: bytes, where: str) -> str:
    """The text of a file with a chat template. Raises UserError for one that is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 ({error}); save it as UTF-8") from None


def drawing_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a language model's folder with markers behind a vocabulary of `vocab_size`, for a
    model that also draws. Raises UserError as `open_language_tokenizer` does."""
    open_language_tokenizer(folder, vocab_size)
    beside = folder / LANGUAGE_FOLDER
    files = {path.name: path.read_bytes() for path in sorted(beside.iterdir())} if beside.is_dir() else {}
    return Tokenizer((folder / FILE_NAME).read_bytes().decode("utf-8-sig"), vocab_size, files)


def make_language_tokenizer(
    json: bytes, settings: Mapping[str, Any], chat_template: str, vocab_size: int, where: str
) -> LanguageTokenizer:
    """Raises UserError for a tokenizer.json that is damaged, or does not fit a vocabulary of `vocab_size`."""
    try:
        tokenizer = LanguageTokenizer(json.decode("utf-8-sig"), settings, chat_template)
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(
            f"{where} is not a {FILE_NAME} of Hugging Face tokenizers: {str(error)[:300]}"
        ) from None
    if not 0 < tokenizer.size <= vocab_size:
        raise UserError(
            f"{where}: the tokenizer has {tokenizer.size:,} ids, the model's vocabulary {vocab_size:,}; use "
            "the tokenizer that the model was trained with"
        )
    return tokenizer


def _content(token: object) -> str | None:
    """The text of a token, which settings give as text or as a table."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _template_of(value: object) -> str:
    """A template, or the one called default of several."""
    if isinstance(value, list):
        value = next(
            (v.get("template") for v in value if isinstance(v, Mapping) and v.get("name") == "default"), ""
        )
    return value if isinstance(value, str) else ""
