"""Sampling from a folder of exported programs, by the plans, samplers and guidance of any other pipeline.

Of the model there is nothing but its programs: no weights and no modules.

Shape letters: B rows, T context tokens, n tokens of a segment, P token dimension.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from causalfusion.config import ModelConfig, RopeExtrapolation
from causalfusion.config.serialize import read_object
from causalfusion.diffusion.process import make_process
from causalfusion.errors import UserError, brief
from causalfusion.factorization import UNSEEN, raster_of
from causalfusion.generate.context import Context
from causalfusion.generate.pipeline import Pipeline
from causalfusion.model.kv_cache import CachedAttend
from causalfusion.model.predictions import Predictions
from causalfusion.saved.folder import load_spec, load_tokenizer, open_model_codec
from causalfusion.saved.sampling import read_sampling
from causalfusion.sequence import PackedSequence, Segment

Run = Callable[..., Any]
FORMAT = "causalfusion-export-1"
DESCRIPTION = "export.json"


def load_exported(folder: Path | str, autoencoder: str = "") -> ExportedPipeline:
    """A pipeline whose model is the programs of a folder that `causalfusion convert export` wrote. They are
    read by torch.export.load: only load folders from people you trust. Raises UserError."""
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder} has no {DESCRIPTION}; expected a folder of causalfusion convert export")
    told = read_object(folder / DESCRIPTION, "exported model")
    if told.get("format") != FORMAT:
        raise UserError(f"{folder / DESCRIPTION} is not of the format {FORMAT}; export the model again")
    spec = load_spec(folder)
    programs = {name: _opened(folder, *one) for name, one in _told(folder, told).items()}
    model = ExportedModel(spec.model, programs)
    codec, tokenizer = open_model_codec(folder, spec, autoencoder), load_tokenizer(folder, spec)
    process, sampling = make_process(spec.diffusion), read_sampling(folder)
    return ExportedPipeline(model, codec, spec, process, tokenizer=tokenizer, sampling=sampling)  # pyright: ignore


def _told(folder: Path, description: dict[str, Any]) -> dict[str, tuple[str, set[str]]]:
    """(file, names of inputs) of each program, by its name. Raises UserError for a damaged description."""
    try:
        return {
            str(one["name"]): (str(one["file"]), {str(given["name"]) for given in one["inputs"]})
            for one in description["programs"]
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / DESCRIPTION} is damaged ({error!r}); export the model again") from error


def _opened(folder: Path, name: str, inputs: set[str]) -> tuple[Any, set[str]]:
    """A program of a file, with the names of its inputs. Raises UserError for a damaged file."""
    file = folder / name
    if not file.is_file():
        raise UserError(f"{folder} has no {name}, of which {DESCRIPTION} tells; export again")
    if not zipfile.is_zipfile(file):  # of which torch would print a page before it raises
        raise UserError(f"{file} is damaged: it is cut short, or no program; export the model again")
    try:
        return torch.export.load(file).module(), inputs
    except Exception as error:  # torch raises of many kinds for one cause
        raise UserError(f"{file} cannot be read ({brief(error)}); export the model again") from error


@dataclass(frozen=True)
class ExportedPipeline(Pipeline):
    """Draws and edits images. It has no pass in which a model writes, or is looked into."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def at(self, height: int, width: int) -> Self:
        if (height, width) != self.image_size:
            own = self.image_size
            raise UserError(f"size is {width}x{height}; the programs are for {own[1]}x{own[0]} alone")
        return self

    def extrapolate(self, rule: RopeExtrapolation) -> None:
        raise UserError(
            f"the rope extrapolation is {rule}; the programs have the frequencies of training alone"
        )

    def read(self, labels: Tensor, documents: Any, tokens: Tensor | None) -> Context:
        raise UserError("exported programs draw images; load the model itself to caption, rank or complete")

    def features(self, *_: Any, **__: Any) -> Tensor:
        raise UserError("exported programs give no features; load the model itself")

    def with_adapters(self, *_: Any, **__: Any) -> Self:
        raise UserError("exported programs take no adapters; export the model with them inside")

    def save_pretrained(self, *_: Any, **__: Any) -> Path:
        raise UserError("exported programs cannot be saved as a model; save the model itself")


class _Head:
    """Stands for the per-token head: the conditions stay as they are, and the program denoises under them."""

    def __init__(self, step: Run) -> None:
        self.step = step

    def condition_in(self, condition: Tensor) -> Tensor:
        return condition

    def denoise(self, condition: Tensor, tokens: Tensor, timesteps: Tensor) -> Tensor:
        return self.step(condition=condition, tokens=tokens, timesteps=timesteps.float().flatten())


class ExportedModel:
    """The programs in the place of a `Transformer`: a packed sequence in, predictions out."""

    def __init__(self, config: ModelConfig, programs: dict[str, tuple[Any, set[str]]]) -> None:
        self.config, self.programs = config, programs
        self.head = _Head(lambda **given: self._run("step", **given)) if config.per_token else None

    def _run(self, name: str, **given: Any) -> Any:
        """A program with those of the inputs that it takes."""
        if name not in self.programs:
            raise UserError(f"the folder of exported programs has none named {name}; export the model again")
        run, inputs = self.programs[name]
        with torch.no_grad():
            return run(**{key: value for key, value in given.items() if key in inputs})

    def __call__(
        self,
        sequence: PackedSequence,
        attend: CachedAttend | None = None,
        backend: str = "auto",
        text_token: Tensor | None = None,
    ) -> Predictions:
        """As `Transformer.forward`, for the sequences of drawing and editing: keys and values of clean tokens
        are written to the cache of `attend`."""
        rows = len(sequence.segments[0].values)
        if attend is None:
            return Predictions(torch.zeros(rows, 0, 0), condition=self._reread(sequence))
        context = _Growing(attend, rows, self.config)
        text = None if text_token is None else torch.zeros(rows, 1, 0)
        classes, *others = [s for s in sequence.segments if s.num_tokens or s.kind == "class"]
        condition = self._begin(context, classes, [s for s in others if s.kind == "text"])
        image = torch.zeros(rows, 0, self.config.prediction_dim)
        for segment in others:
            if segment.kind == "text":
                continue
            given = self._inputs(context, segment, classes.values)
            if segment.role == "clean":
                keys, values, *rest = self._run("append", **given)
                context.add(keys, values, segment.ar_step)
                condition = rest[0] if rest else condition
            elif segment.role == "asked":
                condition = self._run("ask", **given)
            else:
                image = self._run("step", **given)
        return Predictions(image, text, condition)

    def _begin(self, context: _Growing, classes: Segment, text: list[Segment]) -> Tensor | None:
        """The condition's keys and values into the context, where the sequence begins with it; what a head
        that asks by the token before has of it."""
        if not classes.num_tokens and not text:
            return None
        labels, given, steps = classes.values, {}, [classes.ar_step]
        if text:
            (words,) = text
            plain = torch.arange(words.num_tokens)[None]
            places = torch.where(words.ar_step < UNSEEN, plain + 1, UNSEEN)
            if not torch.equal(places, words.ar_step):
                raise UserError("exported programs take one text before an image; load the model itself")
            lengths = (words.ar_step < UNSEEN).sum(1).expand(len(labels))
            given = {"ids": words.values, "lengths": lengths}
            steps.append(words.ar_step)
        keys, values, *rest = self._run("condition", labels=labels, **given)
        count = max(len(of) for of in steps)
        context.add(keys, values, torch.cat([of.expand(count, -1) for of in steps], dim=1))
        return rest[0] if rest else None

    def _inputs(self, context: _Growing, segment: Segment, labels: Tensor) -> dict[str, Tensor]:
        """What a program of image tokens may take."""
        rows, count = len(segment.values), segment.num_tokens
        if segment.grid is not None or segment.places is None:
            raise UserError("the programs are for images of the model's own size; load the model itself")
        index = segment.image_index
        if index is not None and bool(index.any()):
            raise UserError("exported programs draw the first image of a row; load the model itself")
        given = {
            "tokens": segment.values,
            "positions": raster_of(segment.places, self.config.grid_width).expand(rows, count),
            "labels": labels,
            **context.inputs(int(segment.ar_step[0, 0])),
        }
        if segment.timesteps is not None:
            given["timesteps"] = segment.timesteps.float()[:, 0]
        if segment.text_places is not None:
            given["text_place"] = segment.text_places[:, 0].expand(rows)
        return given

    def _reread(self, sequence: PackedSequence) -> Tensor:
        """The conditions of mask tokens in a bidirectional context."""
        classes, *known, asked = sequence.segments
        width, labels = self.config.grid_width, classes.values

        def raster(segment: Segment) -> Tensor:
            assert segment.places is not None, "image tokens have places"
            return raster_of(segment.places, width).expand(len(labels), -1)

        if not known:
            return self._run("begin", labels=labels, asked_positions=raster(asked))
        return self._run(
            "ask",
            labels=labels,
            finished=known[0].values,
            finished_positions=raster(known[0]),
            asked_positions=raster(asked),
        )


class _Growing:
    """The cached context of some rows, and what is added to it in a pass."""

    def __init__(self, attend: CachedAttend, rows: int, config: ModelConfig) -> None:
        cache, length = attend.cache, attend.cache.length
        self.cache, self.rows, self.length = cache, rows, length
        self.keys, self.values = (x[:, :rows, :, :length] for x in (cache.k, cache.v))
        steps = cache.ar_step[:, :length]
        self.steps = (steps if len(steps) == 1 else steps[:rows]).expand(rows, -1)

    def add(self, keys: Tensor, values: Tensor, steps: Tensor) -> None:
        """Keys and values (layers, B, G, n, H) of new clean tokens, in AR steps (1 or B, n)."""
        end = self.length + keys.shape[3]
        fit = min(end, self.cache.k.shape[3])
        for cached, new in ((self.cache.k, keys), (self.cache.v, values)):
            cached[:, : self.rows, :, self.length : fit] = new[:, :, :, : fit - self.length]
        self.keys, self.values = (
            torch.cat([old, new], dim=3) for old, new in ((self.keys, keys), (self.values, values))
        )
        self.steps = torch.cat([self.steps, steps.expand(self.rows, -1)], dim=1)
        self.length = end

    def inputs(self, ar_step: int) -> dict[str, Tensor]:
        """The context of tokens in this AR step; where there is none, one token that is not seen."""
        keys, values, seen = self.keys, self.values, self.steps < ar_step
        if not self.length:
            shape = (*keys.shape[:3], 1, keys.shape[4])
            keys = values = keys.new_zeros(shape)
            seen = seen.new_zeros(self.rows, 1)
        return {"keys": keys, "values": values, "seen": seen}
