"""Counting arithmetic: floating-point operations of training steps and of generation.

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
from causalfusion.model.block_cost import BlockCost
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
    )


def _linear(rows: float, inputs: float, outputs: float) -> float:
    return 2 * rows * inputs * outputs


def _levels(config: ModelConfig, rows: int, others: int = 0) -> float:
    """Embedding `rows` noise levels; with AdaLN-zero also a modulation of each of them, and of `others`."""
    inner = config.condition_size
    embedding = _linear(rows, TIMESTEP_FREQUENCIES, inner) + _linear(rows, inner, inner)
    return embedding + _modulations(config, rows + others)


def _modulations(config: ModelConfig, rows: float) -> float:
    """With AdaLN-zero, the modulations of `rows` different conditions."""
    size, inner, rank = config.hidden_size, config.condition_size, config.adaln_rank
    if config.conditioning == "in_context":
        return 0
    if not rank:
        return _linear(rows, inner, (6 * config.depth + 2) * size)
    return config.depth * (_linear(rows, inner, rank) + _linear(rows, rank, 6 * size)) + _linear(
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
        return _known_and_asked(config, split) + Flops(of_head, of_head)
    if config.head.ask == "previous":
        return _of_next_tokens(config, split, form)
    size, text, noised = config.hidden_size, form.text_tokens, form.rows_per_token * split.num_tokens
    clean, context, context_squared = _clean_rows(split, form)
    pairs = visible_pairs(config, split, form)
    ends = _linear(text, size, config.vocab_size)
    if form.per_token:
        ends += HeadCost(config).flops(split.num_tokens, form.copies, form.timestep_rows)
        ends += _modulations(config, 2 if context else 1)
    else:
        ends += _linear(noised, size, config.prediction_dim)
        ends += _levels(config, form.timestep_rows, others=1 if context else 0)
    entering = 0 if form.per_token else noised
    others = config.num_condition_tokens + text + noised
    length_squared = others**2 + 2 * others * context + context_squared
    length, needed_length = others + context, others + clean
    dense = config.depth * BlockCost(config).flops(length, length, length_squared)
    needed = (config.depth - 1) * BlockCost(config).flops(needed_length, needed_length, pairs.all)
    needed += BlockCost(config).flops(needed_length, text + noised, pairs.text + pairs.noised)
    return Flops(
        dense + ends + _linear(context + entering, config.token_dim, size),
        needed + ends + _linear(clean + entering, config.token_dim, size),
    )


def _of_next_tokens(config: ModelConfig, split: SplitFacts, form: Form) -> Flops:
    """`image_flops` where each token's output asks for the next: all rows are read."""
    condition, clean = config.num_condition_tokens, split.num_tokens - 1
    rows = condition + clean
    pairs = condition**2 + condition * clean + clean * (clean + 1) / 2
    ends = _linear(clean, config.token_dim, config.hidden_size)
    ends += HeadCost(config).flops(split.num_tokens, form.copies, form.timestep_rows)
    of_block = BlockCost(config).flops
    return Flops(
        config.depth * of_block(rows, rows, rows**2) + ends,
        config.depth * of_block(rows, rows, pairs) + ends,
    )


def _known_and_asked(config: ModelConfig, split: SplitFacts) -> Flops:
    """A bidirectional context, forward: everything sees everything, known tokens alone in an encoder."""
    condition, known, asked = config.num_condition_tokens, split.context, split.last
    rows = condition + split.num_tokens
    ends = _linear(known, config.token_dim, config.encoder_size) + _modulations(config, 1)
    if config.encoder.depth:
        inner, pairs = encoder_config(config), condition**2 + 2 * condition * known + split.context_squared
        ends += inner.depth * BlockCost(inner).flops(condition + known, condition + known, pairs)
        ends += _linear(condition + known, inner.hidden_size, config.hidden_size)
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
    """Forward and backward of an image, expected over the run's plans; `images_together` in a micro-batch."""
    split = expected_facts(config.model.num_tokens, config.factorization, images_together)
    return image_flops(config.model, split, form_of(config, text_tokens)) * 3


def generation_flops(
    config: ModelConfig,
    sizes: Sequence[int],
    diffusion_steps: Sequence[int],
    guided: bool,
    *,
    guided_steps: Sequence[int] | None = None,
    text_tokens: int = 0,
) -> Flops:
    """One image: the prefill, every diffusion step of every AR step, and the appends. `guided_steps` are the
    diffusion steps of each AR step that guidance acts in, by default all."""
    size, condition = config.hidden_size, config.num_condition_tokens + text_tokens
    rows = 2 if guided else 1
    doubled = guided_steps or diffusion_steps
    text_pairs = config.num_condition_tokens * text_tokens + text_tokens * (text_tokens + 1) / 2
    total = _context(config, condition, condition**2, config.num_condition_tokens**2 + text_pairs) * rows
    total += Flops(*[_linear(text_tokens, size, config.vocab_size) * rows] * 2)
    if config.per_token:
        return _per_token_generation(config, sizes, diffusion_steps, guided, doubled, total)
    start = 0
    for index, (tokens, steps) in enumerate(zip(sizes, diffusion_steps, strict=True)):
        pairs = tokens * (condition + start + tokens)
        ends = _linear(tokens, config.token_dim, size)
        appended = ends + _modulations(config, 1)
        step = config.depth * BlockCost(config).flops(tokens, tokens, pairs) + ends + _levels(config, 1)
        step += _linear(tokens, size, config.prediction_dim)
        total += Flops(step, step) * (steps + (doubled[index] if guided else 0))
        if index + 1 < len(sizes):
            total += (_context(config, tokens, pairs, pairs) + Flops(appended, appended)) * rows
        start += tokens
    return total


def _context(config: ModelConfig, tokens: float, dense_pairs: float, pairs: float) -> Flops:
    """A pass that only fills the cache: nobody reads the last layer but its keys and values."""
    block = BlockCost(config)
    needed = (config.depth - 1) * block.flops(tokens, tokens, pairs) + block.flops(tokens, 0, 0)
    return Flops(config.depth * block.flops(tokens, tokens, dense_pairs), needed)


def _per_token_generation(
    config: ModelConfig,
    sizes: Sequence[int],
    diffusion_steps: Sequence[int],
    guided: bool,
    guided_steps: Sequence[int],
    prefill: Flops,
) -> Flops:
    """The transformer once for each AR step, the head in each diffusion step."""
    condition, rows, known = config.num_condition_tokens, 2 if guided else 1, 0
    bidirectional, asks = config.context == "bidirectional", config.head.ask == "mask"
    block, head = BlockCost(config), HeadCost(config)
    total = Flops(0, 0) if bidirectional else prefill
    if not asks:  # what the class tokens give is read
        one = config.depth * block.flops(condition, condition, condition**2)
        total = Flops(one, one) * rows
    for index, (tokens, steps) in enumerate(zip(sizes, diffusion_steps, strict=True)):
        in_all = steps + (guided_steps[index] if guided else 0)
        of_head = in_all * head.step_flops(tokens) + rows * head.condition_flops(tokens)
        total += Flops(of_head, of_head)
        entering = _linear(tokens, config.token_dim, config.hidden_size) + _modulations(config, 1)
        pairs = tokens * (condition + known + tokens)
        if bidirectional:
            facts = SplitFacts(sum(sizes), sum(sizes) - known, 0, known, known**2)
            total += _known_and_asked(config, facts) * rows
        elif asks:
            asking = config.depth * block.flops(tokens, tokens, pairs) + _modulations(config, 1)
            total += Flops(asking, asking) * rows
        if not bidirectional and index + 1 < len(sizes):
            if asks:
                total += (_context(config, tokens, pairs, pairs) + Flops(entering, entering)) * rows
            else:
                appended = config.depth * block.flops(tokens, tokens, pairs) + entering
                total += Flops(appended, appended) * rows
        known += tokens
    return total
