"""Settings of alignment: a layer of the model is drawn to the features of a frozen encoder (2410.06940)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from causalfusion.errors import check, check_values


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    encoder: str = ""
    """Frozen encoder whose features of the clean images the model's noised tokens are aligned with:
    transformers:ID (a vision model's folder or hub id), resnet-cifar:FILE, or model:RUN[:LAYER]. Empty: no
    alignment."""
    layer: int = 0
    """Layer whose output is aligned, from 1; 0: a third of the way (8 of 24, as in REPA)."""
    coefficient: float = 0.5
    """Weight of 1 - cosine similarity in the loss."""
    width: int = 0
    """Width of the projector, an MLP of three layers between the model's tokens and the features, which is
    trained with the model and left out of it; 0: twice that of the model (REPA's code: 2048)."""
    cache: str = ""
    """Folder that keeps the features, memory-mapped, so that the encoder sees each image once (twice with
    data.flip): 2 bytes for each feature of each token. Empty: the encoder runs in every train step."""
    encoder_hash: Annotated[str, Parameter(parse=False)] = ""
    """Hash of the encoder, filled in when a run begins."""
    feature_dim: Annotated[int, Parameter(parse=False)] = 0
    """Number of its features, filled in when a run begins."""

    def __post_init__(self) -> None:
        check_values(self, "align")
        check(0 <= self.layer <= 4096, "align.layer", self.layer, "the number of a layer, from 1, or 0")
        check(self.coefficient > 0, "align.coefficient", self.coefficient, "a positive number")
        check(0 <= self.width <= 65536, "align.width", self.width, "0 to 65536")
        check(self.feature_dim >= 0, "align.feature_dim", self.feature_dim, "0 or more")

    def layer_of(self, depth: int) -> int:
        """The layer that is aligned, in a model of this depth."""
        return self.layer or max(round(depth / 3), 1)
