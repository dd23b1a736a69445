"""Counting arithmetic: floating-point operations of training steps; `generation_arithmetic` goes on with
generation.

Two counts. *Dense*: every row of every layer and every query-key pair, as the released code computes.
*Needed*: only the pairs that may attend, and in the last layer only the rows that are read. Normalisation,
activation and softmax are not counted; a multiply-add is two operations; a backward pass is twice a forward.
Text is counted as if it stood before one image, with that image's last AR step among the clean tokens.

A count depends on a split into AR steps through a few sums alone (`SplitFacts`). Their expectation over all
splits that training draws has a closed form, so that the expected arithmetic of a run is exact.

Shape letters: B images, T packed tokens, V context tokens, L image tokens, R noised copies of every AR step,
C condition tokens, n text tokens, S AR steps, D width, P token dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from causalfusion.config import ModelConfig, RunConfig
from causalfusion.model.block_cost import BlockCost, image_cost
from causalfusion.model.embeddings import TIMESTEP_FREQUENCIES
from causalfusion.model.encoder import encoder_config
from causalfusion.model.head_cost import HeadCost
from causalfusion.model.split_facts import SplitFacts, expected_facts, split_facts


@dataclass(frozen=True)
class Flops:
    dense: float
    needed: float

    def __mul__(self, factor: float) -> Flops:
        return Flops(self.dense * factor, self.needed * factor)

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.dense + other.dense, self.needed + other.needed)


@dataclass(frozen=True)
class Form:
    """The content of an image's training sequence beside its split."""

    copies: int = 1
    """R; of a per-token head, outside of the sequence."""
    text_tokens: float = 0
    timestep_rows: int = 1
    """Noise levels that are embedded: one, or one for every noised token."""
    clean_copies: bool = True
    """Off for Transfusion, whose image is one noised block."""
    per_token: bool = False
    """Mask tokens, or none, stand in the sequence; the noised ones go to the head alone."""
    reads_text: bool = True
    """A head predicts what follows text tokens."""

    @property
    def rows_per_token(self) -> int:
        """Noised tokens, or mask tokens, in the sequence for each token of the image."""
        return 1 if self.per_token else self.copies


def form_of(config: RunConfig, text_tokens: float = 0) -> Form:
    """The form of a run's sequences; `text_tokens` stand in one on average, for each of its images."""
    plan = config.factorization
    of_each_token = plan.timesteps != "shared" or plan.timesteps_per_ar_step > 1
    return Form(
        copies=plan.timesteps_per_ar_step,
        text_tokens=text_tokens,
        timestep_rows=plan.timesteps_per_ar_step * config.model.num_tokens if of_each_token else 1,
        clean_copies=config.text.image_context == "clean",
        per_token=config.model.per_token,
        reads_text=config.reads_text,
    )


def linear(rows: float, inputs: float, outputs: float) -> float:
    """A linear layer, for so many rows."""
    return 2 * rows * inputs * outputs


def level_flops(config: ModelConfig, rows: int, others: int = 0) -> float:
    """Embedding `rows` noise levels; with AdaLN-zero also a modulation of each of them, and of `others`."""
    inner = config.condition_size
    embedding = linear(rows, TIMESTEP_FREQUENCIES, inner) + linear(rows, inner, inner)
    return embedding + modulation_flops(config, rows + others)


def modulation_flops(config: ModelConfig, rows: float) -> float:
    """With AdaLN-zero, the modulations of `rows` different conditions."""
    size, inner, rank = config.hidden_size, config.condition_size, config.adaln_rank
    if config.conditioning == "in_context":
        return 0
    if not rank:
        return linear(rows, inner, (6 * config.depth + 2) * size)
    return config.depth * (linear(rows, inner, rank) + linear(rows, rank, 6 * size)) + linear(
        rows, inner, 8 * size
    )


@dataclass(frozen=True)
class Pairs:
    """Query-key pairs that may attend, of one image's training sequence: how many each kind of query sees."""

    classes: float
    text: float
    clean: float
    noised: float

    @property
    def all(self) -> float:
        return self.classes + self.text + self.clean + self.noised


def visible_pairs(config: ModelConfig, split: SplitFacts, form: Form) -> Pairs:
    """The query-key pairs that the mask leaves of the square of the sequence's length."""
    total, text, classes = split.num_tokens, form.text_tokens, config.num_condition_tokens
    clean, _, _ = _clean_rows(split, form)
    condition = classes + text
    within = (total**2 + split.squares) / 2  # Σ |κ_s| times the image tokens up to κ_s
    of_clean = condition * clean + (within if text else within - split.last * total)
    return Pairs(
        classes=classes**2,
        text=classes * text + text * (text + 1) / 2,
        clean=of_clean if form.clean_copies else 0,
        noised=form.rows_per_token * (condition * total + within),
    )


def sequence_length(config: ModelConfig, split: SplitFacts, form: Form) -> float:
    """T, rows of one image's training sequence."""
    if config.context == "bidirectional":
        return config.num_condition_tokens + split.num_tokens
    if config.head.ask == "previous":
        return config.num_condition_tokens + split.num_tokens - 1
    _, context, _ = _clean_rows(split, form)
    return config.num_condition_tokens + form.text_tokens + context + form.rows_per_token * split.num_tokens


def image_flops(config: ModelConfig, split: SplitFacts, form: Form) -> Flops:
    """One image's training sequence, forward."""
    if config.context == "bidirectional":
        levels = form.timestep_rows * split.last / split.num_tokens
        of_head = HeadCost(config).flops(split.last, form.copies, levels)
        return known_and_asked(config, split) + Flops(of_head, of_head)
    if config.head.ask == "previous":
        return _of_next_tokens(config, split, form)
    size, text, noised = config.image_size, form.text_tokens, form.rows_per_token * split.num_tokens
    clean, context, context_squared = _clean_rows(split, form)
    pairs, read = visible_pairs(config, split, form), text if form.reads_text else 0
    ends = linear(read, config.hidden_size, config.vocab_size)
    if form.per_token:
        ends += HeadCost(config).flops(split.num_tokens, form.copies, form.timestep_rows)
        ends += modulation_flops(config, 2 if context else 1)
    else:
        ends += linear(noised, size, config.prediction_dim)
        ends += level_flops(config, form.timestep_rows, others=1 if context else 0)
    entering = 0 if form.per_token else noised
    condition = config.num_condition_tokens + text
    others = condition + noised
    length_squared = others**2 + 2 * others * context + context_squared
    of_text, of_image = BlockCost(config).flops, image_cost(config).flops
    needed = (config.depth - 1) * (
        of_text(condition, condition, pairs.all) + of_image(noised + clean, noised + clean, 0)
    )
    needed += of_text(condition, read, pairs.text * (read > 0) + pairs.noised)
    needed += of_image(noised + clean, noised, 0)
    dense = of_text(condition, condition, length_squared) + of_image(noised + context, noised + context, 0)
    return Flops(
        config.depth * dense + ends + linear(context + entering, config.token_dim, size),
        needed + ends + linear(clean + entering, config.token_dim, size),
    )


def _of_next_tokens(config: ModelConfig, split: SplitFacts, form: Form) -> Flops:
    """`image_flops` where each token's output asks for the next: all rows are read."""
    condition, clean = config.num_condition_tokens, split.num_tokens - 1
    rows = condition + clean
    pairs = condition**2 + condition * clean + clean * (clean + 1) / 2
    ends = linear(clean, config.token_dim, config.hidden_size)
    ends += HeadCost(config).flops(split.num_tokens, form.copies, form.timestep_rows)
    of_block = BlockCost(config).flops
    return Flops(
        config.depth * of_block(rows, rows, rows**2) + ends,
        config.depth * of_block(rows, rows, pairs) + ends,
    )


def known_and_asked(config: ModelConfig, split: SplitFacts) -> Flops:
    """A bidirectional context, forward: everything sees everything, known tokens alone in an encoder."""
    condition, known, asked = config.num_condition_tokens, split.context, split.last
    rows = condition + split.num_tokens
    ends = linear(known, config.token_dim, config.encoder_size) + modulation_flops(config, 1)
    if config.encoder.depth:
        inner, pairs = encoder_config(config), condition**2 + 2 * condition * known + split.context_squared
        ends += inner.depth * BlockCost(inner).flops(condition + known, condition + known, pairs)
        ends += linear(condition + known, inner.hidden_size, config.hidden_size)
    of_block = BlockCost(config).flops
    dense = (config.depth - 1) * of_block(rows, rows, rows**2)
    return Flops(
        dense + of_block(rows, rows, rows**2) + ends,
        dense + of_block(rows, asked, rows * asked) + ends,
    )


def _clean_rows(split: SplitFacts, form: Form) -> tuple[float, float, float]:
    """Clean copies: those that the image itself needs, those in the sequence, and the square of the latter.
    What follows the image, as text may, sees all of it."""
    if not form.clean_copies:
        return 0, 0, 0
    if form.text_tokens:
        return split.num_tokens, split.num_tokens, split.num_tokens**2
    return split.num_tokens - split.last, split.context, split.context_squared


def forward_flops(
    config: ModelConfig, sizes: Sequence[int], copies: int = 1, text_tokens: float = 0
) -> Flops:
    """One image's training sequence, forward, for AR step sizes `sizes` and `copies` noised copies."""
    return image_flops(config, split_facts(sizes), Form(copies, text_tokens, per_token=config.per_token))


def train_step_flops(
    config: ModelConfig, sizes: Sequence[int], batch_size: int, copies: int = 1, text_tokens: float = 0
) -> Flops:
    """Forward and backward of a batch that shares its split."""
    return forward_flops(config, sizes, copies, text_tokens) * (3 * batch_size)


def expected_train_flops(config: RunConfig, images_together: int, text_tokens: float = 0) -> Flops:
    """Forward and backward of an image, expected over the run's plans; `images_together` in a micro-batch.
    Frozen weights have no gradient; a frozen text that nothing reads has no backward pass."""
    split = expected_facts(config.model.num_tokens, config.factorization, images_together)
    form, model = form_of(config, text_tokens), config.model
    whole = image_flops(model, split, form) * 3
    if config.train.trainable != "images":
        return whole
    rows = [model.num_condition_tokens + text_tokens] * 2
    if not model.own_image_weights:
        clean, context, _ = _clean_rows(split, form)
        rows = [rows[0] + form.rows_per_token * split.num_tokens + more for more in (context, clean)]
    spared = 1 if form.reads_text or not model.own_image_weights else 2
    dense, needed = (model.depth * BlockCost(model).flops(n, n, 0) * spared for n in rows)
    return whole + Flops(-dense, -needed)
