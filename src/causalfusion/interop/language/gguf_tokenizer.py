"""The tokenizer of a GGUF file as a tokenizer.json: byte-level BPE, or SentencePiece's BPE.

A file names how text is split into words before merges, but does not say it; the ways that are known stand
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from causalfusion.errors import UserError

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens: special ones, and those that are never cut into pieces."""
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = {
    "gpt-2": "",
    "gpt2": "",
    "smollm": "digits",
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}
"""By `tokenizer.ggml.pre`: a pattern of words, that of GPT-2 (empty), or that with each digit by itself."""
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""Vocabularies whose words are taken whole, whatever the merges."""


def gguf_tokenizer(values: Mapping[str, Any], where: str) -> bytes:
    """Raises UserError for a kind of tokenizer that is not known."""
    from tokenizers import AddedToken

    kind, tokens = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.tokens")
    if kind not in ("gpt2", "llama") or not tokens:
        raise UserError(
            f"{where}: its tokenizer is of kind {kind!r}; those that can be read are gpt2 (byte-level BPE) "
            "and llama (SentencePiece)"
        )
    base = _byte_level(values, where) if kind == "gpt2" else _sentence_piece(values)
    types = values.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    for token, type_ in zip(tokens, types, strict=True):
        if type_ in (CONTROL, USER_DEFINED):
            base.add_tokens([AddedToken(token, normalized=False, special=type_ == CONTROL)])
    return base.to_str().encode()


def tokenizer_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer_config.json: special tokens, chat template, whether a text begins by a token."""
    tokens = values.get("tokenizer.ggml.tokens") or []
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        place = values.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(place, int) and place < len(tokens):
            settings[f"{name}_token"] = tokens[place]
    begins = values.get("tokenizer.ggml.model") == "llama" or values.get("tokenizer.ggml.pre") == "llama-bpe"
    settings["add_bos_token"] = bool(values.get("tokenizer.ggml.add_bos_token", begins))
    settings["add_eos_token"] = bool(values.get("tokenizer.ggml.add_eos_token", False))
    if values.get("tokenizer.chat_template"):
        settings["chat_template"] = values["tokenizer.chat_template"]
    return settings


def _byte_level(values: Mapping[str, Any], where: str) -> Any:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    name = values.get("tokenizer.ggml.pre", "gpt-2")
    if name not in WORDS:
        raise UserError(
            f"{where}: it splits text into words as {name!r}, which is not known; known are "
            f"{', '.join(WORDS)}: take the model as a folder with tokenizer.json"
        )
    vocabulary = {token: place for place, token in enumerate(values["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in values.get("tokenizer.ggml.merges", [])]
    base = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, ignore_merges=name in _WHOLE_WORDS)  # pyright: ignore[reportArgumentType]
    )
    words = WORDS[name]
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words in ("", "digits"))
    if words == "digits":
        whole = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    elif words:
        pattern = tokenizers.Regex(words)
        whole = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, behavior="isolated"), whole])
    base.pre_tokenizer = whole
    if words == _QWEN2:
        base.normalizer = normalizers.NFC()
    base.decoder = decoders.ByteLevel()
    return base


def _sentence_piece(values: Mapping[str, Any]) -> Any:
    import tokenizers
    from tokenizers import decoders, models, normalizers

    tokens = values["tokenizer.ggml.tokens"]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    unknown = values.get("tokenizer.ggml.unknown_token_id", 0)
    base = tokenizers.Tokenizer(
        models.BPE(
            vocabulary,
            _merges(values, vocabulary),
            unk_token=tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaced = bool(values.get("tokenizer.ggml.add_space_prefix", True))
    steps = [normalizers.Prepend("▁")] * spaced + [normalizers.Replace(" ", "▁")]
    base.normalizer = normalizers.Sequence(steps)
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    base.decoder = decoders.Sequence(back + [decoders.Strip(" ", 1, 0)] * spaced)
    return base


def _merges(values: Mapping[str, Any], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges of the file, or those that its scores imply: every token from any two others, the best score
    first."""
    if "tokenizer.ggml.merges" in values:
        return [(first, second) for first, second in (m.split(" ") for m in values["tokenizer.ggml.merges"])]
    scores = values.get("tokenizer.ggml.scores") or [0.0] * len(vocabulary)
    found = []
    for token, place in vocabulary.items():
        parts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [pair for pair in parts if pair[0] in vocabulary and pair[1] in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(scores[place], *pair) for pair in pairs]
    found.sort(key=lambda entry: (-entry[0], -len(entry[1]), -len(entry[2])))
    return [(first, second) for _, first, second in found]
