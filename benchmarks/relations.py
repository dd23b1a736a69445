"""`python -m benchmarks.relations MODEL ...`: what captions of two objects say of
places, and how much of it is true.

Captions are sampled from the model's own probabilities, as the likeliest one rarely states a relation. Of
those that name both objects correctly, it counts relations that stand before the second object is named ("a
red ring above a blue star"), relations behind it ("... with a blue star below it"), and places in the image
("in the top left"), with the share of relations that guessing would have, and of places at which *any* of the
two objects lies. A model that knows where objects are, and not which is where, has many of the last and is at
chance in the rest. A run's folder stands for all of its checkpoints.

    python -m benchmarks.relations shapes --count 600
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tables import table
from causalfusion.config import WriteConfig
from causalfusion.data.drawing import SceneObject
from causalfusion.data.scene_captions import RELATION_WORDS, Description, is_at, is_related, parse_caption
from causalfusion.data.shapes import Shapes
from causalfusion.evaluate.text_image import measure_caption_truth
from causalfusion.generate.pipeline import Pipeline
from causalfusion.saved.folder import checkpoints_of

KINDS = {
    "before": "before the second object",
    "behind": "behind it",
    "place": "places",
    "any": "of any object",
}


def named(description: Description, figures: Sequence[SceneObject]) -> list[SceneObject] | None:
    """The figures in the order in which the description names them; None if one of them is another."""
    by_name = {(figure.color, figure.shape): figure for figure in figures}
    found = [by_name.get((one.color, one.shape)) for one in description.objects]
    right = [figure for figure in found if figure is not None]
    return right if len(right) == len(figures) else None


def counted(captions: Sequence[str], data: Shapes) -> tuple[Counter[str], Counter[str], float]:
    """(How many are stated of each kind, how many are true, the share of relations that guessing has)."""
    stated, true, chances = Counter[str](), Counter[str](), list[float]()
    for index, caption in enumerate(captions):
        description = parse_caption(caption)
        figures = data.scene(index).figures
        order = None if description is None else named(description, figures)
        if description is None or order is None:
            continue
        for first, relation, second in description.relations:
            kind = "behind" if first > second else "before"
            stated[kind] += 1
            true[kind] += is_related(order[first], relation, order[second])
            all_four = [is_related(order[first], other, order[second]) for other in RELATION_WORDS]
            chances.append(sum(all_four) / len(all_four))
        for first, place in description.places:
            stated["place"] += 1
            true["place"] += is_at(order[first], place)
            stated["any"] += 1
            true["any"] += any(is_at(figure, place) for figure in figures)
    return stated, true, sum(chances) / max(len(chances), 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.relations", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("models", nargs="+")
    parser.add_argument("--count", type=int, default=600, help="scenes of two objects of the split `test`")
    arguments = parser.parse_args()
    rows, write = [], WriteConfig(text_temperature=1.0)
    for name in arguments.models:
        for model in checkpoints_of(Path(name)) or [Path(name)]:
            pipeline = Pipeline.load(str(model))
            data = Shapes("test", side=pipeline.codec.config.image_height, num_objects=2)
            _, captions = measure_caption_truth(pipeline, data, arguments.count, write)
            stated, true, chance = counted(captions, data)
            cells = [f"{true[k]} of {stated[k]}, {true[k] / max(stated[k], 1):.0%}" for k in KINDS]
            rows.append([str(model), *cells, f"{chance:.0%}"])
    print(*table(["model", *KINDS.values(), "relations guessed"], rows), sep="\n")


if __name__ == "__main__":
    main()
