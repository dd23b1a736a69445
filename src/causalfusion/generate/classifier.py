"""A model that was fine-tuned to tell the classes of images.

Shape letters: B images, C, H, W channels and pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from causalfusion.errors import UserError
from causalfusion.generate.features import reading_of
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.runtime import autocast
from causalfusion.model.layers import readable
from causalfusion.model.projector import add_classifier, is_of_classifier
from causalfusion.saved.folder import CLASSIFIER_FILE, latest_model
from causalfusion.weight_files import read_weights


@dataclass(frozen=True)
class Classifier:
    """A pipeline whose model has a classifier beside it, and does nothing else."""

    pipeline: Pipeline

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: torch.device | None = None,
        autocast_dtype: torch.dtype = torch.float32,
        autoencoder: str = "",
    ) -> Classifier:
        """The classifier in a model folder, or in the last checkpoint of a run, with the averaged weights.
        Raises UserError for a model without one."""
        folder = latest_model(Path(model))
        file = folder / CLASSIFIER_FILE
        if not file.is_file():
            raise UserError(
                f"{folder} has no {CLASSIFIER_FILE}; expected a model of causalfusion finetune MODEL --task "
                "classify"
            )
        pipeline = Pipeline.load(
            folder,
            device=device or torch.device("cpu"),
            autocast_dtype=autocast_dtype,
            autoencoder=autoencoder,
        )
        transformer, weights = pipeline.model, read_weights(file)
        named, count = len(pipeline.spec.class_names), transformer.config.num_classes
        if named != count:
            raise UserError(
                f"{folder / 'config.json'} names {named} classes, the model has {count}; it is damaged"
            )
        add_classifier(transformer, transformer.config.num_classes)
        expected = {n: v.shape for n, v in transformer.state_dict().items() if is_of_classifier(n)}
        if expected != {name: value.shape for name, value in weights.items()}:
            raise UserError(f"{file} does not belong to {folder}, or is damaged; copy the folder as a whole")
        transformer.load_state_dict(weights, strict=False)
        transformer.to(pipeline.device).eval()
        return cls(pipeline)

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of their numbers."""
        return self.pipeline.spec.class_names

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """(B, K) float32, on the CPU, of images (B, C, H, W) in [-1, 1] of the model's size."""
        pipeline = self.pipeline
        with autocast(pipeline.device, pipeline.autocast_dtype):
            tokens = pipeline.codec.encode_tokens(images.to(pipeline.device), None)
            reading = reading_of(pipeline)
            sequence = reading.sequence(tokens, reading.plan(len(tokens), tokens.device))
            classes = pipeline.model(readable(sequence)).classes
        assert classes is not None, "the model has a classifier"
        return classes.float().softmax(1).cpu()
