"""The length of each variant's training: as many images as the first variant has, or as much arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from causalfusion.config import RunConfig
from causalfusion.config.recipes import DataFacts
from causalfusion.errors import UserError
from causalfusion.estimate.planned import plan_run
from causalfusion.model.arithmetic import expected_train_flops
from causalfusion.study.recipe import Study


def shares_of(study: Study, configs: Mapping[str, RunConfig], facts: DataFacts) -> dict[str, float]:
    """The share of its images that each variant is trained on; `configs` are the settings by variant, the
    first of them the measure of the others, and `facts` stand in for data that are not there."""
    shares = {variant.name: variant.share for variant in study.variants}
    if study.equal == "images":
        return shares
    arithmetic = {name: _training_arithmetic(config, facts) for name, config in configs.items()}
    first = arithmetic[study.variants[0].name]
    return {name: share * first / arithmetic[name] for name, share in shares.items()}


def shortened(config: RunConfig, share: float) -> RunConfig:
    """The same training on this share of the images, in whole batches; warm-up and schedule go with it.
    Raises UserError for a training whose length is in epochs."""
    if share == 1:
        return config
    require_images(config, "unequal shares of the training")
    batch = config.train.batch_size
    images = max(round(config.train.images * share / batch), 1) * batch
    warmup = round(config.train.warmup_images * images / config.train.images)
    return replace(config, train=replace(config.train, images=images, warmup_images=warmup))


def require_images(config: RunConfig, what: str) -> None:
    """Raise UserError for a training whose length is in epochs, in a study with `what`."""
    if config.train.epochs:
        raise UserError(
            f"train.epochs is {config.train.epochs:g} in a study with {what}; expected train.images"
        )


def _training_arithmetic(config: RunConfig, facts: DataFacts) -> float:
    """Needed FLOPs of the whole training, forward and backward."""
    planned = plan_run(config, facts=facts)
    flops = expected_train_flops(planned.config, config.train.batch_size, planned.text_tokens)
    return flops.needed * config.train.images
