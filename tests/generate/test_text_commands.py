"""The commands around text, on small random models: sample and edit by prompt, caption, complete."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from causalfusion import cli
from causalfusion.generate import caption_run
from causalfusion.generate.output import one_line
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.read import to_float
from causalfusion.pictures.compose import paragraph, text_tile, with_texts, wrapped
from causalfusion.pictures.fonts import Face
from causalfusion.saved import folder as saved

CAPTIONS = ["a small red circle", "a large blue star", "a small blue square above a red star"]
TEXT = 40
"""Text tokens that the models have room for."""
SAMPLE = ["--diffusion-steps", "3", "--num-ar-steps", "2", "--guidance-scale", "2"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of seven images, two of them deeper in it."""
    root, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    (root / "deeper").mkdir()
    (root / "a.txt").write_text("not an image")
    for index in range(7):
        pixels = generator.integers(0, 256, (8 + index, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / ("deeper" if index > 4 else ".") / f"{index}.png")
    return root


def run(*tokens: object) -> None:
    assert cli.run([*map(str, tokens), "--device", "cpu"]) == 0


def pixels_of(folder: Path, pattern: str = "0*.png") -> np.ndarray:
    return np.stack([np.array(Image.open(path)).astype(int) for path in sorted(folder.glob(pattern))])


def facts_of(folder: Path) -> dict:
    return json.loads((folder / "settings.json").read_text())


def test_images_are_those_of_their_prompts_whatever_the_batches(models, tmp_path):
    """Image i has prompt i % n, alone, in other batches, and when an earlier set is continued."""
    base = ["sample", "--model", models["text"], *SAMPLE, "--prompt", *CAPTIONS]
    run(*base, "--images", 7, "--out", tmp_path / "all", "--output", "png", "npz", "grid")
    run(*base, "--images", 7, "--batch-size", 2, "--out", tmp_path / "twos")
    run(*base, "--images", 3, "--first", 4, "--out", tmp_path / "later")
    whole = pixels_of(tmp_path / "all")
    assert whole.shape == (7, 8, 8, 3) and 20 < whole.std() < 100
    assert abs(pixels_of(tmp_path / "twos") - whole).max() <= 1
    assert abs(pixels_of(tmp_path / "later") - whole[4:]).max() <= 1
    assert facts_of(tmp_path / "all")["prompts"] == [CAPTIONS[i % 3] for i in range(7)]
    assert facts_of(tmp_path / "later")["prompts"] == [CAPTIONS[i % 3] for i in (4, 5, 6)]
    with np.load(tmp_path / "all" / "samples.npz") as arrays:
        assert (arrays["arr_0"] == whole).all() and arrays["arr_1"].tolist() == [3] * 7


def test_prompts_and_classes_change_images_and_go_together(models, tmp_path):
    conditions = {
        "nothing": [],
        "prompt": ["--prompt", CAPTIONS[0]],
        "other": ["--prompt", CAPTIONS[1]],
        "class": ["--classes", "dog"],
        "both": ["--classes", "dog", "--prompt", CAPTIONS[0]],
    }
    made = {}
    for name, options in conditions.items():
        run("sample", "--model", models["both"], *SAMPLE, "--images", 2, "--out", tmp_path / name, *options)
        made[name] = pixels_of(tmp_path / name)
    labels = {name: facts_of(tmp_path / name)["labels"] for name in conditions}
    assert labels == {"nothing": [0, 1], "prompt": [3, 3], "other": [3, 3], "class": [1, 1], "both": [1, 1]}
    assert facts_of(tmp_path / "nothing")["prompts"] is None
    for a in made:
        for b in made:
            assert a == b or abs(made[a] - made[b]).max() > 1, f"{a} and {b} gave the same image"
    # Image 1 has class 1 without a prompt both times: another way to say the same.
    assert abs(made["nothing"][1] - made["class"][1]).max() <= 1


def test_words_without_quotes_are_told(models, tmp_path, capsys):
    """`--prompt a large star` are three prompts."""
    base = ["sample", "--model", models["text"], "--images", 1, *SAMPLE]
    run(*base, "--prompt", "a", "large", "star", "--out", tmp_path / "words")
    assert "3 prompts of one word each; put one of several words between quotes" in capsys.readouterr().out
    run(*base, "--prompt", *CAPTIONS[:3], "--out", tmp_path / "captions")
    assert "between quotes" not in capsys.readouterr().out


def test_a_prompts_file_gives_an_image_for_each_line(models, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeff" + "\r\n".join(CAPTIONS) + "\n\n", encoding="utf-8")
    base = ["sample", "--model", models["text"], *SAMPLE]
    run(*base, "--prompts-file", tmp_path / "prompts.txt", "--out", tmp_path / "file")
    run(*base, "--prompt", *CAPTIONS, "--images", 3, "--out", tmp_path / "line")
    assert (pixels_of(tmp_path / "file") == pixels_of(tmp_path / "line")).all()
    assert facts_of(tmp_path / "file")["prompts"] == CAPTIONS


def test_a_model_of_text_without_a_prompt_generates_from_the_empty_caption(models, tmp_path):
    run("sample", "--model", models["text"], *SAMPLE, "--images", 2, "--out", tmp_path)
    assert facts_of(tmp_path)["labels"] == [3, 3] and pixels_of(tmp_path).shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    "options", [[], ["--text-temperature", 1.5, "--top-k", 40, "--top-p", 0.9, "--seed", 3]], ids=str
)
def test_captions_do_not_depend_on_the_batch(options, models, photos, tmp_path, capsys):
    found = []
    for size in (1, 3, 64):
        out = tmp_path / f"{size}.jsonl"
        run("caption", photos, "--model", models["text"], "--batch-size", size, "--max-tokens", 12,
            "--out", out, *options)  # fmt: skip
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        printed = capsys.readouterr().out.splitlines()
        assert printed == [f"{row['image']}: {one_line(row['caption'])}" for row in rows]
        found.append([row["caption"] for row in rows])
        names = [Path(row["image"]).relative_to(photos).as_posix() for row in rows]
        assert names == ["0.png", "1.png", "2.png", "3.png", "4.png", "deeper/5.png", "deeper/6.png"]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) > 1, "all images have one caption: the test would notice nothing"


def test_one_image_is_captioned_while_it_is_written(models, photos, capsys, monkeypatch):
    """Pieces, which together are the text that `caption` prints of it among others."""
    run("caption", photos / "1.png", photos / "0.png", "--model", models["text"], "--max-tokens", 12)
    first = capsys.readouterr().out.splitlines()[0].removeprefix(f"{photos / '1.png'}: ")
    pieces: list[str] = []
    monkeypatch.setattr(caption_run, "say", lambda text, end="\n": pieces.append(text + end))
    run("caption", photos / "1.png", "--model", models["text"], "--max-tokens", 12)
    assert "".join(pieces) == first + "\n" and len(pieces) > 2


def test_complete_writes_a_story(models, photos, tmp_path, capsys):
    """As many elements as asked for, as files, as lines, and as one picture of all."""
    image, kinds = photos / "2.png", set[str]()
    for seed in range(10):  # until the random model has chosen both kinds
        out = tmp_path / str(seed)
        run("complete", "a", image, "--model", models["text"], "--elements", 3, "--out", out,
            "--text-temperature", 1, "--max-tokens", 4, "--seed", seed, *SAMPLE)  # fmt: skip
        story = json.loads((out / "story.json").read_text(encoding="utf-8"))
        lines = capsys.readouterr().out.splitlines()
        made = story["elements"][2:]
        kinds = {key for element in made for key in element}
        if {"image", "text"} <= kinds:
            break
    assert {"image", "text"} <= kinds and len(made) == 3
    assert story["elements"][:2] == [{"from": "prompt", "text": "a"}, {"from": "prompt", "image": str(image)}]
    for element, line in zip(made, lines[:-1], strict=True):
        if "text" in element:
            assert line == f"text: {one_line(element['text'])}"
        else:
            assert line == f"image: {out / element['image']}"
            assert Image.open(out / element["image"]).size == (8, 8)
    assert story["write"]["max_tokens"] == 4 and story["settings"]["num_ar_steps"] == 2
    assert Image.open(out / "story.png").width > 5 * 192


def test_complete_says_when_there_is_no_more_room(models, tmp_path, capsys):
    run("complete", "red", "--model", models["text"], "--elements", 40, "--out", tmp_path, "--max-tokens", 2,
        *SAMPLE)  # fmt: skip
    made = json.loads((tmp_path / "story.json").read_text())["elements"][1:]
    assert 0 < len(made) < 40 and f"{len(made)} of 40 elements" in capsys.readouterr().out


def test_edit_by_prompt_changes_the_region_alone(models, photos, tmp_path):
    """Another prompt, another edit; the rest is the input's pixels, exactly."""
    before = np.array(Image.open(photos / "0.png")).astype(int)
    base = ["edit", photos / "0.png", "--model", models["both"], "--region", "right", *SAMPLE]
    conditions = {
        "a": ["--prompt", CAPTIONS[0]],
        "b": ["--prompt", CAPTIONS[1]],
        "class": ["--class", "dog"],
        "both": ["--class", "dog", "--prompt", CAPTIONS[0]],
    }
    made = {}
    for name, options in conditions.items():
        run(*base, "--variants", 2, "--out", tmp_path / name, *options)
        edits = pixels_of(tmp_path / name, "edited-*.png")
        assert edits.shape == (2, 8, 8, 3) and (edits[:, :, :4] == before[:, :4]).all()
        made[name] = edits
    for a in made:
        for b in made:
            assert a == b or abs(made[a] - made[b]).max() > 1, f"{a} and {b} gave the same edit"
    facts = facts_of(tmp_path / "both")
    assert (facts["class"], facts["prompt"]) == ("dog", CAPTIONS[0])
    alone, with_class = (Image.open(tmp_path / name / "sheet.png") for name in ("a", "both"))
    assert np.asarray(alone)[:60].tolist() != np.asarray(with_class)[:60].tolist(), "it says what was asked"
    edits = to_float(pixels_of(tmp_path / "both", "edited-*.png").astype(np.uint8))
    assert facts["read_as"] == Pipeline.load(models["both"]).caption(edits), "and what the model reads there"


def test_edit_with_a_strength_begins_from_the_picture(models, photos, tmp_path):
    """Of the whole picture without a region; the less, the nearer it stays."""
    before = np.array(Image.open(photos / "0.png")).astype(int)
    base = ["edit", photos / "0.png", "--model", models["text"], "--prompt", CAPTIONS[1], "--sampler", "ddim",
            "--diffusion-steps", 50]  # fmt: skip
    far = []
    for strength in (0.02, 0.5, 1):
        out = tmp_path / str(strength)
        run(*base, "--strength", strength, *(["--region", "all"] if strength == 1 else []), "--out", out)
        (edited,) = pixels_of(out, "edited-*.png")
        far.append(abs(edited - before).mean())
        facts = facts_of(out)
        assert (facts["region"], facts["strength"]) == ("all", strength)
    assert 0 < far[0] < far[1] < far[2]
    out = tmp_path / "half"
    run(*base, "--strength", 0.5, "--region", "left", "--out", out)
    (edited,) = pixels_of(out, "edited-*.png")
    assert (edited[:, 4:] == before[:, 4:]).all() and (edited[:, :4] != before[:, :4]).any()


def test_a_model_that_never_learned_to_describe_images_edits_them(models, photos, tmp_path):
    """Its edits are not read by it, which it would refuse."""
    pipeline = Pipeline.load(models["both"])
    spec = replace(pipeline.spec, text=replace(pipeline.spec.text, loss_coefficient=0.0))
    model = replace(pipeline, spec=spec).save_pretrained(tmp_path / "model")
    line = ["edit", photos / "0.png", "--model", model, "--region", "right", "--prompt", CAPTIONS[0], *SAMPLE]
    run(*line, "--out", tmp_path / "edit")
    assert facts_of(tmp_path / "edit")["read_as"] is None and (tmp_path / "edit/sheet.png").is_file()


def test_a_packaged_model_has_a_name(models, photos, tmp_path, monkeypatch, capsys):
    """`--model NAME`, and by default `shapes`; a model on disk goes first, another folder does not."""
    package = tmp_path / "package"
    (package / "models").mkdir(parents=True)
    shutil.copytree(models["text"], package / "models" / "shapes")
    monkeypatch.setattr(saved.resources, "files", lambda name: package)
    monkeypatch.chdir(tmp_path)
    assert saved.packaged_models() == {"shapes": package / "models" / "shapes"}
    (tmp_path / "shapes").mkdir()  # someone's images, say
    run("sample", "--images", 1, "--prompt", CAPTIONS[0], *SAMPLE)
    assert facts_of(tmp_path / "samples")["model"] == str(package / "models" / "shapes")
    capsys.readouterr()
    assert cli.run(["caption", str(photos), "--model", "shape"]) == 2
    assert "one of the package (shapes)" in capsys.readouterr().err
    (tmp_path / "shapes").rmdir()
    shutil.copytree(models["both"], tmp_path / "shapes")
    assert saved.latest_model(Path("shapes")) == Path("shapes")


LONG = " ".join(CAPTIONS * 8)
TOO_LOW = ["--strength", "0.1", "--diffusion-steps", "3", "--sampler", "dpm++"]
MISTAKES = [
    ("text", ["sample", "--prompt", ""], "the prompt is empty"),
    ("text", ["sample", "--prompt"], "--prompt requires a value"),
    ("text", ["sample", "--prompt", "red", LONG], f"this model has room for {TEXT - 3}: shorten it"),
    ("text", ["sample", "--prompt", "a", "--prompts-file", "gap.txt"], "expected one of them"),
    ("text", ["sample", "--prompts-file", "empty.txt"], "empty.txt has no prompts"),
    ("text", ["sample", "--prompts-file", "gap.txt"], "line 2 of gap.txt is empty"),
    ("text", ["sample", "--prompts-file", "bad.png"], "bad.png is not UTF-8"),
    ("text", ["sample", "--prompts-file", "gone.txt"], "gone.txt"),
    ("text", ["sample", "--classes", "dog"], "no class condition; give --prompt"),
    ("classes", ["sample", "--prompt", "red"], "this model was trained without text"),
    ("classes", ["caption", "good.png"], "this model was trained without text"),
    ("text", ["caption"], "FILES requires an argument"),
    ("text", ["caption", "gone.png"], "image gone.png does not exist"),
    ("text", ["caption", "good.png", "bad.png"], "image bad.png cannot be read: it is damaged"),
    ("text", ["caption", "good.png", "bad.png", "--batch-size", "1"], "image bad.png cannot be read"),
    ("text", ["caption", "folder"], "there are no images in folder"),
    ("text", ["caption", "good.png", "--out", "good.png"], "expected a file that ends in .jsonl"),
    ("text", ["caption", "good.png", "--batch-size", "0"], "--batch-size is 0"),
    (
        "text",
        ["caption", "good.png", "--top-p", "1.5", "--text-temperature", "1"],
        "top_p is 1.5; expected a number in (0, 1]",
    ),
    ("text", ["caption", "good.png", "--model", "nothing"], "nothing holds no model"),
    ("classes", ["complete", "red"], "this model was trained without text"),
    ("text", ["complete"], "expected elements to go on from, or --documents: neither is given"),
    ("text", ["complete", "red", ""], "the prompt is empty"),
    ("text", ["complete", LONG], "shorten it"),
    ("text", ["complete", "gone.PNG"], "image gone.PNG does not exist"),
    ("text", ["complete", "red", "bad.png"], "image bad.png cannot be read"),
    ("text", ["complete", "good.png", "good.png", "good.png"], "has 3 images; this model has room for 2"),
    ("text", ["complete", "red", "--elements", "0"], "--elements is 0"),
    ("text", ["complete", "red", "--num-ar-steps", "9"], "at most 4"),
    ("text", ["edit", "good.png", "--region", "top"], "expected --class, --prompt, or both"),
    ("text", ["edit", "good.png", "--region", "top", "--prompt", " "], "the prompt is empty"),
    ("text", ["edit", "good.png", "--region", "top", "--class", "dog"], "no class condition; give --prompt"),
    ("classes", ["edit", "good.png", "--region", "top", "--prompt", "red"], "trained without text"),
    ("text", ["edit", "good.png", "--prompt", "red"], "expected one of --mask and --region"),
    (
        "text",
        ["edit", "good.png", "--strength", "0", "--prompt", "red"],
        "--strength is 0.0; expected a number",
    ),
    ("text", ["edit", "good.png", "--prompt", "a", *TOO_LOW], "the strength is 0.1; expected at least"),
    ("text", ["edit", "gone.png", "--region", "top", "--prompt", "red"], "image gone.png does not exist"),
]


@pytest.mark.parametrize(("model", "tokens", "message"), MISTAKES, ids=lambda value: str(value)[:60])
def test_a_mistake_is_one_line_and_leaves_nothing(
    model, tokens, message, models, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("good.png")
    Path("bad.png").write_bytes(b"\x89PNG but no more")
    Path("empty.txt").write_text("\n\n")
    Path("gap.txt").write_text("red\n\nblue\n")
    Path("folder").mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    given = [] if "--model" in tokens else ["--model", str(models[model])]
    assert cli.run([*tokens, *given, "--device", "cpu"]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("causalfusion: ") and message in line and not captured.out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_captions_are_written_whole_or_not_at_all(models, photos, tmp_path, monkeypatch):
    out = tmp_path / "captions.jsonl"
    out.write_text('{"image": "a.png", "caption": "earlier"}\n')
    before = out.read_bytes()

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(caption_run.ProgressLine, "close", stop)  # Ctrl-C when all but the file is done
    base = ["caption", str(photos), "--model", str(models["text"]), "--out", str(out), "--max-tokens", "2"]
    assert cli.run([*base, "--device", "cpu"]) == 130
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("content", ['{"image": "a.png", "text": "red"}', "[1]", "mine", '{"a": 1'])
@pytest.mark.parametrize("command", ["caption", "classify"])
def test_lines_of_others_are_not_written_over(tmp_path, capsys, command, content):
    out = tmp_path / "data.jsonl"
    out.write_text(f"{content}\n")
    assert cli.run([command, "a.png", "--out", str(out)]) == 2
    assert f"{out} holds other lines than images and their c" in capsys.readouterr().err
    assert out.read_text() == f"{content}\n"


def test_what_a_terminal_cannot_show_is_replaced(models, photos, monkeypatch):
    """A terminal of plain ASCII, and bytes that a model may write: no escape sequence reaches it."""
    assert one_line("a\x1b[2J\nb\tc\x9b") == "a [2J b c "
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    caption_run.say("ein gr\u00fcner Kreis \ud800")
    stream.seek(0)
    assert stream.read() == "ein gr?ner Kreis ?\n"


@settings(max_examples=60)
@given(st.text(max_size=60), st.integers(30, 200), st.integers(8, 20))
def test_wrapped_lines_fit_and_hold_every_word(text, width, size):
    face = Face(size)
    lines = wrapped(text, face, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(face.getlength(line) <= width or len(line) == 1 for line in lines)


def test_texts_under_tiles_keep_a_grid():
    tiles = [Image.new("RGB", (120, 40), colour) for colour in ("red", "blue")]
    pictures = with_texts(tiles, ["short", "a text that is much too long for one line under this image"])
    assert len({picture.size for picture in pictures}) == 1 and pictures[0].height > 40 + 2 * 14
    for tile, picture in zip(tiles, pictures, strict=True):
        assert picture.crop((0, 0, 120, 40)).tobytes() == tile.tobytes()
    assert paragraph("word " * 400, 120, max_lines=3).height < paragraph("word " * 400, 120).height
    assert text_tile("word " * 400, 90, 70).size == (90, 70)


def test_a_model_brings_its_settings_and_the_command_line_comes_on_top(models, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(models["text"], model)
    (model / "sample.toml").write_text('sampler = "dpm++"\ndiffusion_steps = [3]\nguidance_scale = 4.0\n')
    common = ["--model", model, "--prompt", CAPTIONS[0], "--images", 1]
    run("sample", *common, "--out", tmp_path / "a")
    run("sample", *common, "--guidance-scale", 2, "--out", tmp_path / "b")
    found = [json.loads((tmp_path / name / "settings.json").read_text())["settings"] for name in "ab"]
    assert [f["guidance_scale"] for f in found] == [4.0, 2.0]
    assert [f["sampler"] for f in found] == ["dpm++", "dpm++"]
    assert [f["diffusion_steps"] for f in found] == [[3], [3]]


def test_candidates_are_drawn_by_prompt_only(models, tmp_path, capsys):
    common = [
        "sample",
        "--model",
        str(models["both"]),
        "--images",
        "1",
        "--out",
        str(tmp_path / "c"),
        *SAMPLE,
    ]
    assert cli.run([*common, "--candidates", "2"]) == 2
    assert "--candidates is 2; expected --prompt with it, or 1" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
    run(*common, "--candidates", 3, "--prompt", CAPTIONS[1])
    assert json.loads((tmp_path / "c" / "settings.json").read_text())["candidates"] == 3
