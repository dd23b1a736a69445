"""Counting arithmetic: floating-point operations of generation. Terms as in `arithmetic`."""

from __future__ import annotations

from collections.abc import Sequence

from causalfusion.config import ModelConfig
from causalfusion.model.arithmetic import Flops, known_and_asked, level_flops, linear, modulation_flops
from causalfusion.model.block_cost import BlockCost, image_cost
from causalfusion.model.head_cost import HeadCost
from causalfusion.model.split_facts import SplitFacts


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
    size, condition = config.image_size, config.num_condition_tokens + text_tokens
    rows = 2 if guided else 1
    doubled = guided_steps or diffusion_steps
    text_pairs = config.num_condition_tokens * text_tokens + text_tokens * (text_tokens + 1) / 2
    total = (
        _context(BlockCost(config), condition, condition**2, config.num_condition_tokens**2 + text_pairs)
        * rows
    )
    total += Flops(*[linear(text_tokens, config.hidden_size, config.vocab_size) * rows] * 2)
    if config.per_token:
        return _per_token_generation(config, sizes, diffusion_steps, guided, doubled, total)
    start = 0
    for index, (tokens, steps) in enumerate(zip(sizes, diffusion_steps, strict=True)):
        pairs = tokens * (condition + start + tokens)
        ends = linear(tokens, config.token_dim, size)
        appended = ends + modulation_flops(config, 1)
        step = config.depth * image_cost(config).flops(tokens, tokens, pairs) + ends + level_flops(config, 1)
        step += linear(tokens, size, config.prediction_dim)
        total += Flops(step, step) * (steps + (doubled[index] if guided else 0))
        if index + 1 < len(sizes):
            total += (_context(image_cost(config), tokens, pairs, pairs) + Flops(appended, appended)) * rows
        start += tokens
    return total


def _context(block: BlockCost, tokens: float, dense_pairs: float, pairs: float) -> Flops:
    """A pass that only fills the cache: nobody reads the last layer but its keys and values."""
    config = block.config
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
    block, head = image_cost(config), HeadCost(config)
    total = Flops(0, 0) if bidirectional else prefill
    if not asks:  # what the class tokens give is read
        one = config.depth * block.flops(condition, condition, condition**2)
        total = Flops(one, one) * rows
    for index, (tokens, steps) in enumerate(zip(sizes, diffusion_steps, strict=True)):
        in_all = steps + (guided_steps[index] if guided else 0)
        of_head = in_all * head.step_flops(tokens) + rows * head.condition_flops(tokens)
        total += Flops(of_head, of_head)
        entering = linear(tokens, config.token_dim, config.image_size) + modulation_flops(config, 1)
        pairs = tokens * (condition + known + tokens)
        if bidirectional:
            facts = SplitFacts(sum(sizes), sum(sizes) - known, 0, known, known**2)
            total += known_and_asked(config, facts) * rows
        elif asks:
            asking = config.depth * block.flops(tokens, tokens, pairs) + modulation_flops(config, 1)
            total += Flops(asking, asking) * rows
        if not bidirectional and index + 1 < len(sizes):
            if asks:
                total += (_context(block, tokens, pairs, pairs) + Flops(entering, entering)) * rows
            else:
                appended = config.depth * block.flops(tokens, tokens, pairs) + entering
                total += Flops(appended, appended) * rows
        known += tokens
    return total
