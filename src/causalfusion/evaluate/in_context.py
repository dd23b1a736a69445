"""In-context learning on `in_context`: a query's image after none, one, two, ... examples of its rule, read
and judged by the oracle in `measures.scenes`.

Shape letters: B images, H, W pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.data.drawing import Scene
from causalfusion.data.in_context import NEAR, Episode, InContext, Rule, Shot
from causalfusion.errors import check
from causalfusion.evaluate.measures.scenes import read_scene
from causalfusion.generate.layout import batches_of
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.read import to_float

Figures = dict[str, dict[str, float]]
"""Shares by number of examples, and by kind of rule in it: `right` and `rule` as in `Judgement`."""
_DETERMINED = {
    "recolor": "color", "color word": "color", "reshape": "shape", "shape word": "shape", "resize": "size",
    "move": "place", "mirror": "place",
}  # fmt: skip
"""The respect in which a rule determines a figure."""


@dataclass(frozen=True)
class Judgement:
    """How well an image answers a query."""

    right: bool
    """It shows the one figure that is asked for, in each respect."""
    rule: bool
    """It shows one figure, right in the respect that the rule determines: what was inferred, without slips
    in drawing the rest."""


def judge(rule: Rule, query: Shot, scene: Scene) -> Judgement:
    """Judge the scene of an image that answers a query. After a caption, which says none, any place is
    right."""
    if len(scene.figures) != 1:
        return Judgement(right=False, rule=False)
    (found,), wanted = scene.figures, query.answer
    near = max(abs(found.x - wanted.x), abs(found.y - wanted.y)) <= NEAR
    respects = {
        "color": found.color == wanted.color,
        "shape": found.shape == wanted.shape,
        "size": found.size == wanted.size,
        "place": near or query.given is None,
    }
    return Judgement(all(respects.values()), respects[_DETERMINED[rule.kind]])


def accuracy(rules: Sequence[Rule], judgements: Sequence[Judgement]) -> dict[str, float]:
    """The shares of right answers: `right` and `rule` of all, and of each kind of rule, as `move right`."""
    of_kind = defaultdict[str, list[Judgement]](list)
    for rule, judgement in zip(rules, judgements, strict=True):
        of_kind[""].append(judgement)
        of_kind[f"{rule.kind} "].append(judgement)
    return {
        f"{kind}{name}": sum(getattr(j, name) for j in found) / len(found)
        for kind, found in sorted(of_kind.items())
        for name in ("right", "rule")
    }


def measure_in_context(
    pipeline: Pipeline,
    data: InContext,
    count: int,
    sample: SampleConfig,
    *,
    borrowed: bool = False,
    seed: int = 0,
    batch_size: int = 100,
    progress: Callable[[int], None] | None = None,
) -> tuple[Figures, list[np.ndarray]]:
    """Draw the answers to the queries of `count` documents, each after 0 to `data.examples` of its examples,
    with the same noise. Returns (the shares by number of examples, the images (count, H, W, 3) uint8 for each
    number). Raises UserError for a model without room for that many.

    `borrowed`: for comparison, the examples are those of the next document, which has another rule: what then
    still comes out right does not come from the examples.
    """
    check(count >= 1, "count", count, "at least 1")
    episodes = [data.episode(index) for index in range(count)]
    figures, drawn = Figures(), list[np.ndarray]()
    for examples in range(data.examples + 1):
        parts = []
        for batch in batches_of(count, batch_size):
            prompts = [
                prompt_of(data, episodes[i], episodes[(i + borrowed) % count].shots[:examples]) for i in batch
            ]
            images = pipeline.draw_next(prompts, sample, seed=seed, image_indices=batch)
            parts.append(pipeline.codec.to_uint8(images))
            if progress is not None:
                progress(examples * count + batch[-1] + 1)
        drawn.append(np.concatenate(parts))
        found = [
            judge(episode.rule, episode.shots[-1], read_scene(image))
            for episode, image in zip(episodes, drawn[-1], strict=True)
        ]
        figures[str(examples)] = accuracy([episode.rule for episode in episodes], found)
    return figures, drawn


def prompt_of(data: InContext, episode: Episode, examples: Sequence[Shot]) -> list[str | Tensor]:
    """A document up to the image that answers an episode's query, after these examples."""
    elements = list[str | np.ndarray]()
    for shot in examples:
        elements += [*data.asked(shot), data.draw(shot.answer)]
    elements += data.asked(episode.shots[-1])
    return [e if isinstance(e, str) else to_float(e[None])[0] for e in elements]
