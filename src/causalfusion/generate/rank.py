"""The model as its own judge: of several images for a prompt, the one that it would sooner caption so.

One model knows both directions, p(image | text) and p(text | image); the second tells a good draw from a bad
one.

Shape letters: B images, C, H, W channels and pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from causalfusion.config import SampleConfig
from causalfusion.documents import NO_TARGET, Image, Text, lay_out, pack_context
from causalfusion.errors import UserError
from causalfusion.factorization import grid_tensor
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.prompts import prompt_ids
from causalfusion.generate.tokens import Watcher
from causalfusion.losses import text_cross_entropy
from causalfusion.machine.runtime import autocast
from causalfusion.rng import derive_seed


@torch.no_grad()
def caption_log_likelihoods(pipeline: Pipeline, images: Tensor, captions: Sequence[str]) -> Tensor:
    """(B,) log p(caption | image), in nats, of images (B, C, H, W) in [-1, 1] each with its caption."""
    tokenizer, model = pipeline.describing(), pipeline.model
    tokens = pipeline.codec.encode_tokens(images.to(pipeline.device), None)
    documents = [
        [Image(row), Text(prompt_ids(caption, tokenizer, model.config))]
        for row, caption in enumerate(captions)
    ]
    layout = lay_out(documents, tokenizer.markers, [1] * len(documents)).to(pipeline.device)
    sequence = pack_context(
        layout,
        pipeline.null_labels(len(documents)),
        model.config.num_condition_tokens,
        tokens,
        pipeline.codec.grid_width,
        pipeline.spec.text.image_context,
        grid_tensor(model.config, pipeline.grid, pipeline.device),
    )
    with autocast(pipeline.device, pipeline.autocast_dtype):
        logits = model(sequence).text
    # Given that there is a caption: how likely one comes after the image is not its matter.
    targets = layout.text_targets.masked_fill(layout.text_targets == tokenizer.markers.text, NO_TARGET)
    return -text_cross_entropy(logits, targets, NO_TARGET).sum(1).cpu()


def generate_best(
    pipeline: Pipeline,
    labels: Sequence[int] | None,
    prompts: Sequence[str] | None,
    config: SampleConfig,
    candidates: int,
    *,
    seed: int = 0,
    image_indices: Sequence[int] | None = None,
    watch: Watcher | None = None,
) -> Tensor:
    """Images (B, C, H, W), of each prompt the likeliest of `candidates` draws. The first draw is what one
    candidate alone would be; image i still depends on (seed, image_indices[i]) alone."""
    if candidates < 1 or (candidates > 1 and prompts is None):
        expected = "1 where there are no prompts" if candidates > 1 else "at least 1"
        raise UserError(f"candidates is {candidates}; expected {expected}")

    def draw(seed: int) -> Tensor:
        return pipeline.generate(
            labels, config, prompts=prompts, image_indices=image_indices, watch=watch, seed=seed
        )

    return best_of(draw, pipeline, prompts or (), candidates, seed)


def best_of(
    draw: Callable[[int], Tensor], pipeline: Pipeline, captions: Sequence[str], candidates: int, seed: int
) -> Tensor:
    """The best of `candidates` draws of images (B, C, H, W): of each image, the one of likeliest caption.

    `draw` takes a seed: the first draw that of the run, the others ones derived from it. Raises UserError,
    before anything is drawn, for captions that the model cannot judge.
    """
    if candidates == 1:
        return draw(seed)
    check_judged(pipeline, captions)
    best = draw(seed)
    best_scores = caption_log_likelihoods(pipeline, best, captions)
    for candidate in range(1, candidates):
        images = draw(derive_seed(seed, "candidate", candidate))
        scores = caption_log_likelihoods(pipeline, images, captions)
        better = scores > best_scores
        best = torch.where(better.to(images.device)[:, None, None, None], images, best)
        best_scores = torch.where(better, scores, best_scores)
    return best


def check_judged(pipeline: Pipeline, captions: Sequence[str]) -> None:
    """Refuse captions for which the model has no room behind an image."""
    tokenizer, model = pipeline.describing(), pipeline.model.config
    room = model.max_text_tokens - 4  # the markers of the image and of the text
    for caption in captions:
        count = len(prompt_ids(caption, tokenizer, model))
        if count > room:
            raise UserError(
                f"the prompt has {count} tokens; to judge candidates, the model has room for {room} behind "
                f"an image: shorten it ({caption[:40]!r}...), or give candidates 1"
            )
