"""Settings of a training run: frozen dataclasses that validate themselves.

A recipe (TOML) and the command line describe a `RunConfig`. Fields that follow from the data (number of
classes, token grid, image size) are 0 until `train.feed.open_training_data` fills them in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from causalfusion.config.alignment import AlignConfig
from causalfusion.config.classifying import Classify, ClassifyConfig
from causalfusion.config.diffusion import DiffusionConfig
from causalfusion.config.distillation import DistillConfig
from causalfusion.config.factorization import FactorizationConfig
from causalfusion.config.finetuning import Finetune, FinetuneConfig
from causalfusion.config.generation import SampleConfig
from causalfusion.config.model import ModelConfig
from causalfusion.config.sizes import MAX_SIDE, Fit, parse_size, size_text
from causalfusion.config.text import TextConfig
from causalfusion.config.training import TrainConfig
from causalfusion.errors import check, check_values

SourceName = Literal[
    "digits", "shapes", "folder", "webdataset", "jsonl", "npz", "parquet", "datasets", "documents",
    "in_context",
]  # fmt: skip
SplitName = Literal["train", "validation", "test", "compositional"]
TaskName = Literal["pairs", "words", "both"]
MAX_WORKERS = 512


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: SourceName = "digits"
    """Source of the images; `documents` (a .jsonl file of interleaved texts and images, or a folder of such
    files) and `in_context` (few-shot documents that are made up) are sources of documents."""
    path: str = ""
    """Folder, pattern (`shards/*.tar`, `data/train-*.parquet`), .jsonl or .npz file; of shards, .npz and
    parquet files also a URL; of `datasets`, its name on the hub (user/name, user/name@revision), or a folder.
    Not used by `digits`, `shapes` and `in_context`."""
    subset: str = ""
    """Configuration of a data set of the source `datasets`, where it has several."""
    streaming: bool = False
    """Source `datasets`: read the data set once, as a stream, and keep its encoded pictures alone, in the
    user's cache folder; off: it is downloaded as it is, and read where it lies."""
    image_column: str = ""
    """Column of a `parquet` or `datasets` data set with the pictures. Empty: image, img, ..., or the only one
    of bytes."""
    label_column: str = ""
    """Its column with the class, a number or a name. Empty: label, ..., if there is one."""
    caption_column: str = ""
    """Its column with captions, texts or lists of texts. Empty: caption, text, ..., if there is one."""
    image_suffix: str = ""
    """Suffix, such as `png` or `seg.png`, of the images to use in shards whose keys have several images."""
    split: SplitName = "train"
    """Split of `shapes`, `in_context` or `datasets`; `compositional` (shapes): only shape-colour pairs that
    never occur in `train`."""
    object_shares: tuple[float, float, float] = (0.40, 0.35, 0.25)
    """Shares of the scenes of `shapes` with one, two and three objects."""
    task: TaskName = "both"
    """Documents of `in_context`: `pairs` of images, the second of each the first under a transformation that
    nothing names; captions with `words` that mean something in their document alone, each before its image;
    or `both`, half of each."""
    examples: int = 4
    """Examples in a document of `in_context` before its query, which is one more of them."""
    image_size: str | int = 0
    """Size to which images are cropped: the side of a square in pixels, or WIDTHxHEIGHT such as 320x192; 0
    keeps their own size, the same for all. `native`: each keeps its own shape, larger ones scaled down to
    `max_area`, sides cut to whole tokens; `batches` says which of them come together."""
    max_area: int = 65_536
    """image_size = native: most pixels of an image (65536: those of 256x256)."""
    batches: Literal["buckets", "padded", "packed"] = "buckets"
    """image_size = native: batches of images of one grid of tokens; or of any images as they come, each a row
    filled up to the longest one with padding that nothing sees, or several in a row (`packed_tokens`)."""
    packed_tokens: int = 0
    """batches = packed: most image tokens of a row; 0: those of the largest image that `max_area` allows."""
    flip: bool = False
    """Mirror half of the training images, chosen by (seed, epoch, index). Captions are not changed: leave it
    off if they mention left and right."""
    captions: Literal["own", "class_names"] = "own"
    """Captions of the images: those of the data, or the names of their classes."""
    class_words: str = ""
    """captions = class_names: a text file with a line for each class: its name in the data, a space, and the
    words of its caption, such as ImageNet's LOC_synset_mapping.txt. Empty: the names themselves."""
    holdout: float = 0.05
    """Fraction of the images held out of training, to measure the loss on."""
    num_workers: int = 0
    """Worker processes that read and decode images; the order of the data does not depend on it."""
    cache: str = ""
    """Folder written by `causalfusion encode`: train on its latents instead of encoding again."""

    def __post_init__(self) -> None:
        check_values(self, "data")
        self._check_image_size()
        check(0 <= self.holdout < 1, "data.holdout", self.holdout, "a share in [0, 1)")
        in_range = 0 <= self.num_workers <= MAX_WORKERS
        expected = f"0 to {MAX_WORKERS}: at most one for each CPU core helps"
        check(in_range, "data.num_workers", self.num_workers, expected)
        check(1 <= self.max_area <= 2**31, "data.max_area", self.max_area, "1 to 2147483648 pixels")
        mixed = self.batches != "buckets"
        expected = "buckets, where data.image_size is not native: images of one size need no padding"
        check(self.native or not mixed, "data.batches", self.batches, expected)
        in_range = 0 <= self.packed_tokens <= 2**24
        check(in_range, "data.packed_tokens", self.packed_tokens, "0 to 16777216 tokens")
        fits = not self.class_words or self.captions == "class_names"
        check(fits, "data.class_words", self.class_words, "empty, unless data.captions is class_names")
        fits = self.captions == "own" or not self.cache
        expected = "own, with data.cache: causalfusion encode writes them into the cache"
        check(fits, "data.captions", self.captions, expected)
        needs_path = self.source not in ("digits", "shapes", "in_context") and not self.cache
        check(not needs_path or bool(self.path), "data.path", self.path, f"a path, for source {self.source}")
        check(0 <= self.examples <= 64, "data.examples", self.examples, "0 to 64")
        fits = min(self.object_shares) >= 0 and abs(sum(self.object_shares) - 1) < 1e-6
        check(fits, "data.object_shares", self.object_shares, "three shares that sum to 1")
        self._check_documents()

    def _check_documents(self) -> None:
        documents, why = self.has_documents, f"for documents (source {self.source})"
        check(
            not (documents and self.cache), "data.cache", self.cache, f"none, {why}: images are encoded anew"
        )
        check(not (documents and self.native), "data.image_size", self.image_size, f"one size, {why}")
        check(
            not (documents and self.flip), "data.flip", self.flip, f"off, {why}, whose parts belong together"
        )

    def _check_image_size(self) -> None:
        size = self.image_size
        if isinstance(size, str) and size != "native":
            expected = f"0 to {MAX_SIDE} pixels, WIDTHxHEIGHT such as 320x192, or native"
            height, width = (0, 0) if size == "0" else parse_size(size, "data.image_size", expected)
            same = height == width
            object.__setattr__(self, "image_size", height if same else size_text(height, width))
        elif isinstance(size, int):
            check(0 <= size <= MAX_SIDE, "data.image_size", size, f"0 to {MAX_SIDE} pixels")

    @property
    def has_documents(self) -> bool:
        """The data are documents of texts and images, not images."""
        return self.source in ("documents", "in_context")

    @property
    def native(self) -> bool:
        """Images keep their own shapes."""
        return self.image_size == "native"

    def fit(self, cell: int = 1) -> Fit:
        """How pictures become images; `cell`: pixels along a side of a token."""
        if self.native:
            return Fit(max_area=self.max_area, cell=cell)
        return Fit(*parse_size(str(self.image_size), "data.image_size")) if self.image_size else Fit()

    @property
    def side(self) -> int:
        """Side of the square that all images are cropped to; 0 where they are not."""
        return self.image_size if isinstance(self.image_size, int) else 0


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    autoencoder: str = ""
    """Autoencoder of whose latents tokens are patches: a diffusers folder, a hub id, or an original
    checkpoint. Empty: tokens are patches of pixels."""
    patch_size: int = 1
    """Side of the square of pixels or latents that one token holds."""
    latents: Literal["sample", "mode"] = "sample"
    """Latents in training: drawn from the autoencoder's posterior, or its mode."""
    normalization: Literal["given", "measured"] = "given"
    """Use `scale` and `shift` as given, or measure them on the training data (a model stores the result)."""
    scale: float = 1.0
    """latents = (raw - shift) * scale: 0.2325 for the 16-channel KL autoencoder, 0.18215 for SD's."""
    shift: float = 0.0
    """Subtracted from raw latents; see `scale`."""
    image_height: int = 0
    """Height of the images in pixels; 0 until known from the data."""
    image_width: int = 0
    """Width of the images in pixels; 0 until known from the data."""
    image_channels: int = 0
    """Channels of the images; 0 until known from the data."""
    latent_channels: int = 0
    """Channels of the latents (without an autoencoder: those of the image); 0 until known."""
    downsample: int = 0
    """Image pixels per latent pixel, along a side (without an autoencoder: 1); 0 until known."""
    max_area: int = 0
    """Most pixels of an image of a model of images of any size, where image_height and image_width are those
    of the square that it draws by default; 0: all its images have one size."""

    def __post_init__(self) -> None:
        check_values(self, "codec")
        check(1 <= self.patch_size <= 4096, "codec.patch_size", self.patch_size, "1 to 4096")
        for name in ("image_height", "image_width", "image_channels", "latent_channels", "downsample"):
            check(0 <= getattr(self, name) <= 65536, f"codec.{name}", getattr(self, name), "0 to 65536")
        check(0 < self.scale < inf, "codec.scale", self.scale, "a positive number")
        check(0 <= self.max_area <= 2**31, "codec.max_area", self.max_area, "0 to 2147483648 pixels")

    @property
    def kind(self) -> Literal["pixels", "autoencoder"]:
        """The kind of data of which tokens are patches."""
        return "autoencoder" if self.autoencoder else "pixels"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a training run."""

    out: str = "runs/train"
    """Folder of the run: checkpoints, logs, sample grids."""
    data: DataConfig = field(default_factory=DataConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    factorization: FactorizationConfig = field(default_factory=FactorizationConfig)
    text: TextConfig = field(default_factory=TextConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    finetune: Finetune = field(default_factory=FinetuneConfig)
    classify: Classify = field(default_factory=ClassifyConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Settings of the sample grids during training."""

    def __post_init__(self) -> None:
        text, plan = self.text, self.factorization
        one_block = (plan.distribution, plan.num_ar_steps, plan.timesteps_per_ar_step) == ("fixed", 1, 1)
        fits = text.image_context == "clean" or one_block
        expected = "distribution fixed, num_ar_steps 1 and one timestep, for text.image_context noised"
        check(fits, "factorization", f"{plan.distribution}, {plan.num_ar_steps}", expected)
        timestep_from = self.diffusion.timestep_from
        fits = text.image_context == "clean" or timestep_from == "clean"
        expected = "clean, for text.image_context noised: finished images have timestep 0"
        check(fits, "diffusion.timestep_from", timestep_from, expected)
        count, class_tokens = text.examples_per_sequence, self.model.num_class_tokens
        fits = count == 1 or class_tokens == 0
        check(fits, "model.num_class_tokens", class_tokens, "0, where sequences hold several images")
        self._check_head()
        self._check_batches()
        self._check_alignment()
        images = self.train.batch_size // self.train.grad_accumulation
        expected = f"a divisor of the {images} images of a micro-batch"
        check(images % count == 0, "text.examples_per_sequence", count, expected)

    def _check_batches(self) -> None:
        """Check what can stand in batches of images of several sizes."""
        batches = self.data.batches
        if batches == "buckets":
            return
        expected = "buckets, for text (text.tokenizer): documents hold images of one grid"
        check(not self.text.tokenizer, "data.batches", batches, expected)
        expected = "buckets, for a bidirectional context: its images share their number of known tokens"
        check(self.model.context == "causal", "data.batches", batches, expected)
        expected = "buckets or padded, as the head asks by the token before"
        check(batches == "padded" or self.model.head.ask == "mask", "data.batches", batches, expected)

    def _check_alignment(self) -> None:
        """Check that there is a layer to align, and one frozen network at most to learn from."""
        align, depth = self.align, self.model.depth
        if not align.encoder:
            return
        check(align.layer <= depth, "align.layer", align.layer, f"1 to {depth}, the model's layers, or 0")
        check(not self.distill.teacher, "align.encoder", align.encoder, "none, in a distillation")
        expected = "joint, for align.encoder: noised tokens never enter the transformer otherwise"
        check(self.model.head.kind == "joint", "model.head.kind", self.model.head.kind, expected)
        given, expected = self.data.image_size, "one size, for align.encoder: features have one grid"
        check(not self.data.native, "data.image_size", given, expected)
        expected = "images, for align.encoder, not documents"
        check(not self.data.has_documents, "data.source", self.data.source, expected)

    @property
    def reads_text(self) -> bool:
        """False where the text's loss counts nothing, and the text's weights are frozen: texts are there for
        images alone."""
        return self.text.loss_coefficient > 0 or self.train.trainable != "images"

    @property
    def learns_text(self) -> bool:
        """True where texts, if there are some, are predicted."""
        return self.reads_text and self.finetune.task != "classify"

    def _check_head(self) -> None:
        """Check what the model's head and context require of the plan."""
        head, plan = self.model.head, self.factorization
        one_each = plan.order == "raster" and plan.distribution == "fixed" and not plan.given_order
        one_each = one_each and plan.num_ar_steps in (0, self.model.num_tokens)
        fits = head.ask == "mask" or one_each
        given = f"{plan.order}, {plan.distribution}, {plan.num_ar_steps} AR steps"
        expected = "raster, fixed, 0 (one for each token), as the head asks by the token before"
        check(fits, "factorization", given, expected)
        fits = self.model.context == "causal" or plan.split == "per_batch"
        check(fits, "factorization.split", plan.split, "per_batch, for a bidirectional context")
        fits = not self.model.attention_dropout or self.train.attention in ("auto", "dense")
        expected = "auto or dense, for model.attention_dropout"
        check(fits, "train.attention", self.train.attention, expected)
        fits = self.text.image_context == "clean" or head.kind == "joint"
        check(fits, "model.head.kind", head.kind, "joint, for text.image_context noised")
