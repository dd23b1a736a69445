"""Model folders of language models, which hold their tokenizer as its authors wrote it, without markers."""

from __future__ import annotations

from pathlib import Path

from causalfusion.codec.language_tokenizer import LANGUAGE_FOLDER, open_language_tokenizer
from causalfusion.codec.tokenizer import FILE_NAME as TOKENIZER_FILE
from causalfusion.saved.folder import ModelSpec, load_weights, replace_model


def copy_language_model(source: Path, out: Path, spec: ModelSpec) -> None:
    """Write the language model of a folder, whose settings are `spec`, into `out` in the current format, with
    all that it needs. Raises UserError."""
    open_language_tokenizer(source, spec.model.text_vocab_size, spec.tokenizer_fingerprint)
    beside = [source / name for name in (TOKENIZER_FILE, "README.md", LANGUAGE_FOLDER)]
    replace_model(out, spec, load_weights(source), beside=beside)
