"""Settings of fine-tuning: what a model that goes on with new data is trained for, and what of it learns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from causalfusion.errors import check, check_values

TaskName = Literal["generate", "classify", "caption"]
AdapterKind = Literal["none", "lora", "text-inversion"]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    adapter: AdapterKind = "lora"
    """lora: only low-rank additions to the blocks' linear layers learn, and are saved as an adapter of the
    model, too; text-inversion: only the embedding of one new word, saved likewise; none: all weights."""
    rank: int = 8
    """lora: rank of each addition."""
    alpha: float = 0.0
    """lora: additions are scaled by alpha / rank; 0: by 1."""
    word: str = ""
    """text-inversion: the new word, such as `<heart>`, as the captions of the data have it."""
    like: str = ""
    """text-inversion: known words, whose mean the new one begins as. Empty: the mean of all words."""
    keep_classes: bool = True
    """Keep the classes of the model that the data lack; --no-keep-classes: those of the data are all."""
    prior_preservation: float = 0.0
    """Share of the training images that are the model's own, drawn once at the beginning, from its own
    classes or captions, against forgetting; 0: none."""
    prior_images: int = 200
    """prior_preservation: most images that are drawn; where more are needed, each is used several times."""
    prior_prompts: str = ""
    """prior_preservation: a text file with a prompt on each line for these images. Empty: captions that the
    model writes itself."""
    caption_images: int = 500
    """task caption: most held-out images that are described at the end, for the figures of the captions; 0:
    none."""
    task: Annotated[TaskName, Parameter(parse=False)] = "generate"
    """What the model is trained for."""
    base: Annotated[str, Parameter(parse=False)] = ""
    """The model that the run goes on from; empty: no fine-tuning. Filled in when a run begins, as are the
    next."""
    fingerprint: Annotated[str, Parameter(parse=False)] = ""
    """Hash of the model's weights, where an adapter is trained."""
    classes: Annotated[list[str], Parameter(parse=False)] = field(default_factory=list)
    """The model's classes."""
    new_classes: Annotated[list[str], Parameter(parse=False)] = field(default_factory=list)
    """Classes of the data that the model does not have."""

    def __post_init__(self) -> None:
        check_values(self, "finetune")
        check(1 <= self.rank <= 65_536, "--rank", self.rank, "1 to 65536")
        check(self.alpha >= 0, "--alpha", self.alpha, "0 or a positive number")
        inverts = self.adapter == "text-inversion"
        fits = bool(self.word) == inverts
        expected = "a word, such as '<heart>'" if inverts else "none, without --adapter text-inversion"
        check(fits, "--word", self.word, expected)
        check(not set(self.word) & set(" \t\r\n"), "--word", self.word, "a word without spaces")
        check(inverts or not self.like, "--like", self.like, "none, without --adapter text-inversion")
        fits = self.keep_classes or self.adapter == "none"
        check(fits, "--keep-classes", "false", "true, without --adapter none: adapters only add classes")
        share = self.prior_preservation
        check(0 <= share < 1, "--prior-preservation", share, "a share in [0, 1)")
        check(1 <= self.prior_images <= 1_000_000, "--prior-images", self.prior_images, "1 to 1000000")
        check(self.caption_images >= 0, "--caption-images", self.caption_images, "0 or a number of images")
        fits = bool(share) or not self.prior_prompts
        check(fits, "--prior-prompts", self.prior_prompts, "none, without --prior-preservation")

    @property
    def trained(self) -> AdapterKind:
        """The adapter that a run trains; none for a run that is no fine-tuning."""
        return self.adapter if self.base else "none"


Finetune = Annotated[FinetuneConfig, Parameter(parse=False)]
"""The settings in those of a run, which the command `finetune` fills in, not an option of `train`."""
