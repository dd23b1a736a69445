from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from causalfusion.config import DataConfig
from causalfusion.config.options import Paths, Recipes
from causalfusion.errors import UserError
from causalfusion.machine.progress import ProgressLine

app = App(name="tokenizer", help="Make a tokenizer: text to ids and back.", result_action="return_value")


@app.command
def train(
    paths: Paths = (),
    /,
    *,
    out: Path,
    vocab_size: int = 4096,
    max_texts: int = 200_000,
    texts: Annotated[Sequence[Path], Parameter(consume_multiple=True)] = (),
    config: Recipes = (),
    data: DataConfig = DataConfig(),  # noqa: B008
) -> int:
    """Train a byte-level BPE on the captions of a data set, the texts of documents, or on text files.

    Parameters
    ----------
    out
        The tokenizer.json to write; another tokenizer there is replaced.
    vocab_size
        Largest number of ids: 256 bytes, 5 markers, the rest words and parts of words.
    max_texts
        Largest number of texts to train on.
    texts
        UTF-8 files with one text on each line, instead of a data set.
    """
    from causalfusion.codec.tokenizer import check_vocab_size, train_tokenizer
    from causalfusion.files import write_whole

    if max_texts < 1:
        raise UserError(f"max-texts is {max_texts}; expected at least 1")
    if texts and data != DataConfig():
        raise UserError(
            "both --texts and a data set are given; expected one of them: the tokenizer learns from text "
            "files, or from the captions of data"
        )
    check_vocab_size(vocab_size)
    _refuse_to_replace(out)
    found = read_lines(texts, max_texts) if texts else read_captions(data, max_texts)
    tokenizer = train_tokenizer(found, vocab_size)
    write_whole(out, tokenizer.to_json())
    num_tokens = sum(len(tokenizer.encode(text)) for text in found)
    num_words = sum(len(text.split()) for text in found)
    print(
        f"{out}: vocabulary of {tokenizer.vocab_size} from {len(found):,} texts, "
        f"{num_tokens / len(found):.1f} tokens a text, {num_tokens / num_words:.2f} tokens a word"
    )
    if tokenizer.vocab_size < vocab_size:
        print(f"note: fewer than {vocab_size}, as the texts have no more pairs that occur twice")
    return 0


def read_lines(files: Sequence[Path], max_texts: int) -> list[str]:
    """The first `max_texts` lines of the files that are not blank. Raises UserError where there are none."""
    found: list[str] = []
    for file in files:
        with file.open(encoding="utf-8-sig", newline="\n") as lines:
            try:
                for line in lines:
                    if len(found) == max_texts:
                        return found
                    if line.strip():
                        found.append(line.rstrip("\r\n"))
            except UnicodeDecodeError as error:
                raise UserError(f"{file} is not UTF-8 ({error}); convert it") from None
    if not found:
        names = ", ".join(map(str, files))
        raise UserError(f"there is no text in {names}; expected one text on each line")
    return found


def read_captions(config: DataConfig, max_texts: int) -> list[str]:
    """The captions of the training images, several where an image has several. Where there are more than
    `max_texts`, those of images drawn at random, always the same ones. Raises UserError for data without
    captions."""
    import numpy as np

    from causalfusion.data import UnreadableImage, open_source
    from causalfusion.data.loader import split_holdout
    from causalfusion.data.reader import Health
    from causalfusion.data.source import captions_of

    if config.has_documents:
        return texts_of_documents(config, max_texts)
    source = open_source(config)
    if not source.has_captions:
        raise UserError(f"{source.name} has no captions; give data with captions, or --texts FILE")
    indices, _ = split_holdout(len(source), config.holdout)
    health, read, count = Health(len(indices)), dict[int, Sequence[str]](), 0
    # In any order, as the first ones may all be of one class.
    indices = np.random.Generator(np.random.Philox(0)).permutation(indices)[:max_texts]
    progress = ProgressLine(len(indices), 0)
    for done, index in enumerate(indices.tolist(), 1):
        try:
            read[index] = captions_of(source, index)
            count += len(read[index])
            health.note(1, [])
        except UnreadableImage as error:
            health.note(0, [(index, str(error))])
        progress.show(done, f"{count:,} texts", force=done == len(indices))
        if count >= max_texts:
            break
    progress.close()
    found = [text for index in sorted(read) for text in read[index]][:max_texts]
    found = [text for text in found if text.strip()]
    if not found:
        raise UserError(f"all captions of {source.name} are empty; give data with captions, or --texts FILE")
    return found


def texts_of_documents(config: DataConfig, max_texts: int) -> list[str]:
    """The texts of the training documents; of more than `max_texts`, some drawn at random, always
    the same ones. Raises UserError for documents without any."""
    import numpy as np

    from causalfusion.data import open_documents
    from causalfusion.data.loader import split_holdout
    from causalfusion.data.source import spread

    source = open_documents(config)
    indices, _ = split_holdout(len(source), config.holdout)
    chosen = spread(indices, max_texts).tolist()
    found = [text for index in chosen for text in source.texts(index)]
    some = np.random.Generator(np.random.Philox(0)).permutation(len(found))[:max_texts]
    found = [found[place] for place in sorted(some.tolist())]
    if not found:
        raise UserError(f"the documents of {source.name} have no text; give others, or --texts FILE")
    return found


def _refuse_to_replace(out: Path) -> None:
    """Raise UserError where `out` is a folder, or a file other than a tokenizer."""
    from causalfusion.codec.tokenizer import open_tokenizer

    if out.is_dir():
        raise UserError(f"--out {out} is a folder; expected a file, such as {out / 'tokenizer.json'}")
    if out.exists():
        try:
            open_tokenizer(str(out))
        except UserError:
            raise UserError(f"{out} is something other than a tokenizer; give another --out") from None
