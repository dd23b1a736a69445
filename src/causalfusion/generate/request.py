"""The options of `sample`, `edit`, `complete` and `caption`, which generate, and of `classify`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from causalfusion.config import RopeExtrapolation, SampleConfig, WriteConfig
from causalfusion.config.options import (
    DEFAULT_MODEL,
    ComputationOptions,
    GeneratingOptions,
    Model,
    Settings,
    require_at_least,
)
from causalfusion.config.sizes import parse_size
from causalfusion.errors import UserError, check

CompileChoice = Literal["auto", "always", "never"]
RopeRule = Annotated[
    RopeExtrapolation | None,
    Parameter(
        help="Frequencies of rotary positions on grids larger than that of training (FiTv2): ntk keeps fine "
        "positions and stretches coarse ones, linear stretches all. Default: as the model was trained."
    ),
]


@dataclass(frozen=True, kw_only=True)
class SampleRequest(GeneratingOptions):
    """The options of `sample`."""

    model: Model = DEFAULT_MODEL
    out: Path = Path("samples")
    """Folder for the images, `grid.png`, `samples.npz` and `settings.json`. Those of an earlier `sample` are
    replaced, other files left alone; an interrupted command resumes."""
    images: int | None = None
    """Number of images. Default: one for each line of the prompts file, else 16."""
    prompts: Annotated[Sequence[str] | None, Parameter(name="--prompt")] = None
    """Descriptions of the images in words; image i gets prompt[i % number of prompts]."""
    prompts_file: Path | None = None
    """UTF-8 file with one prompt on each line, instead of --prompt."""
    documents: Path | None = None
    """A .jsonl file of documents of texts and images, instead of --prompt: each ends where an image is to
    come, which is generated; image i goes on from document[i % number of documents]."""
    candidates: int = 1
    """Images generated for each one that is kept, which is the one under which the prompt is most likely,
    according to the model."""
    classes: Sequence[str] = ()
    """Names, or numbers counted from 0; name:7 and index:7 say which is meant. Image i gets classes[i %
    number of classes]. Default: all in turn; with prompts, none."""
    first: int = 0
    """Index of the first image: --first N continues an earlier set of N images with the same settings."""
    batch_size: int = 64
    """Images generated together."""
    size: Sequence[str] = ()
    """Size of the images in pixels, WIDTHxHEIGHT such as 320x192, or a number for a square; sides are
    multiples of a token's side. Of several, image i gets size[i % number of sizes]. Default: the model's."""
    rope_extrapolation: RopeRule = None
    output: Sequence[Literal["png", "grid", "npz"]] = ("png", "grid")
    """png: one file per image; grid: all images in one; npz: ADM's format (arr_0 images, arr_1 labels)."""
    compile: CompileChoice = "auto"
    """Compile the model's blocks with torch.compile, which takes a minute and is faster from then on. auto:
    on GPUs, for 1,000 images or more."""
    settings: Annotated[SampleConfig, Settings] = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        require_at_least(1, self, "images", "batch_size", "candidates")
        require_at_least(0, self, "first")
        sizes = {parse_size(text, "--size") for text in self.size}
        if len(sizes) > 1 and ("npz" in self.output or "png" not in self.output):
            raise UserError("--output npz holds images of one size; expected png and grid with several sizes")
        if self.prompts is not None and not self.prompts:
            raise UserError("--prompt has no value; expected one or more prompts")
        if self.candidates > 1 and self.prompts is None and self.prompts_file is None:
            raise UserError(f"--candidates is {self.candidates}; expected --prompt with it, or 1")
        if self.prompts is not None and self.prompts_file is not None:
            raise UserError("--prompt and --prompts-file are both given; expected one of them")
        unused = {
            "--prompt": self.prompts is not None,
            "--prompts-file": self.prompts_file is not None,
            "--classes": bool(self.classes),
            "--size": bool(self.size),
        }
        for option in [name for name, given in unused.items() if given and self.documents is not None]:
            raise UserError(f"{option} and --documents are both given; expected one of them")


@dataclass(frozen=True, kw_only=True)
class EditRequest(GeneratingOptions):
    """The options of `edit`. A class or a prompt is needed, and a mask, a region or a strength below 1."""

    model: Model = DEFAULT_MODEL
    class_name: Annotated[str | None, Parameter(name="--class")] = None
    """Class of the new content: a name, or a number counted from 0; name:7 and index:7 say which is meant."""
    prompt: str | None = None
    """Description of the whole image in words; with a class, or instead of one."""
    mask: Path | None = None
    """Mask image of the image's or the model's size. Bright opaque pixels may change; in a mask of zeros and
    ones, the ones. A token is regenerated if any of its pixels may change."""
    region: str = ""
    """Instead of a mask: center, top, bottom, left, right, outside, all, or a box x,y,w,h in pixels. Default:
    all, with --strength."""
    strength: float = 1.0
    """Share of the way to pure noise from which the region is drawn, more than 0: 1 draws it anew, less keeps
    more of what it shows (SDEdit; `strength` of image to image elsewhere)."""
    out: Path = Path("edit")
    """Folder for `edited-00.png`, ..., `original.png`, `mask.png`, `sheet.png` and `settings.json`. Those of
    an earlier edit are replaced, other files left alone."""
    variants: int = 1
    """Number of different edits; they share the cached context."""
    candidates: int = 1
    """Edits generated for each one that is kept, which is the one under which the prompt is most likely,
    according to the model."""
    paste: bool = True
    """Restore the pixels outside the mask exactly (--no-paste: keep the model's)."""
    size: str = ""
    """Size at which the image is edited: WIDTHxHEIGHT in pixels, a number for a square, or `native`: its own
    shape, scaled down to the area of the model's images, sides cut to whole tokens. Default: the model's
    size, or native for a model of images of any size."""
    rope_extrapolation: RopeRule = None
    settings: Annotated[SampleConfig, Settings] = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        check(0 < self.strength <= 1, "--strength", self.strength, "a number above 0, up to 1")
        if self.mask is None and not self.region and self.strength < 1:
            object.__setattr__(self, "region", "all")
        if (self.mask is None) == (not self.region):
            raise UserError("expected one of --mask and --region: which pixels may change (or --strength)")
        if self.class_name is None and self.prompt is None:
            raise UserError("expected --class, --prompt, or both: what the region is to show")
        require_at_least(1, self, "variants", "candidates")
        if self.size not in ("", "native"):
            parse_size(self.size, "--size")
        if self.candidates > 1 and self.prompt is None:
            raise UserError(f"--candidates is {self.candidates}; expected --prompt with it, or 1")


@dataclass(frozen=True, kw_only=True)
class CompleteRequest(GeneratingOptions):
    """The options of `complete`."""

    model: Model = DEFAULT_MODEL
    chat: bool = False
    """With a language model: the elements are a conversation, the user's turns and the model's in turn, and
    the model answers by its chat template."""
    documents: Path | None = None
    """A .jsonl file of documents of texts and images, instead of elements: each is continued, into a folder
    of its own in `out`, and `documents.jsonl` there has them as they are then."""
    elements: int | None = None
    """Number of texts and images to generate, if there is room. Default: until the model ends."""
    candidates: int = 1
    """Images generated for each one that is kept after a text, which is the one under which the text is most
    likely, according to the model."""
    out: Path = Path("completion")
    """Folder for `completion-00.png`, ..., `story.png`, `story.json`."""
    write: Annotated[WriteConfig, Settings] = field(default_factory=WriteConfig)
    settings: Annotated[SampleConfig, Settings] = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        require_at_least(1, self, "elements", "candidates")


@dataclass(frozen=True, kw_only=True)
class CaptionRequest(GeneratingOptions):
    """The options of `caption`."""

    model: Model = DEFAULT_MODEL
    out: Path | None = None
    """A .jsonl file to write as well: `image` and `caption` on each line."""
    batch_size: int = 64
    """Images captioned together."""
    write: Annotated[WriteConfig, Settings] = field(default_factory=WriteConfig)

    def __post_init__(self) -> None:
        require_at_least(1, self, "batch_size")
        _check_lines(self.out, "caption")


@dataclass(frozen=True, kw_only=True)
class ClassifyRequest(ComputationOptions):
    """The options of `classify`."""

    model: Annotated[Path, Parameter(name="--model")] = Path("runs/finetune")
    """The run, or model folder, of causalfusion finetune MODEL --task classify."""
    out: Path | None = None
    """A .jsonl file to write as well: `image` and `classes`, with their probabilities, on each line."""
    top: int = 3
    """Classes that are told of each image, the most probable first."""
    batch_size: int = 64
    """Images that go through the model together."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "batch_size", "top")
        _check_lines(self.out, "classes")


def _check_lines(out: Path | None, told: str) -> None:
    """Raises UserError for a file that is no .jsonl, or that holds other lines than an image and what is
    `told` of it."""
    if out is None:
        return
    if out.suffix != ".jsonl" or out.is_dir():
        raise UserError(f"--out is {out}; expected a file that ends in .jsonl")
    if not out.exists():
        return
    try:
        with out.open("rb") as lines:
            own = all(json.loads(line).keys() == {"image", told} for line in lines)
    except (ValueError, AttributeError, RecursionError):
        own = False
    if not own:
        raise UserError(f"{out} holds other lines than images and their {told}; give another --out")
