from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from causalfusion.config import SampleConfig
from causalfusion.evaluate.figure import MeasureName

app = App(name="evaluate", result_action="return_value")


@app.default
def evaluate(
    *,
    model: Path | None = None,
    samples: str | None = None,
    reference: str | None = None,
    features: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    measures: Annotated[list[MeasureName] | None, Parameter(consume_multiple=True)] = None,
    images: int | None = None,
    out: Path = Path("evaluation"),
    preset: str | None = None,
    classes: Annotated[list[str], Parameter(consume_multiple=True)] = [],  # noqa: B006
    classes_file: Path | None = None,
    prompts_file: Path | None = None,
    candidates: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    weights: Literal["ema", "raw"] = "ema",
    image_size: int = 0,
    reference_images: int | None = None,
    cache: Path | None = None,
    num_workers: int = 0,
    precision: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
    config: Annotated[list[str], Parameter(consume_multiple=False)] = [],  # noqa: B006
    settings: Annotated[SampleConfig, Parameter(name="*", consume_multiple=True)] = SampleConfig(),  # noqa: B008
) -> int:
    """Measure a model, or images: samples, figures, and a result card with all that they depend on.

    Samples are kept in OUT/samples: the same command goes on where it was interrupted, with a larger --images
    it adds to them. Image i depends on the seed and i alone; any number of processes (`torchrun`) share the
    work. `causalfusion compare` sets cards side by side.

    The names of figures carry N: in Inception's features fid_50k, is_50k, ...; in others frechet_pixels8_10k.

    Parameters
    ----------
    model
        A model folder, a training run (its last checkpoint), or the name of a packaged model (the default:
        shapes).
    samples
        Measure these images instead: a sample set, the folder of `sample`, a folder of images, an .npz
        (images in arr_0, labels in arr_1).
    reference
        What to compare with: digits, shapes[:SPLIT], a folder of images, shards ('*.tar'), .jsonl, an .npz
        of images, or an .npz of statistics (mu, sigma). Its features are kept in the cache.
    features
        One or several of: pixels, pixels:8, digits, resnet-cifar:PATH, resnet-cifar-jpeg:PATH,
        inception[:PATH], transformers:ID, module:attribute. Default: digits where the reference is digits,
        else pixels:8.
    measures
        Default: all that the reference and the features allow.
    images
        N. Default: 10,000 generated ones, or all that there are to be read.
    out
        Folder for `card.json`, `grid.png` and the samples.
    preset
        A named evaluation, beneath the other options: paper-ablation, paper-system, paper-text. A model's own
        settings then do not count.
    classes
        By number or name; image i gets classes[i % how many]. Default: balanced, all in turn.
    classes_file
        UTF-8 file with a class on each line, instead.
    prompts_file
        UTF-8 file with a prompt on each line; image i gets prompt i % how many.
    candidates
        Images drawn for each prompt: the one is kept for which the model itself finds it likeliest.
    batch_size
        Images generated, or taken to features, together.
    image_size
        Crop and scale images that are read (--samples) to this side.
    reference_images
        Compare with so many images of the reference, drawn once and for all. Default: all.
    cache
        Folder for the features of references. Default: ~/.cache/causalfusion (XDG_CACHE_HOME).
    num_workers
        Processes that read images.
    config
        A TOML file with these settings; the command line comes on top.
    """
    from causalfusion.evaluate.request import EvaluateRequest
    from causalfusion.evaluate.run import evaluate as run_evaluation
    from causalfusion.evaluate.show import show_card

    request = EvaluateRequest(
        model=model, samples=samples, reference=reference, features=features, measures=measures,
        images=images, out=out, classes=classes, classes_file=classes_file,
        prompts_file=prompts_file, candidates=candidates, batch_size=batch_size, seed=seed, weights=weights,
        image_size=image_size, reference_images=reference_images, cache=cache, num_workers=num_workers,
        precision=precision, device=device, preset=preset, settings=settings,
    )  # fmt: skip
    card = run_evaluation(request)
    if card is not None:
        show_card(card, out)
    return 0
