"""The model's own images among those that it is fine-tuned on, against forgetting (2208.12242 section 4.2).

They are drawn once, by the model as it was, into the folder `prior` of the run, image i from the seed and i
alone; a run that is stopped meanwhile goes on with those that are there.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from causalfusion.codec.tokenizer import Tokenizer
from causalfusion.config import RunConfig, WriteConfig
from causalfusion.config.serialize import read_json, to_dict
from causalfusion.data.labels import told_apart
from causalfusion.data.source import Example, ImageSource, captions_of, label_of
from causalfusion.documents import Text
from causalfusion.errors import UserError, brief
from causalfusion.files import hash_of, sha256_of, write_whole
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.processes import World
from causalfusion.machine.progress import ProgressLine
from causalfusion.rng import derive_seed
from causalfusion.saved.folder import latest_model
from causalfusion.saved.sampling import read_sampling
from causalfusion.train.arrange import caption_limit

FOLDER, SETTINGS_FILE = "prior", "settings.json"
PART = 20
"""Images in a file, and drawn together."""


class OwnImages:
    """The images in a folder that `draw_own_images` filled, with captions, or classes of the model."""

    def __init__(self, folder: Path, count: int, class_names: Sequence[str]) -> None:
        """Raises UserError for a damaged file."""
        self.class_names = list(class_names)
        self.examples: list[Example] = []
        for part in range(-(-count // PART)):
            for image, label, text in _read(_file(folder, part)):
                captions = (str(text),) if str(text) else ()
                known = 0 <= label < len(self.class_names)
                self.examples.append(Example(image, int(label) if known else None, captions))
        self.examples = self.examples[:count]


class Mixed:
    """Images of a source, then the model's own; labels are by name. Where either have classes, images without
    one have the label behind the last; none would be read as the first class."""

    def __init__(self, given: ImageSource, own: OwnImages) -> None:
        self.given, self.own, self.name, self.has_captions = given, own, given.name, given.has_captions
        self.class_names = list(given.class_names)
        self.class_names += [name for name in own.class_names if name not in given.class_names]
        numbers = {each: number for number, each in enumerate(told_apart(self.class_names))}
        self._labels = [numbers.get(each, -1) for each in told_apart(own.class_names)]

    def __len__(self) -> int:
        return len(self.given) + len(self.own.examples)

    def read(self, index: int) -> Example:
        own = index - len(self.given)
        found = self.own.examples[own] if own >= 0 else self.given.read(index)
        return replace(found, label=self._label(found.label, own=own >= 0))

    def _label(self, label: int | None, *, own: bool) -> int | None:
        """The label of an image among all of them, by that among the model's own, or among those given."""
        if own and label is not None:
            return self._labels[label]
        if label is not None and self.given.class_names:
            return label
        return len(self.class_names) if self.class_names else None

    def label(self, index: int) -> int | None:
        own = index - len(self.given)
        label = self.own.examples[own].label if own >= 0 else label_of(self.given, index)
        return self._label(label, own=own >= 0)

    def captions(self, index: int) -> tuple[str, ...]:
        own = index - len(self.given)
        return self.own.examples[own].captions if own >= 0 else captions_of(self.given, index)

    def fingerprint(self) -> str:
        return self.given.fingerprint()


@dataclass(frozen=True)
class Shares:
    """How often images are seen in an epoch, so that the model's own have their share."""

    given: int
    """Times of each given image."""
    own: int
    """Times of each image of the model's own."""
    count: int
    """Different images of the model's own."""

    @classmethod
    def of(cls, images: int, share: float, most: int) -> Shares:
        """For so many given images, and at most so many of the model's own."""
        ratio = share / (1 - share)
        given = max(1, round(most / (ratio * images)))
        wanted = max(1, round(ratio * given * images))
        own = -(-wanted // most)
        return cls(given, own, max(1, round(wanted / own)))


def with_own_images(
    source: ImageSource, train_indices: np.ndarray, config: RunConfig, world: World
) -> tuple[Mixed, np.ndarray]:
    """(the source with the model's own images behind its own, the indices of an epoch). Draws them where they
    are not there. Raises UserError for a folder with images of other settings."""
    finetune = config.finetune
    shares = Shares.of(len(train_indices), finetune.prior_preservation, finetune.prior_images)
    folder = Path(config.out) / FOLDER
    if world.is_main:
        draw_own_images(folder, shares.count, config, world)
    world.barrier()
    mixed = Mixed(source, OwnImages(folder, shares.count, finetune.classes))
    own = np.arange(len(source), len(mixed))
    return mixed, np.concatenate([np.repeat(train_indices, shares.given), np.repeat(own, shares.own)])


def draw_own_images(folder: Path, count: int, config: RunConfig, world: World) -> None:
    """Fill a folder with images that the model, as it is before the run, draws: of its classes in turn, of
    given prompts, or of captions that it writes itself. Raises UserError."""
    base = latest_model(Path(config.train.init))
    prompts = _given_prompts(config.finetune.prior_prompts)
    settings = {
        "model": sha256_of(base / "model.safetensors"),
        "seed": config.train.seed,
        "count": count,
        "prompts": hash_of(prompts) if prompts else "",
        "sample": to_dict(read_sampling(base)) if read_sampling(base) else None,
    }
    place = folder / SETTINGS_FILE
    if place.is_file() and read_json(place, "prior") != json.loads(json.dumps(settings)):
        raise UserError(
            f"{folder} holds images of another model, or of other settings; give another --out, or remove it"
        )
    missing = [part for part in range(-(-count // PART)) if not _file(folder, part).is_file()]
    if not missing:
        return
    write_whole(place, json.dumps(settings, indent=2) + "\n")
    pipeline = Pipeline.load(base, device=world.device)
    line = ProgressLine(count, missing[0] * PART, what="images of the model's own")
    for part in missing:
        indices = range(part * PART, min((part + 1) * PART, count))
        _draw(pipeline, base, indices, prompts, config.train.seed, _file(folder, part))
        line.show(indices[-1] + 1, "", force=part == missing[-1])
    line.close()


def _draw(
    pipeline: Pipeline, base: Path, indices: range, prompts: Sequence[str], seed: int, file: Path
) -> None:
    """Draw images of these indices, and write them into a file with their classes, -1 for none, and texts."""
    seed, model = derive_seed(seed, "prior"), pipeline.model.config
    texts, labels = [""] * len(indices), [-1] * len(indices)
    if pipeline.tokenizer is not None:
        given = [prompts[i % len(prompts)] for i in indices] if prompts else []
        texts = given or _written(pipeline, indices, seed)
    elif model.num_class_tokens or model.conditioning == "adaln_zero":
        labels = [i % model.num_classes for i in indices]
    said = texts if any(texts) else None
    images = pipeline.generate(
        None if said else [label if label >= 0 else model.null_label for label in labels],
        read_sampling(base),
        prompts=said,
        seed=seed,
        image_indices=indices,
    )
    pixels = pipeline.codec.to_uint8(images)
    write_whole(file, lambda stream: np.savez(stream, images=pixels, labels=labels, texts=np.array(texts)))


def _written(pipeline: Pipeline, indices: range, seed: int) -> list[str]:
    """Captions that the model writes from nothing, as likely as it holds them. Raises UserError for a model
    that writes none."""
    tokenizer, count, text = pipeline.with_text(), len(indices), pipeline.spec.text
    if not text.loss_coefficient:
        raise UserError(
            "the model draws from texts and writes none; give prompts for its own images: --prior-prompts "
            "FILE"
        )
    room = caption_limit(pipeline.model.config.max_text_tokens, text.examples_per_sequence)
    ids = pipeline.write(
        pipeline.null_labels(count), [[Text(open=True)] for _ in indices], None,
        WriteConfig(text_temperature=1.0, max_tokens=room), seed, indices,
    )  # fmt: skip
    texts = [_fitting(tokenizer.decode(each).strip(), tokenizer, room) for each in ids]
    said = [text for text in texts if text]
    if not said:
        raise UserError(
            "the model writes empty captions; give prompts for its own images: --prior-prompts FILE"
        )
    return [text or said[row % len(said)] for row, text in enumerate(texts)]


def _fitting(text: str, tokenizer: Tokenizer, room: int) -> str:
    """The beginning of a text for which there is room: bytes that were no characters became longer ones."""
    while (count := len(tokenizer.encode(text))) > room:
        text = text[: len(text) * room // count].strip()
    return text


def _given_prompts(path: str) -> list[str]:
    if not path:
        return []
    from causalfusion.generate.run import read_prompts

    if not Path(path).is_file():
        raise UserError(f"--prior-prompts {path} is no file; expected a text with a prompt on each line")
    return read_prompts(Path(path))


def _read(file: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(image, class, text) of each image in a file. Raises UserError."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return list(zip(*(arrays[name] for name in ("images", "labels", "texts")), strict=True))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{file}, images of the model's own, is damaged ({brief(error)}); delete it, and run the same "
            "command again, which draws them anew"
        ) from None


def _file(folder: Path, part: int) -> Path:
    return folder / f"part-{part:04d}.npz"
