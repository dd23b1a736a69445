"""`causalfusion complete`: texts and images in, those that follow them out, as a folder and a picture."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.config.options import option_name
from causalfusion.config.serialize import to_dict
from causalfusion.documents import Text
from causalfusion.errors import UserError
from causalfusion.files import in_use, write_whole
from causalfusion.generate.caption_run import is_image_name, read_model_image
from causalfusion.generate.complete import Listener, complete
from causalfusion.generate.document_prompts import DocumentPrompts
from causalfusion.generate.language import is_language_model
from causalfusion.generate.language_run import complete_text
from causalfusion.generate.out_folder import begin, check_room, finish, settings_there
from causalfusion.generate.output import (
    facts,
    load_pipeline,
    one_line,
    save_png,
    say,
    warn_of_untrained_null,
)
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.progress import describe
from causalfusion.generate.request import CompleteRequest
from causalfusion.generate.settings import check_settings
from causalfusion.generate.tokens import StepEvent
from causalfusion.machine.processes import join_world
from causalfusion.machine.progress import ProgressLine, seconds_of_command
from causalfusion.machine.threads import Threads
from causalfusion.pictures.compose import framed, sheet, text_tile, to_tiles, with_texts
from causalfusion.saved.folder import read_latest
from causalfusion.saved.sampling import read_sampling

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_COLUMNS = 6
"""Largest number of elements in a row of story.png."""


def complete_to_folder(prompt: Sequence[str], request: CompleteRequest) -> Path:
    """Write the images that follow a prompt, of texts and names of image files, and the whole story into the
    folder of the request, which is returned."""
    if bool(prompt) == (request.documents is not None):
        given = "both are" if prompt else "neither is"
        raise UserError(f"expected elements to go on from, or --documents: {given} given")
    with join_world(request.device) as world:
        if world.size > 1:
            raise UserError("complete runs in one process; start it without torchrun")
        only_text = not request.elements and not any(map(is_image_name, prompt))
        draws_too = only_text and request.documents is None
        if is_language_model(request.model, draws_too=draws_too):
            _refuse_unused(request)
            complete_text(prompt, request, world)
            return request.out
        if request.chat:
            raise UserError("--chat is for language models with a chat template; this one has images")
        _check_files(prompt)
        pipeline, folder = load_pipeline(request.model, request, world)
        pipeline.with_text()
        Threads().adapt()
        check_settings(request.settings, pipeline.model.config, pipeline.spec.diffusion)
        warn_of_untrained_null(pipeline, request.settings, ())
        settings = {
            "command": "complete",
            **facts(pipeline, folder, request),
            "write": to_dict(request.write),
            "candidates": request.candidates,
        }
        if request.documents is not None:
            _continue_documents(pipeline, request, request.documents, settings)
            return request.out
        read = [
            read_model_image(pipeline, Path(element)) if is_image_name(element) else element
            for element in prompt
        ]
        told = [{"image" if is_image_name(element) else "text": element} for element in prompt]
        _continue(pipeline, request, read, told, settings)
    return request.out


def _refuse_unused(request: CompleteRequest) -> None:
    """Raises UserError for an option of documents with images, where a language model goes on with texts."""
    given = {
        "--quantize": request.quantize != "none",
        "--adapters": bool(request.adapters),
        "--autoencoder": bool(request.autoencoder),
        "--documents": request.documents is not None,
        "--elements": request.elements is not None,
        "--candidates": request.candidates > 1,
    }
    own, plain = read_latest(request.model, read_sampling)[0] or SampleConfig(), SampleConfig()
    for name, value in vars(request.settings).items():
        given[option_name(name)] = value not in (getattr(own, name), getattr(plain, name))
    for option in (name for name, is_given in given.items() if is_given):
        if is_language_model(request.model):
            raise UserError(f"{option} is for models with images; {request.model} is a language model")
        raise UserError(
            f"{option} is for texts with images, and {request.model} goes on with a text as the language "
            "model that it was: leave it out, or give --elements, the number of texts and images, too"
        )


def _continue_documents(
    pipeline: Pipeline, request: CompleteRequest, file: Path, settings: dict[str, Any]
) -> None:
    """Each document of a file, into a folder of its own, and all of them, with what follows, as a file."""
    documents = DocumentPrompts(file, pipeline, Text(open=True), 1)
    written = request.out / "documents.jsonl"
    if file.resolve() == written.resolve():
        raise UserError(f"--out {request.out} would replace {file}; give another --out")
    folders = [request.out / f"{index:06d}" for index in range(len(documents))]
    if written.exists() and settings_there(folders[0], "complete") is None:
        raise UserError(
            f"{request.out} holds {written.name}, which no earlier `complete` wrote there; give another "
            "--out, or move it away"
        )
    lines, wordless = [], 0
    for index, folder in enumerate(folders):
        own = replace(request, out=folder)
        told = documents.told(index)
        made = _continue(pipeline, own, documents[index], told, settings)
        kept = [e for e in made if e.get("text", "an image").strip()]
        wordless += len(made) - len(kept)
        name = folder.name
        more = [{"text": e["text"]} if "text" in e else {"image": f"{name}/{e['image']}"} for e in kept]
        lines.append([*told, *more])
    write_whole(written, "".join(json.dumps({"elements": e}, ensure_ascii=False) + "\n" for e in lines))
    if wordless:
        warnings.warn(f"{written} is without {wordless} texts that the model left empty", stacklevel=2)


def _continue(
    pipeline: Pipeline,
    request: CompleteRequest,
    read: Sequence[str | Tensor],
    told: Sequence[dict[str, str]],
    settings: dict[str, Any],
) -> list[dict[str, str]]:
    """Write what follows one document, which is `read` and, in words and names of files, `told`; returns what
    the model made, as story.json has it."""
    given = [{"from": "prompt", **element} for element in told]
    earlier = settings_there(request.out, "complete") if request.out.is_dir() else None
    names = [image_name(index) for index in range(pipeline.model.config.max_images)]
    check_room(request.out, "complete", ["story.png", *names], earlier)
    start = time.monotonic()
    made = _complete(pipeline, request, read)
    _warn_of_long_documents(pipeline, len(read) + len(made))
    story = _told(made)
    with in_use(request.out, "the folder"):
        begin(request.out, {**settings, "elements": [*given, *story]}, earlier, keep=False)
        _save_images(pipeline, made, request.out)
        save_png(np.asarray(_draw_story([*read, *made], len(read))), request.out / "story.png")
        seconds = seconds_of_command(time.monotonic() - start)
        finish(request.out, {**settings, "elements": [*given, *story], "seconds": round(seconds, 3)})
    say(f"{len(made)} element{'s' * (len(made) != 1)} in {seconds:.1f} s in {request.out}")
    return story


def _warn_of_long_documents(pipeline: Pipeline, num_elements: int) -> None:
    """Warn where a document is longer than any that training had."""
    longest = 2 * max(pipeline.spec.text.examples_per_sequence, pipeline.model.config.max_images)
    if num_elements > longest:
        warnings.warn(
            f"the model was trained on documents of at most {longest} elements, and here are {num_elements}: "
            "what comes later may be wrong; without --elements the model ends by itself",
            stacklevel=2,
        )


def _complete(
    pipeline: Pipeline, request: CompleteRequest, prompt: Sequence[str | Tensor]
) -> list[str | Tensor]:
    """The elements that follow the prompt, printed as they come."""
    teller = _Teller(request.out)
    try:
        made = complete(
            pipeline,
            prompt,
            request.settings,
            request.write,
            num_elements=request.elements,
            seed=request.seed,
            candidates=request.candidates,
            listener=teller,
        )
    except KeyboardInterrupt:
        teller.interrupted()
        raise
    if request.elements is not None and len(made) < request.elements:
        say(f"{len(made)} of {request.elements} elements: the model has no room for more")
    return made


class _Teller(Listener):
    """Prints elements as they come: texts piece by piece, images by the name of their file."""

    def __init__(self, out: Path) -> None:
        self.out, self.num_images, self.in_line = out, 0, False
        self.progress: ProgressLine | None = None

    def begin(self, kind: Literal["text", "image"]) -> None:
        if kind == "text":
            say("text: ", end="")
            self.in_line = True
        else:
            self.progress = ProgressLine(1, 0)

    def piece(self, text: str) -> None:
        say(one_line(text), end="")

    def diffusion_step(self, event: StepEvent) -> None:
        if self.progress is not None:
            self.progress.show(0, describe(event))

    def interrupted(self) -> None:
        """End the unfinished line of the terminal."""
        if self.in_line:
            say("")
        if self.progress is not None:
            self.progress.close()

    def end(self) -> None:
        self.interrupted()
        if self.progress is not None:
            say(f"image: {self.out / image_name(self.num_images)}")
            self.num_images += 1
        self.in_line, self.progress = False, None


def image_name(index: int) -> str:
    return f"completion-{index:02d}.png"


def _check_files(prompt: Sequence[str]) -> None:
    """Raise UserError for an element that is named like an image file, and so is no text, but is missing."""
    for element in prompt:
        if is_image_name(element) and not Path(element).is_file():
            raise UserError(
                f"image {element} does not exist; expected an image file, or a text to go on from"
            )


def _told(made: Sequence[str | Tensor]) -> list[dict[str, str]]:
    """The generated elements as story.json has them."""
    story: list[dict[str, str]] = []
    for element in made:
        num_images = sum("image" in told for told in story)
        text_or_name = element if isinstance(element, str) else image_name(num_images)
        story.append({"from": "model", "text" if isinstance(element, str) else "image": text_or_name})
    return story


def _save_images(pipeline: Pipeline, made: Sequence[str | Tensor], out: Path) -> None:
    images = [element for element in made if not isinstance(element, str)]
    for index, image in enumerate(images):
        save_png(pipeline.codec.to_uint8(image[None])[0], out / image_name(index))


def _draw_story(elements: Sequence[str | Tensor], num_given: int) -> Picture:
    """All elements in rows, "prompt" or "generated" below each; the first `num_given` are the prompt's."""
    shapes = [element.shape for element in elements if isinstance(element, Tensor)]
    height, width = shapes[0][1:] if shapes else (1, 1)
    scale = max(1, 192 // width)
    tiles = [
        text_tile(element, width * scale, height * scale)
        if isinstance(element, str)
        else to_tiles(element[None], scale)[0]
        for element in elements
    ]
    names = ["prompt" if place < num_given else "generated" for place in range(len(tiles))]
    return framed(sheet(with_texts(tiles, names), min(len(tiles), MAX_COLUMNS)), 8)
