"""Self-checks of this machine and of a model.

Each finding is a line: a name, a value, and True, False or None for correct, wrong or informative.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from causalfusion import __version__
from causalfusion.codec.codec import Codec
from causalfusion.codec.tokenizer import MARKERS_OF_EXAMPLE, Tokenizer
from causalfusion.config import FactorizationConfig, ModelConfig, RunConfig, SampleConfig
from causalfusion.config.recipes import paper_size
from causalfusion.diffusion.process import make_process
from causalfusion.documents import Image, Text, lay_out, pack_context
from causalfusion.errors import UserError
from causalfusion.factorization import Plan, plan_batch
from causalfusion.generate.ar_step import make_step
from causalfusion.generate.context import prefill
from causalfusion.generate.language import GrowingText, LanguagePipeline
from causalfusion.generate.prompts import Prompts
from causalfusion.generate.write import append_tokens
from causalfusion.machine.runtime import autocast, compute_dtype
from causalfusion.machine.threads import Threads
from causalfusion.model.attention import AttentionBackend, choose_backend
from causalfusion.model.cpu_feed_forward import gelu_form
from causalfusion.model.transformer import Transformer, count_parameters
from causalfusion.saved.folder import (
    FORMAT,
    ModelSpec,
    load_model,
    load_spec,
    load_tokenizer,
    open_model_codec,
    read_spec,
)
from causalfusion.sequence import PackedSequence
from causalfusion.train.step import Arranged, Objective

BACKENDS: tuple[AttentionBackend, ...] = ("dense", "segments", "flex")
TOLERANCE = 1e-5
STEPS = 4
"""AR steps in which predictions are compared."""
_SENTENCE = " Fünf grüne\tSterne ★ left of <image> "


@dataclass(frozen=True)
class Finding:
    name: str
    value: str
    ok: bool | None = None


def check_machine(device: torch.device) -> Iterator[Finding]:
    """Findings on versions, devices and attention backends."""
    yield Finding("causalfusion", __version__)
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("torch", "numpy", "diffusers", "safetensors", "cyclopts"):
        yield Finding(package, metadata.version(package))
    yield Finding("CPU threads", Threads().describe())
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("GELU on the CPU", f"{gelu_form()}, the fastest form with {capability}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("GPUs", ", ".join(gpus) if gpus else "none")
    model = _random_model()
    expected = _masked(model, "dense", device)
    for backend in BACKENDS:
        try:
            with warnings.catch_warnings():  # torch warns that flex is slow when it is not compiled
                warnings.simplefilter("ignore")
                error = _relative(_masked(model, backend, device), expected)
        except Exception as problem:  # any error of a backend is a finding
            yield Finding(f"attention {backend}", f"does not work: {_first_line(problem)}", False)
            continue
        note = "; forward only on the CPU" if backend == "flex" and device.type == "cpu" else ""
        yield Finding(f"attention {backend}", f"differs from dense by {error:.1e}{note}", error <= TOLERANCE)
    yield Finding("attention in training", *_choice(model.config, device))
    yield Finding("cached against masked, random model", *_judge(_cached_difference(model, device)))


def check_model(folder: Path, device: torch.device, autoencoder: str = "") -> Iterator[Finding]:
    """Findings on a model: parameters, tokens, null class, cached against masked predictions, codec and
    tokenizer round trips. Raises UserError if it cannot be loaded."""
    if load_spec(folder).model.text_only:
        yield from _check_language(folder, device)
        return
    model, spec = load_model(folder, device=device)
    config = model.config
    yield Finding("model", f"{folder}, {spec.images_seen:,} images seen" + _origin(spec))
    filled = read_spec(folder)[1]
    if filled:
        yield Finding("earlier format", f"read as {FORMAT}; filled in: {', '.join(filled)}")
    yield Finding("parameters", f"{count_parameters(_trainable(model)):,}{paper_size(config)}")
    tokens = f"{config.grid_height}x{config.grid_width} of {config.token_dim} numbers"
    yield Finding("tokens", f"{tokens}, {config.num_condition_tokens} condition tokens")
    if model.class_embedding is not None:
        yield Finding("null class", *_null_class(model))
    weights_finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    yield Finding("weights finite", str(weights_finite), weights_finite)
    yield Finding("attention in training", *_choice(config, device, _steps_of(spec)))
    yield Finding("cached against masked", *_judge(_cached_difference(model, device)))
    try:
        codec = open_model_codec(folder, spec, autoencoder).to(device)
    except UserError as error:
        yield Finding("codec", str(error), False)
        return
    yield Finding("codec round trip", *_round_trip(codec))
    try:
        tokenizer = load_tokenizer(folder, spec)
    except UserError as error:
        yield Finding("tokenizer", str(error), False)
        return
    if tokenizer is not None:
        same = tokenizer.decode(tokenizer.encode(_SENTENCE)) == _SENTENCE
        size = f"{tokenizer.vocab_size} tokens; a sentence of all sorts comes back whole: {same}"
        yield Finding("tokenizer", size, None if spec.text.tokenizer != "train" else same)
        error = _cached_text_difference(model, spec, tokenizer, device)
        yield Finding("text, cached against masked", *_judge(error))


def _check_language(folder: Path, device: torch.device) -> Iterator[Finding]:
    """Findings on a language model without images."""
    pipeline = LanguagePipeline.load(folder, device=device)
    tokenizer, model = pipeline.tokenizer, pipeline.model
    yield Finding("model", str(folder) + _origin(pipeline.spec))
    yield Finding("parameters", f"{count_parameters(_trainable(model)):,}")
    weights_finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    yield Finding("weights finite", str(weights_finite), weights_finite)
    same = tokenizer.decode(tokenizer.encode(_SENTENCE)) == _SENTENCE
    chat = "with" if tokenizer.chat_template else "without"
    size = f"{tokenizer.size:,} ids, {chat} a chat template; a sentence of all sorts comes back whole: {same}"
    yield Finding("tokenizer", size)
    ids = tokenizer.encode(_SENTENCE)[: model.config.max_text_tokens]
    with torch.no_grad():
        text = GrowingText(model, [ids[:1]], len(ids) - 1, device)
        cached = [text.logits]
        for token in ids[1:]:
            text.append(torch.tensor([token], device=device))
            cached.append(text.logits)
    error = _relative(torch.cat(cached), pipeline.logits([ids])[0])
    yield Finding("text, cached against masked", *_judge(error))


def _random_model() -> Transformer:
    config = ModelConfig(
        hidden_size=64, depth=3, num_heads=4, num_classes=10, token_dim=4, grid_height=8, grid_width=8
    )
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval().requires_grad_(False)


TIMESTEP = 500
"""At which predictions are compared."""


def _steps_of(spec: ModelSpec) -> int:
    """AR steps of a training sequence, of a model that was trained with a fixed number that number."""
    trained = spec.factorization
    number = trained.num_ar_steps or spec.model.num_tokens
    return min(STEPS, number) if trained.distribution == "fixed" else STEPS


def _inputs(
    config: ModelConfig, device: torch.device, steps: int = STEPS
) -> tuple[Plan, Tensor, Tensor, Tensor]:
    """(plan of two images, clean tokens, noised ones, labels), tokens in the plan's order."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, config.num_tokens, config.token_dim)
    clean, noised = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    plan = plan_batch(
        _factorization(config, steps),
        config.grid_height,
        config.grid_width,
        seed=0,
        split_index=0,
        sample_indices=[0, 1],
    )
    labels = torch.tensor([0, max(config.num_classes - 1, 0)], device=device)
    return plan.to(device), clean, noised, labels


def _factorization(config: ModelConfig, steps: int) -> FactorizationConfig:
    """So many AR steps, or one for each token where the head asks so."""
    if config.head.ask == "previous":
        return FactorizationConfig(distribution="fixed", num_ar_steps=0, order="raster")
    return FactorizationConfig(distribution="fixed", num_ar_steps=min(steps, config.num_tokens))


def _training_sequence(config: ModelConfig, device: torch.device, steps: int = STEPS) -> PackedSequence:
    """As a training step packs it: through its objective, without anything random."""
    plan, clean, noised, labels = _inputs(config, device, steps)
    ordered = plan.order[:, :, None].expand_as(clean)
    raster = torch.zeros_like(clean).scatter(1, ordered, clean)
    run = RunConfig(model=config, factorization=_factorization(config, steps))
    objective = Objective(run, make_process(run.diffusion))
    levels, no_noise = torch.full((2, 1), TIMESTEP, device=device), torch.zeros_like(clean)[:, None]
    piece = Arranged(raster, labels, plan, levels, no_noise)
    tokens = piece.noised_from(objective.first_asked(piece), objective.process)
    asked = noised[:, objective.first_asked(piece) :]
    return objective.pack(piece, replace(tokens, noised=asked))


def _choice(config: ModelConfig, device: torch.device, steps: int = STEPS) -> tuple[str, None]:
    """The backend that `auto` chooses for a sequence of this model, with the reason."""
    sequence, found = _training_sequence(config, device, steps), []
    for precision in ("float32", "bfloat16"):
        with autocast(device, compute_dtype(precision)):
            backend, reason = choose_backend(sequence, config.head_dim)
        found.append(f"{backend} in {precision}: {reason}")
    count = _inputs(config, device, steps)[0].num_ar_steps
    tokens = f"{sequence.num_tokens} tokens, {count} AR step{'s' * (count != 1)}"
    return f"{tokens}: {'; '.join(found)} (--train.attention takes another)", None


@torch.no_grad()
def _masked(model: Transformer, backend: AttentionBackend, device: torch.device) -> Tensor:
    return model.to(device)(_training_sequence(model.config, device), backend=backend).image


@torch.no_grad()
def _cached_difference(model: Transformer, device: torch.device) -> float:
    """Largest relative difference between predictions in generation, AR step by AR step, and those of a
    masked training pass; in a bidirectional context that predicts the last AR step alone."""
    plan, clean, noised, labels = _inputs(model.config, device)
    context, predictions, start = prefill(model, labels, SampleConfig()), [], 0
    for size in torch.bincount(plan.ar_step[0])[1:].tolist():
        part = slice(start, start + size)
        step = make_step(model, context, plan.order[:, start:], size)
        predictions.append(step.predict(noised[:, part], TIMESTEP))
        context, start = step.append(clean[:, part]), start + size
    masked = _masked(model, "dense", device)
    return _relative(torch.cat(predictions, dim=1)[:, -masked.shape[1] :], masked)


@torch.no_grad()
def _cached_text_difference(
    model: Transformer, spec: ModelSpec, tokenizer: Tokenizer, device: torch.device
) -> float:
    """Largest relative difference between logits of a text after an image, computed token by token with the
    cache, and those of a masked pass."""
    config, markers = model.config, tokenizer.markers
    tokens = torch.randn(
        1, config.num_tokens, config.token_dim, generator=torch.Generator().manual_seed(2)
    ).to(device)
    ids = tuple(range(min(8, config.max_text_tokens - MARKERS_OF_EXAMPLE)))
    labels = torch.full((1,), config.null_label, device=device)
    context = spec.text.image_context
    begun = Prompts([[Image(0), Text(open=True)]], markers, tokens, context)
    cached = prefill(model, labels, SampleConfig(), prompts=begun)
    assert cached.text_logits is not None, "a document has text logits"
    logits = [cached.text_logits]
    for place, token in enumerate(ids):
        logits.append(append_tokens(model, cached, torch.tensor([token], device=device), place))
    layout = lay_out([[Image(0), Text(ids, open=True)]], markers, [1]).to(device)
    sequence = pack_context(layout, labels, config.num_condition_tokens, tokens, config.grid_width, context)
    masked = model(sequence, backend="dense").text[:, -len(logits) :]
    return _relative(torch.stack(logits, dim=1), masked)


def _null_class(model: Transformer) -> tuple[str, bool]:
    table = next(
        p for name, p in model.named_parameters() if name.startswith("class_embedding") and "weight" in name
    )
    null, rows = model.config.null_label, table.shape[0]
    return f"label {null}, the last of {rows} rows", null == rows - 1


def _round_trip(codec: Codec) -> tuple[str, bool | None]:
    """Error of pixels -> tokens -> pixels on a smooth image: zero for pixels, small for a trained
    autoencoder."""
    config = codec.config
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, config.image_height), torch.linspace(-1, 1, config.image_width), indexing="ij"
    )
    image = torch.stack([(x * (c + 1) / 2 + y / (c + 1)) / 2 for c in range(config.image_channels)])[None]
    image = image.clamp(-1, 1).to(codec.device)
    with torch.no_grad():
        tokens = codec.encode_tokens(image, None)
        error = float((codec.decode_tokens(tokens) - image).abs().max())
    if config.kind == "pixels":
        return f"largest pixel error {error:.1e}", error <= 1e-5
    return (
        f"largest pixel error {error:.2f} of 2 on a smooth ramp, latent std {float(tokens.std()):.2f}",
        None,
    )


def _trainable(model: Transformer) -> Transformer:
    return model.requires_grad_(True)


def _judge(error: float) -> tuple[str, bool]:
    return f"largest relative difference {error:.1e}", error <= TOLERANCE


def _relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).abs().max() / expected.abs().max())


def _origin(spec: ModelSpec) -> str:
    return f", from {spec.origin}" if spec.origin else ""


def _first_line(problem: Exception) -> str:
    return str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
