"""One training step's random draws and its loss (PAPER sections 4 and 7); pure functions.

Shape letters: B examples, N of their images, L image tokens, R noised copies of every AR step, P token
dimension, n text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from causalfusion.codec.tokenizer import Markers
from causalfusion.config import FactorizationConfig, ModelConfig, PredictionType, TextConfig
from causalfusion.diffusion.prediction import add_noise, training_target
from causalfusion.diffusion.schedule import NoiseSchedule
from causalfusion.documents import NO_TARGET, lay_out, pack_documents
from causalfusion.factorization import Plan, loss_weights, plan_batch
from causalfusion.losses import squared_error, text_cross_entropy, weighted_mean
from causalfusion.model.attention import AttentionBackend
from causalfusion.rng import derive_generator
from causalfusion.sequence import pack_training
from causalfusion.train.arrange import TextDraw, documents_of, draw_text, seen_by_text, used_images


@dataclass(frozen=True)
class TokenBatch:
    """What the feed gives: this process's share of a train step's images."""

    tokens: Tensor
    """(B, L, P) clean, raster order."""
    labels: Tensor
    """(B,) int64."""
    sample_indices: Tensor
    """(B,) int64 places in the sample stream."""
    captions: tuple[list[int], ...] | None = None
    """Token ids of the captions; None: a run without text."""

    def slice(self, rows: slice) -> TokenBatch:
        """Some of the examples, for a micro-batch."""
        captions = None if self.captions is None else self.captions[rows]
        return TokenBatch(self.tokens[rows], self.labels[rows], self.sample_indices[rows], captions)

    def to(self, device: torch.device) -> TokenBatch:
        return replace(self, tokens=self.tokens.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Draws:
    """All that is random in a training step."""

    plan: Plan
    timesteps: Tensor
    """int64 noise levels: (B, 1), one for the whole image, or (B, R*L), one per noised token in the plan's
    order."""
    noise: Tensor
    """(B, R, L, P) standard normal, in raster order."""
    drop_class: Tensor
    """(B,) bool: replace the class by the null class."""
    text: tuple[TextDraw, ...] = ()
    """Of the examples of a run with text."""

    def to(self, device: torch.device) -> Draws:
        plan = Plan(self.plan.order.to(device), self.plan.ar_step.to(device))
        timesteps, noise, drop = (x.to(device) for x in (self.timesteps, self.noise, self.drop_class))
        return Draws(plan, timesteps, noise, drop, self.text)

    def slice(self, rows: slice) -> Draws:
        """The draws of some of the examples, for a micro-batch."""
        return replace(self.images(rows), drop_class=self.drop_class[rows], text=self.text[rows])

    def images(self, rows: slice | Tensor) -> Draws:
        """The draws of some of the images."""
        ar_step = self.plan.ar_step if len(self.plan.ar_step) == 1 else self.plan.ar_step[rows]
        plan = Plan(self.plan.order[rows], ar_step)
        return replace(self, plan=plan, timesteps=self.timesteps[rows], noise=self.noise[rows])


@dataclass(frozen=True)
class DocumentErrors:
    """What a model got wrong in documents."""

    image: Tensor
    """(N, R*L, P) squared errors, in the plan's order."""
    plan: Plan
    timesteps: Tensor
    """Both of these images."""
    text: Tensor
    """(documents, n) cross-entropies; 0 where there is no target."""
    text_targets: Tensor
    """(documents, n) token ids, or NO_TARGET."""


def draw(
    factorization: FactorizationConfig,
    model: ModelConfig,
    num_timesteps: int,
    class_dropout: float,
    *,
    seed: int,
    split_index: int,
    sample_indices: Sequence[int],
    text: TextConfig | None = None,
) -> Draws:
    """The draws for these places of the sample stream: functions of (seed, place), and of `split_index`
    where the split is shared; so they are the same whichever process or resumed run makes them."""
    plan = plan_batch(
        factorization, model.grid_height, model.grid_width,
        seed=seed, split_index=split_index, sample_indices=sample_indices,
    )  # fmt: skip
    num_tokens, copies = model.num_tokens, factorization.timesteps_per_ar_step
    timesteps, noise, dropped = [], [], []
    for row, index in enumerate(sample_indices):
        generator = derive_generator(seed, "step", index)
        dropped.append(torch.rand((), generator=generator) < class_dropout)
        if factorization.timesteps == "shared":
            t = torch.randint(num_timesteps, (copies, 1), generator=generator)
            t = t.expand(-1, num_tokens) if copies > 1 else t
        else:
            of_step = torch.randint(num_timesteps, (copies, num_tokens), generator=generator)
            ar_step = plan.ar_step[row if len(plan.ar_step) > 1 else 0]
            t = of_step[:, ar_step - 1]
        timesteps.append(t.reshape(-1))
        noise.append(torch.randn(copies, num_tokens, model.token_dim, generator=generator))
    draws = Draws(plan, torch.stack(timesteps), torch.stack(noise), torch.stack(dropped))
    return draws if text is None else _with_text(draws, text, num_timesteps, seed, sample_indices)


def _with_text(
    draws: Draws, text: TextConfig, num_timesteps: int, seed: int, sample_indices: Sequence[int]
) -> Draws:
    """The same draws with those of the text. Where text sees noised images, their timesteps are squeezed
    into those below the limit."""
    of_text = draw_text(text, seed=seed, sample_indices=sample_indices)
    timesteps = draws.timesteps
    if text.image_context == "noised":
        limit = min(text.max_context_timestep, num_timesteps)
        seen = seen_by_text(of_text, text.examples_per_sequence)[:, None]
        timesteps = torch.where(seen, timesteps * limit // num_timesteps, timesteps)
    return replace(draws, timesteps=timesteps, text=of_text)


def token_errors(
    model: nn.Module,
    config: ModelConfig,
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    tokens: Tensor,
    labels: Tensor,
    draws: Draws,
    backend: AttentionBackend = "auto",
    length_multiple: int = 1,
) -> Tensor:
    """Squared errors (B, R*L, P) of clean tokens (B, L, P) in raster order, returned in the plan's order."""
    clean, noised, target = _noised(tokens, draws, schedule, prediction_type)
    labels = torch.where(draws.drop_class, config.null_label, labels)
    sequence = pack_training(
        labels, config.num_condition_tokens, clean, noised, draws.plan, draws.timesteps, length_multiple
    )
    return squared_error(model(sequence, backend=backend).image, target)


def _noised(
    tokens: Tensor, draws: Draws, schedule: NoiseSchedule, prediction_type: PredictionType
) -> tuple[Tensor, Tensor, Tensor]:
    """Clean (B, L, P), noised and target (B, R*L, P) tokens in the plan's order."""
    plan, copies = draws.plan, draws.noise.shape[1]
    index = plan.order[:, :, None].expand_as(tokens)
    clean = tokens.gather(1, index)
    noise = draws.noise.gather(2, index[:, None].expand(-1, copies, -1, -1)).flatten(1, 2)
    repeated = clean.repeat(1, copies, 1)
    noised = add_noise(repeated, noise, draws.timesteps, schedule)
    target = training_target(repeated, noise, draws.timesteps, schedule, prediction_type)
    return clean, noised, target


def document_errors(
    model: nn.Module,
    config: ModelConfig,
    text: TextConfig,
    markers: Markers,
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    batch: TokenBatch,
    draws: Draws,
    backend: AttentionBackend = "auto",
    num_text: int = 0,
) -> DocumentErrors:
    """The errors of a batch with captions, arranged as drawn, in at least `num_text` text tokens a row."""
    assert batch.captions is not None, "documents have texts"
    device, group = batch.tokens.device, text.examples_per_sequence
    used = used_images(draws.text).to(device)
    images = draws.images(used)
    clean, noised, target = _noised(batch.tokens[used], images, schedule, prediction_type)
    ar_steps = [1] * len(used)
    if text.image_context == "clean":
        last = images.plan.ar_step[:, -1] * draws.noise.shape[1]
        ar_steps = last.expand(len(used)).tolist()
    documents = documents_of(batch.captions, draws.text, group)
    layout = lay_out(documents, markers, ar_steps, ended=True, num_text=num_text).to(device)
    with_caption = torch.tensor([d.drop_class for d in draws.text], device=device)
    dropped = draws.drop_class | with_caption
    labels = torch.where(dropped, config.null_label, batch.labels)[::group]
    sequence = pack_documents(
        layout, labels, config.num_condition_tokens, clean, noised, images.plan, images.timesteps,
        text.image_context,
    )  # fmt: skip
    predictions = model(sequence, backend=backend)
    of_image = predictions.image.reshape(-1, *noised.shape[1:])[layout.place_of_image]
    return DocumentErrors(
        image=squared_error(of_image, target),
        plan=images.plan,
        timesteps=images.timesteps,
        text=text_cross_entropy(predictions.text, layout.text_targets, NO_TARGET),
        text_targets=layout.text_targets,
    )


def count_targets(batch: TokenBatch, draws: Draws, markers: Markers, group: int) -> tuple[int, int, int]:
    """(images, text tokens) that the batch has to predict; text tokens in its longest row."""
    assert batch.captions is not None, "documents have texts"
    num_images = len(used_images(draws.text))
    documents = documents_of(batch.captions, draws.text, group)
    targets = lay_out(documents, markers, [1] * num_images, ended=True).text_targets
    return num_images, int((targets != NO_TARGET).sum()), targets.shape[1]


def document_sums(
    errors: DocumentErrors, config: FactorizationConfig, weight_of_level: Tensor
) -> tuple[Tensor, Tensor]:
    """(Σ over images of their mean squared error under the AR weights, Σ of the cross-entropies)."""
    if not len(errors.image):
        return errors.image.sum(), errors.text.sum()
    weighted = errors.image * weight_of_level[errors.timesteps][:, :, None]
    image = training_loss(weighted, errors.plan, config) * len(errors.image)
    return image, errors.text.sum()


def training_loss(errors: Tensor, plan: Plan, config: FactorizationConfig) -> Tensor:
    """The scalar that is minimised: the mean of the squared errors under the AR weights."""
    return weighted_mean(errors, loss_weights(plan.ar_step, config))
