"""Going on from a model with other data: the settings that it brings with it, and the run that follows."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from causalfusion.codec.tokenizer import Tokenizer, words_in_pieces
from causalfusion.config import CodecConfig, FinetuneConfig, LoraConfig, RunConfig, SampleConfig
from causalfusion.config.distillation import MOST_STEPS
from causalfusion.config.serialize import to_dict
from causalfusion.config.sizes import size_text
from causalfusion.diffusion.process import make_process
from causalfusion.diffusion.segments import few_steps
from causalfusion.errors import UserError
from causalfusion.machine.progress import tell
from causalfusion.saved.adapter import copy_adapter
from causalfusion.saved.folder import ModelSpec, load_spec, load_weights, read_latest
from causalfusion.saved.sampling import read_sampling
from causalfusion.saved.started import autoencoder_place
from causalfusion.train.feed import TrainingData
from causalfusion.train.resume import settings_of_run
from causalfusion.weight_files import fingerprint_of

IMAGES = 1_600
RATES = {"none": 0.064, "lora": 1.024, "text-inversion": 1.28}
"""Learning rate times the model's width, by what learns."""


def settings_beneath(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of settings to lay beneath those that are `given`: those with which the model was trained, as
    far as they do not depend on its data. Raises UserError where there is no model."""
    spec, folder = read_latest(Path(model), load_spec)
    adapter = given.get("adapter", FinetuneConfig().adapter)
    text = to_dict(spec.text)
    text["tokenizer"] = "init" if spec.model.vocab_size else ""
    size = given.get("data.image-size") or given.get("data", {}).get("image_size")
    tables = {
        "data": sizes_of(spec, native=size == "native"),
        "factorization": to_dict(spec.factorization),
        "text": text,
        "train": {
            "images": IMAGES,
            "batch_size": 16,
            "lr": min(RATES.get(adapter, RATES["none"]) / spec.model.hidden_size, 1e-2),
            "eps": 1e-8,
            "lr_schedule": "cosine",
            "warmup_images": 160,
            "ema_decay": 0.99,
            "precision": "auto",
            "evaluate_every": 0,
        },
    }
    if spec.class_dropout is not None:
        tables["train"]["class_dropout"] = spec.class_dropout
    sampling = read_sampling(folder)
    if sampling is not None:
        tables["sample"] = to_dict(sampling)
        if given.get("task", "generate") == "generate":
            _tell_of_student(model, spec, folder, sampling)
    return tables


def _tell_of_student(model: str, spec: ModelSpec, folder: Path, sampling: SampleConfig) -> None:
    """Say what becomes of a model that was distilled, as its run says, or its recommended sampling."""
    process, run, steps = make_process(spec.diffusion), settings_of_run(folder), sampling.diffusion_steps
    few = len(steps) == 1 and steps[0] <= MOST_STEPS
    as_student = few and process.settled(sampling) == process.settled(few_steps(process, steps[0]))
    if run.get("distill", {}).get("teacher") if run else as_student:
        warnings.warn(
            f"{model} was distilled to few diffusion steps ({' '.join(map(str, steps))}), and is fine-tuned "
            "as an ordinary model: its images may need more (--diffusion-steps); to keep few, fine-tune its "
            "teacher and distill that",
            stacklevel=2,
        )


def sizes_of(spec: ModelSpec, *, native: bool) -> dict[str, Any]:
    """The settings of data for images of the model's size; `native`: for those of their own sizes."""
    codec = spec.codec
    side = size_text(codec.image_height, codec.image_width)
    largest = {"max_area": codec.max_area} if native and codec.max_area else {}
    return ({"image_size": side} if side else {}) | largest


def continued(config: RunConfig) -> RunConfig:
    """The settings of a run with everything that follows from the model it goes on from, `train.init`:
    architecture, codec, path and prediction; its grid and its classes follow from the data. Raises UserError
    for a model that cannot be fine-tuned so."""
    if config.data.has_documents:
        raise UserError(
            f"data.source is {config.data.source}; finetune takes images: a model goes on with documents by "
            f"causalfusion train --train.init {config.train.init}"
        )
    if Path(config.out).resolve() == Path(config.train.init).resolve():
        raise UserError(f"--out {config.out} is the model that the run goes on from; give another folder")
    spec, folder = read_latest(Path(config.train.init), load_spec)
    _refuse(spec, config, folder)
    finetune = replace(config.finetune, base=config.train.init, classes=_classes(spec))
    if finetune.task == "classify":
        finetune = replace(finetune, keep_classes=False)
    model = replace(spec.model, num_classes=0, grid_height=0, grid_width=0)
    text, train = config.text, config.train
    if finetune.adapter != "none":
        finetune = replace(finetune, fingerprint=fingerprint_of(load_weights(folder)))
    if finetune.adapter == "lora":
        model = replace(model, lora=LoraConfig(rank=finetune.rank, alpha=finetune.alpha))
    if finetune.adapter == "text-inversion":  # images alone tell what the word means
        model = replace(model, vocab_size=0)
        text = replace(text, caption_first=1.0, image_first=0.0, image_only=0.0, text_only=0.0)
        train = replace(train, parallel="ddp")  # a single row learns
    return replace(
        config, codec=_codec(spec, folder), model=model, diffusion=spec.diffusion, text=text, train=train,
        finetune=finetune,
    )  # fmt: skip


def _classes(spec: ModelSpec) -> list[str]:
    """The names of the model's classes, their numbers where they have none; of a single class without a name
    no images are told apart."""
    count = spec.model.num_classes
    return spec.class_names or [str(number) for number in range(count)] * (count > 1)


def _refuse(spec: ModelSpec, config: RunConfig, folder: Path) -> None:
    """Raises UserError for a model that cannot be fine-tuned so."""
    model, why, finetune = spec.model, "", config.finetune
    if finetune.task != "generate" and (finetune.adapter != "none" or finetune.prior_preservation):
        raise UserError(
            f"--task {finetune.task} trains all weights; leave --adapter and --prior-preservation out"
        )
    if finetune.prior_preservation and not finetune.keep_classes and model.uses_classes and _classes(spec):
        raise UserError(
            "--prior-preservation draws images of the model's classes, and --no-keep-classes leaves out "
            "those that the data lack; expected one of the two"
        )
    if finetune.adapter != "none" and config.train.optimizer == "muon":
        raise UserError(
            f"train.optimizer is muon, which trains whole matrices, and --adapter {finetune.adapter} trains "
            "none; expected adamw, or --adapter none"
        )
    if finetune.adapter != "none" and config.text.tokenizer not in ("", "init"):
        raise UserError(  # where the adapter is used, its model's tokenizer reads prompts
            f"--text.tokenizer is {config.text.tokenizer!r}; an adapter is learned with the tokenizer of its "
            "model: leave it out, or give --adapter none"
        )
    if finetune.task == "classify" and (config.data.native or config.data.has_documents):
        raise UserError("--task classify needs images of one size; give another --data.image-size")
    if finetune.task == "caption" and not model.vocab_size:
        why = "has no text; expected a model that was trained with captions, for --task caption"
    elif finetune.task == "caption" and (spec.text.image_context != "clean" or model.per_token):
        why = "sees noised images before text, or has a per-token head; --task caption needs clean images"
    elif finetune.task == "caption" and config.data.has_documents:
        why = "is fine-tuned for captions on images with captions, not on documents"
    elif model.text_only:
        why = "is a language model without images; causalfusion train --config graft teaches it some"
    elif finetune.adapter == "lora" and model.lora.rank:
        why = "has low-rank additions of its own; merge them (convert merge), or give --adapter none"
    elif finetune.adapter == "lora" and model.own_image_weights:
        why = "has weights of their own for image tokens, which no addition changes; give --adapter none"
    elif finetune.adapter == "text-inversion" and (not model.vocab_size or model.speaks):
        why = "has no words of its own to add one to; --adapter text-inversion is for models with captions"
    if why:
        raise UserError(f"{folder} {why}")


def _codec(spec: ModelSpec, folder: Path) -> CodecConfig:
    """The codec of the model, for images of any one size."""
    codec = replace(spec.codec, normalization="given", image_height=0, image_width=0)
    if codec.autoencoder:
        codec = replace(codec, autoencoder=autoencoder_place(folder, codec.autoencoder))
    return codec


def check_task(config: RunConfig, data: TrainingData) -> None:
    """Raises UserError for data from which a task cannot be learned."""
    task, names = config.finetune.task, data.class_names
    if task == "classify" and len(names) < 2:
        found = f"one class alone, {names[0]!r}" if names else "no labels"
        raise UserError(f"the data have {found}; expected images of two or more classes, for --task classify")
    if task == "classify" and not len(data.held_out):
        raise UserError("data.holdout is 0; expected a share of images to measure accuracy on")
    reads = bool(config.finetune.base) and task != "classify" and data.tokenizer is not None
    if reads and not config.data.has_documents and not data.source.has_captions:
        where = config.data.cache or config.data.path or config.data.source
        remedy = "images with captions (--data.captions class_names: the names of their classes)"
        if task == "caption":
            raise UserError(f"{where} has no captions; expected {remedy}, for --task caption")
        warnings.warn(
            f"{where} has no captions, and the model draws what it is told: all images come with an empty "
            f"one; expected {remedy}",
            stacklevel=2,
        )


def beneath_task(task: str, model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of settings to lay beneath those of a classification, or of a fine-tuning for captions."""
    tables = settings_beneath(model, given)
    train = tables["train"]
    train |= {"sample_every": 0, "sample_minutes": 0.0, "class_dropout": 0.0}
    if task == "classify":
        train |= {"evaluate_every": 200, "evaluate_images": 50_000, "weight_decay": 0.05}
    else:
        tables["text"] |= dict(caption_first=0.0, image_first=1.0, image_only=0.0, text_only=0.0)
        tables["text"] |= {"loss_coefficient": 1.0, "caption_dropout": 0.0}
        train |= {"evaluate_every": 200}
    return tables


def report(config: RunConfig, checkpoint: Path) -> None:
    """Put the adapter that a run trained into its folder, and say how it is used."""
    run = Path(config.out)
    if config.finetune.adapter == "none":
        return
    if os.environ.get("RANK", "0") == "0":
        place = copy_adapter(checkpoint, run)
        size = sum(file.stat().st_size for file in place.iterdir()) / 1000 if place else 0
        model, adapter = shlex.quote(config.train.init), shlex.quote(str(run))
        tell(f"{place}, {size:,.0f} kB: causalfusion sample --model {model} --adapters {adapter}")


def check_captions(captions: Iterable[str], tokenizer: Tokenizer, finetune: FinetuneConfig) -> None:
    """Say which words of the captions the tokenizer knows by pieces alone. Raises UserError where the new
    word is in none of them."""
    said, word, read = not finetune.word, tokenizer.base_size - 1, list[str]()
    for caption in captions:
        said = said or word in tokenizer.encode(caption)
        read.append(caption.replace(finetune.word, " ") if finetune.word else caption)
    if not said:
        raise UserError(
            f"no caption has the word {finetune.word}; expected it where its meaning is to be learned"
        )
    strange = words_in_pieces(tokenizer, read)
    if strange:
        warnings.warn(
            f"words of the captions that are not in the model's vocabulary are spelled in pieces, whose "
            f"sense it has to learn anew: {strange}",
            stacklevel=2,
        )
