"""The tokenizer: nothing is lost, nothing collides with a marker, and what cannot be used is refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causalfusion.cli import run
from causalfusion.codec.tokenizer import (
    MIN_VOCAB_SIZE,
    Tokenizer,
    check_fits,
    open_tokenizer,
    train_tokenizer,
)
from causalfusion.commands.tokenizer import read_captions, texts_of_documents
from causalfusion.config import DataConfig
from causalfusion.data import Example, UnreadableImage
from causalfusion.data.loader import split_holdout
from causalfusion.errors import UserError

CAPTIONS = [
    f"a {size} {colour} {shape} {relation} a large blue star"
    for size in ("small", "large")
    for colour in ("red", "green", "yellow")
    for shape in ("circle", "square")
    for relation in ("to the left of", "above", "below")
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CAPTIONS, 1024)


@pytest.fixture(scope="module")
def foreign() -> Tokenizer:
    """As others make them: words, a gap in the ids, special tokens that its own post-processor adds,
    truncation and padding switched on."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors

    vocabulary = {"[UNK]": 0, "[CLS]": 1, "a": 2, "red": 3, "circle": 9}
    base = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    base.add_special_tokens(["[CLS]"])
    base.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    base.enable_truncation(2)
    base.enable_padding(length=8)
    return Tokenizer(base.to_str())


@settings(max_examples=300)
@given(st.text() | st.text(alphabet="a <>/imagetx\n\t\x00é👩\u200d👧\ufffd\ufeff"))
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.base_size for token in ids)


@pytest.mark.parametrize(
    "text",
    ["<text>", "<end>", "  two  spaces ", " ", "", "\r\n", "👩‍👩‍👧 é e\u0301", "a<image>b</image>"],
)
def test_awkward_text_survives(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert max(ids, default=0) < tokenizer.markers.text


@settings(max_examples=300)
@given(st.lists(st.integers(0, MIN_VOCAB_SIZE) | st.sampled_from([-1, 1023, 10**12]), max_size=40))
def test_stream_joined_is_decode(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Also for bytes that are not UTF-8, markers, and ids that do not exist."""
    stream = tokenizer.decode_stream()
    pieces = [stream.feed(token) for token in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)
    assert "\ufffd" not in pieces[-1:]


@settings(max_examples=200)
@given(st.text(max_size=30))
def test_stream_never_gives_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    stream = tokenizer.decode_stream()
    given = ""
    for token in tokenizer.encode(text):
        given += stream.feed(token)
        assert text.startswith(given)
    assert given + stream.flush() == text


def test_stream_gives_a_character_with_its_last_byte(tokenizer: Tokenizer) -> None:
    stream = tokenizer.decode_stream()
    ids = tokenizer.encode("é👧a")
    assert len(ids) == 2 + 4 + 1  # bytes: the training texts have none of them
    assert [stream.feed(token) for token in ids] == ["", "é", "", "", "", "👧", "a"]


def test_words_of_the_data_are_single_tokens(tokenizer: Tokenizer) -> None:
    text = "a small red circle to the left of a large blue star"
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
    assert pieces == ["a", *(f" {word}" for word in text.split()[1:])]


@pytest.mark.parametrize("word", ["<heart>", "herzé", "straße", "日本"])
def test_a_new_word_survives_wherever_it_stands(tokenizer: Tokenizer, word: str) -> None:
    grown = tokenizer.with_word(word)
    for text in (word, f"a {word} red", f"{word} {word}", f"red, {word}, circle"):
        ids = grown.encode(text)
        assert grown.base_size - 1 in ids
        assert grown.decode(ids) == text


def test_markers_lie_behind_the_vocabulary(tokenizer: Tokenizer) -> None:
    markers = tokenizer.markers
    ids = [markers.text, markers.text_end, markers.image, markers.image_end, markers.end]
    assert ids == list(range(tokenizer.vocab_size - 5, tokenizer.vocab_size))
    red = tokenizer.encode(" red")
    assert tokenizer.decode([markers.text, *red, markers.image, *red, markers.end, -1, 10**12]) == " red red"


def test_training_holds_the_vocabulary_size() -> None:
    assert train_tokenizer(CAPTIONS, 300).vocab_size == 300
    assert train_tokenizer([], MIN_VOCAB_SIZE).vocab_size == MIN_VOCAB_SIZE
    with pytest.raises(UserError, match=r"vocab_size is 260; expected at least 261"):
        train_tokenizer(CAPTIONS, MIN_VOCAB_SIZE - 1)


def test_training_is_deterministic_across_processes(tokenizer: Tokenizer) -> None:
    """The order of a hash table, or the number of threads, must not show in the ids."""
    code = (
        "import sys, json; from causalfusion.codec.tokenizer import train_tokenizer;"
        "print(train_tokenizer(json.load(sys.stdin), 1024).fingerprint)"
    )
    for parallel in ("true", "false"):
        environment = os.environ | {"TOKENIZERS_PARALLELISM": parallel, "PYTHONHASHSEED": "7"}
        out = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(CAPTIONS), capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        assert out.stdout.strip() == tokenizer.fingerprint
    assert train_tokenizer(CAPTIONS[:5], 1024).fingerprint != tokenizer.fingerprint


def test_a_lone_surrogate_is_a_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\udcffb")) == "a\ufffdb"
    assert train_tokenizer(["a\udcffb"], 300).vocab_size >= MIN_VOCAB_SIZE


def test_same_after_json_and_pickle(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    copies = [
        open_tokenizer(str(tmp_path)),
        open_tokenizer(str(tmp_path / "tokenizer.json")),
        pickle.loads(pickle.dumps(tokenizer)),
    ]
    for copy in copies:
        assert copy.fingerprint == tokenizer.fingerprint
        assert copy.markers == tokenizer.markers
        assert copy.encode(CAPTIONS[7] + " <image> é") == tokenizer.encode(CAPTIONS[7] + " <image> é")


def test_a_foreign_tokenizer_keeps_its_ids(foreign: Tokenizer) -> None:
    assert foreign.encode("a red circle") == [2, 3, 9]  # nothing added, cut off or filled up
    assert foreign.markers.text == 10  # behind the highest id, not the number of ids
    assert 1 not in foreign.encode("[CLS]")  # what a user writes is text
    assert foreign.encode("<image>") == [0, 0, 0]
    stream = foreign.decode_stream()
    ids = [2, 3, 10, 9]
    assert (
        "".join(stream.feed(token) for token in ids) + stream.flush() == foreign.decode(ids) == "a red circle"
    )


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": {"type": "BPE"}}', b"[1, 2]"])
def test_a_broken_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer.json is not a tokenizer.json"):
        open_tokenizer(str(path))


def test_what_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"holds no tokenizer.json"):
        open_tokenizer(str(tmp_path))
    for name in (str(tmp_path / "x.json"), "", "no such", "a/b/c"):
        with pytest.raises(UserError, match=r"expected a tokenizer.json, its folder, or a hub id"):
            open_tokenizer(name)
    import huggingface_hub

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", offline)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    with pytest.raises(UserError, match=r"'owner/name' is neither .* \(no network\)"):
        open_tokenizer("owner/name")


def test_a_model_of_another_size_is_refused(tokenizer: Tokenizer) -> None:
    check_fits(tokenizer, tokenizer.vocab_size, "model")
    with pytest.raises(UserError, match=rf"runs/x: .* has {tokenizer.vocab_size} tokens .* vocabulary 1024"):
        check_fits(tokenizer, 1024, "runs/x")


def test_cli_trains_on_text_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    files[0].write_text("\n\n".join(CAPTIONS[:20]) + "\n")
    files[1].write_text("\n".join(CAPTIONS[20:]))
    out = tmp_path / "new" / "tokenizer.json"
    command = ["tokenizer", "train", "--out", str(out), "--vocab-size", "1024"]
    assert run([*command, "--texts", str(files[0]), str(files[1])]) == 0
    assert open_tokenizer(str(out)).fingerprint == train_tokenizer(CAPTIONS, 1024).fingerprint
    assert list(out.parent.iterdir()) == [out]
    printed = capsys.readouterr().out
    words = sum(len(caption.split()) for caption in CAPTIONS)
    assert f"{words / len(CAPTIONS):.1f} tokens a text, 1.00 tokens a word" in printed
    assert f"{len(CAPTIONS)} texts" in printed
    assert run([*command, "--max-texts", "5", "--texts", str(files[0])]) == 0
    assert open_tokenizer(str(out)).fingerprint == train_tokenizer(CAPTIONS[:5], 1024).fingerprint


def test_cli_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, texts = tmp_path / "tokenizer.json", tmp_path / "a.txt"
    command = ["tokenizer", "train", "--out", str(out)]

    def refusal(*options: str) -> str:
        assert run([*command, *options]) == 2
        return capsys.readouterr().err

    assert "digits has no captions" in refusal("--data.source", "digits")
    texts.write_bytes(b"caf\xe9\n")
    assert "a.txt is not UTF-8" in refusal("--texts", str(texts))
    texts.write_text("\n \n")
    assert "no text in" in refusal("--texts", str(texts))
    texts.write_text("a\n")
    with monkeypatch.context() as patch:
        patch.setattr("causalfusion.commands.tokenizer.read_lines", lambda *_: pytest.fail("texts were read"))
        assert "vocab_size is 100" in refusal("--vocab-size", "100", "--texts", str(texts))
    assert "max-texts is 0" in refusal("--max-texts", "0", "--texts", str(texts))
    both = refusal("--data.source", "shapes", "--texts", str(texts))
    assert "both --texts and a data set are given" in both
    out.write_text("precious\n")
    assert "other than a tokenizer" in refusal("--texts", str(texts))
    assert out.read_text() == "precious\n"


class Captioned:
    """400 images with two captions each; number 5 is damaged."""

    name, class_names, has_captions = "mine", [], True

    def __len__(self) -> int:
        return 400

    def read(self, index: int) -> Example:
        if index == 5:
            raise UnreadableImage("5.jpg", "damaged")
        return Example(np.zeros((2, 2, 3), np.uint8), captions=(f"first {index}", f"second {index}"))


def test_captions_of_the_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causalfusion.data.open_source", lambda config: Captioned())
    kept, held_out = split_holdout(400, 0.25)
    assert len(held_out) == 100
    assert 5 in kept
    with pytest.warns(UserWarning, match=r"5.jpg: damaged"):
        found = read_captions(DataConfig(holdout=0.25), 1000)
    assert found == [f"{word} {index}" for index in kept if index != 5 for word in ("first", "second")]
    some = read_captions(DataConfig(holdout=0.25), 7)
    assert len(some) == len(set(some)) == 7
    assert set(some) < set(found)
    assert some != found[:7]  # drawn from all of the data
    with pytest.warns(UserWarning, match=r"5.jpg: damaged"):
        most = read_captions(DataConfig(holdout=0.25), 500)  # of fewer images, with two captions each
    assert len(most) == 500 and int(most[-1].split()[1]) > 380


def test_texts_of_documents_are_drawn_from_all_of_them(tmp_path: Path) -> None:
    lines = [{"elements": [{"text": f"{line} {part}"} for part in range(4)]} for line in range(40)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = DataConfig(source="documents", path=str(tmp_path / "d.jsonl"), holdout=0)
    some = texts_of_documents(config, 40)
    assert len(some) == len(set(some)) == 40 and some == texts_of_documents(config, 40)
    assert len({text.split()[0] for text in some}) > 20
    assert len(texts_of_documents(config, 1000)) == 160


def test_ids_far_beyond_the_number_of_tokens_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    values = json.loads(train_tokenizer(["a b"], 300).to_json())
    values["model"]["vocab"]["a"] = 10**6
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="one of them has the id 1,000,000"):
        open_tokenizer(str(path))
    path.write_text(json.dumps(values | {"model": "x" * 100_000}))
    with pytest.raises(UserError) as found:
        open_tokenizer(str(path))
    assert len(str(found.value)) < 1000


def test_a_library_that_gives_up_is_one_line(tmp_path, monkeypatch):
    class Panic(BaseException):
        """A panic of Rust, as it arrives in Python."""

    def from_str(json: str) -> None:
        raise Panic("range end index 9 out of range")

    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("tokenizers.Tokenizer.from_str", from_str, raising=False)
    with pytest.raises(UserError, match="range end index 9"):
        open_tokenizer(str(tmp_path))


def test_a_recipe_reaches_a_command_within_a_command(tmp_path, capsys):
    assert run(["tokenizer", "train", "--out", str(tmp_path / "t.json"), "--config", "digits"]) == 2
    assert "digits has no captions" in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()
