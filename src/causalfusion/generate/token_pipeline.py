"""A model in use, from documents to tokens: the part of generation that knows no pictures.

Shape letters: B images, L image tokens, P token dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causalfusion.codec.codec import Codec
from causalfusion.codec.tokenizer import Tokenizer
from causalfusion.config import SampleConfig, WriteConfig
from causalfusion.config.options import QuantizeChoice
from causalfusion.diffusion.process import Process
from causalfusion.documents import Document
from causalfusion.errors import UserError
from causalfusion.generate.context import Context, prefill
from causalfusion.generate.layout import draw_orders, to_raster
from causalfusion.generate.noise import ImageNoise
from causalfusion.generate.prompts import Prompts
from causalfusion.generate.settings import check_label, parse_classes, step_sizes
from causalfusion.generate.tokens import Watcher, generate_tokens
from causalfusion.generate.write import TokenWatcher, write_texts
from causalfusion.machine.runtime import autocast
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import ModelSpec


@dataclass(frozen=True)
class TokenPipeline:
    """Model, codec and noise that belong together."""

    model: Transformer
    codec: Codec
    spec: ModelSpec
    process: Process
    autocast_dtype: torch.dtype = torch.float32
    """bfloat16 to compute in it."""
    tokenizer: Tokenizer | None = None
    """None: a model without text."""
    sampling: SampleConfig | None = None
    """The settings that the model recommends, by its folder's sample.toml; None: there are none."""
    adapters: tuple[str, ...] = ()
    """The adapters in the model, with hashes and weights, as records of what was generated tell them."""
    quantize: QuantizeChoice = "none"
    """Number format of the blocks' weights: none is that of the others."""
    fingerprint: str = ""
    """Hash of the model's weights before the adapters; empty: none are in it."""

    @property
    def device(self) -> torch.device:
        return self.model.image_in.weight.device

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens of the images that it makes."""
        return self.codec.grid_height, self.codec.grid_width

    @property
    def default_sampling(self) -> SampleConfig:
        """How images are generated where nothing else is said: as the model recommends, or plainly."""
        plain = SampleConfig()
        if self.model.config.head.ask == "previous":
            plain = SampleConfig(order="raster", num_ar_steps=0)
        return self.process.settled(self.sampling or plain)

    def with_text(self) -> Tokenizer:
        """The tokenizer; a model without text is refused."""
        if self.tokenizer is None:
            raise UserError(
                "this model was trained without text; expected one that was trained with text.tokenizer"
            )
        return self.tokenizer

    @property
    def describes(self) -> bool:
        """True if the model learned to write about images."""
        return self.tokenizer is not None and self.spec.text.loss_coefficient > 0

    def describing(self) -> Tokenizer:
        """The tokenizer; a model that never learned to write about images is refused too."""
        tokenizer = self.with_text()
        if not self.describes:
            raise UserError(
                "this model draws from texts, and never learned to describe images (text.loss_coefficient "
                "was 0 in its training); expected one that was trained with text.image_first"
            )
        return tokenizer

    def null_labels(self, count: int) -> Tensor:
        """(count,) labels that mean: no class."""
        return self._labels([self.model.config.null_label] * count)

    def _labels(self, labels: Sequence[int | str]) -> Tensor:
        """(B,) numbers of classes; the null label is one of them, names are not."""
        num_classes, names = self.model.config.num_classes, [v for v in labels if isinstance(v, str)]
        if names and not self.model.config.uses_classes:
            remedy = "leave labels out" if self.tokenizer is None else f"give prompts=[{names[0]!r}]"
            raise UserError(f"this model has no class condition; {remedy} (class {names[0]!r} was given)")
        named = dict(zip(names, parse_classes(names, self.spec.class_names, num_classes), strict=True))
        numbers = [named[label] if isinstance(label, str) else label for label in labels]
        checked = [
            number if number == num_classes else check_label(number, num_classes) for number in numbers
        ]
        return torch.tensor(checked, dtype=torch.int64, device=self.device)

    def prompts_of(
        self, documents: Sequence[Document] | None, tokens: Tensor | None = None
    ) -> Prompts | None:
        """Documents with images (N, L, P) as the model takes them; None for none."""
        if documents is None:
            return None
        return Prompts(documents, self.with_text().markers, tokens, self.spec.text.image_context)

    def guided_numbers(self, config: SampleConfig) -> Tensor | None:
        """(P,) bool: the numbers of a token that guidance acts on; None: all, also of the model's output."""
        if not config.guided_channels and self.process.numbers_per_prediction == 1:
            return None
        channels = self.codec.channels_of_token().to(self.device)
        return channels < (config.guided_channels or self.codec.config.latent_channels)

    @torch.no_grad()
    def generate_after(
        self,
        labels: Tensor,
        documents: Sequence[Document] | None,
        tokens: Tensor | None,
        config: SampleConfig,
        *,
        seed: int = 0,
        image_indices: Sequence[int] = (0,),
        watch: Watcher | None = None,
    ) -> Tensor:
        """Tokens (B, L, P), in raster order, of the images to come of documents with images (N, L, P)."""
        indices, prompts = list(image_indices), self.prompts_of(documents, tokens)
        if len(indices) != len(labels):
            raise UserError(f"{len(labels)} images and {len(indices)} image_indices; expected equal numbers")
        num_tokens = self.codec.num_tokens
        sizes = step_sizes(config, num_tokens, seed)
        order = draw_orders(config, *self.grid, seed, indices).to(self.device)
        noise = ImageNoise(seed, indices, num_tokens, self.model.config.token_dim)
        with autocast(self.device, self.autocast_dtype):
            context = prefill(self.model, labels, config, prompts=prompts, grid=self.grid, sizes=sizes)
            new = generate_tokens(
                self.model,
                self.process,
                config,
                context,
                order,
                sizes,
                noise,
                watch,
                self.guided_numbers(config),
            )
        return to_raster(new, order)

    def write(
        self,
        labels: Tensor,
        documents: Sequence[Document],
        tokens: Tensor | None,
        config: WriteConfig,
        seed: int,
        row_indices: Sequence[int],
        watch: TokenWatcher | None = None,
    ) -> list[list[int]]:
        """Token ids of the texts that documents with images (N, L, P) have open."""
        context = self.read(labels, documents, tokens)
        with autocast(self.device, self.autocast_dtype):
            return write_texts(
                self.model,
                context,
                self.with_text().markers,
                config,
                seed=seed,
                row_indices=row_indices,
                watch=watch,
            )

    @torch.no_grad()
    def read(self, labels: Tensor, documents: Sequence[Document], tokens: Tensor | None) -> Context:
        """The cache after documents with images (N, L, P), without guidance."""
        with autocast(self.device, self.autocast_dtype):
            prompts = self.prompts_of(documents, tokens)
            return prefill(self.model, labels, SampleConfig(), prompts=prompts, grid=self.grid)
