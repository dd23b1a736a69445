"""A trained model in use: classes and prompts to images, images to edited images and to captions.

Shape letters: B images, L image tokens, P token dimension, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from causalfusion.config import RopeExtrapolation, SampleConfig, WriteConfig
from causalfusion.documents import Document, Image, ImageToCome, Text
from causalfusion.errors import UserError, check
from causalfusion.factorization import Plan
from causalfusion.generate.context import prefill
from causalfusion.generate.features import image_features
from causalfusion.generate.layout import draw_orders, tokens_of_mask
from causalfusion.generate.noise import ImageNoise
from causalfusion.generate.prompts import given_documents, image_documents
from causalfusion.generate.published import PublishedPipeline
from causalfusion.generate.read import image_of, read_image, to_picture
from causalfusion.generate.regions import Original, mask_of, read_mask, region_mask
from causalfusion.generate.settings import fit_ar_steps, step_sizes
from causalfusion.generate.tokens import Sketch, Watcher, generate_tokens
from causalfusion.generate.write import TokenWatcher
from causalfusion.machine.runtime import autocast

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    Images = Tensor | Picture | Path | str | Sequence[Picture | Path | str]


@dataclass(frozen=True)
class Pipeline(PublishedPipeline):
    """A model with pictures and words on both sides."""

    def at(self, height: int, width: int) -> Self:
        """This pipeline for images of another size, in pixels. Raises UserError for one that patches do not
        cover."""
        return replace(self, codec=self.codec.at(height, width))

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of its images in pixels."""
        return self.codec.config.image_height, self.codec.config.image_width

    def extrapolate(self, rule: RopeExtrapolation) -> None:
        """From now on, turn tokens of grids larger than that of training by this rule's frequencies. Raises
        UserError for a model whose positions it does not suit."""
        if self.model.config.position_embedding != "rope":
            raise UserError(
                f"the rope extrapolation is {rule}; expected none, as the positions of this model are "
                f"{self.model.config.position_embedding}: they need no rule"
            )
        self.model.extrapolate(rule)

    def to_pil(self, images: Tensor) -> list[Picture]:
        """Pillow's pictures of images (B, C, H, W) in [-1, 1], as `generate` and `edit` return them."""
        return [to_picture(pixels) for pixels in self.codec.to_uint8(images)]

    def to_tensor(self, images: Images) -> Tensor:
        """(B, C, H, W) in [-1, 1] of pictures or image files, cropped and scaled as in training."""
        if isinstance(images, Sequence | Tensor) and not len(images):
            raise UserError("there are no images; expected at least one")
        if isinstance(images, Tensor):
            check(images.ndim == 4, "the shape of images", tuple(images.shape), "(B, C, H, W)")
            return images
        config = self.codec.config
        size = config.image_height, config.image_width, config.image_channels
        several: Sequence[Picture | Path | str]
        several = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
        read = [
            read_image(Path(one), *size) if isinstance(one, str | Path) else image_of(one, *size)
            for one in several
        ]
        return torch.stack(read)

    @torch.no_grad()
    def generate(
        self,
        labels: Sequence[int | str] | None = None,
        config: SampleConfig | None = None,
        *,
        prompts: Sequence[str] | None = None,
        seed: int = 0,
        image_indices: Sequence[int] | None = None,
        watch: Watcher | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) in [-1, 1], one per label, prompt, or pair of them; `to_pil` makes pictures of
        them. A label is a class's number or its name.

        Image i of a run is a function of (seed, image_indices[i], label, prompt, config): not of the batch
        it is in. `image_indices` defaults to 0, 1, ... A model with text but without a prompt generates from
        an empty caption.
        """
        label_tensor, documents = self.conditions(labels, prompts)
        indices = list(range(len(label_tensor))) if image_indices is None else list(image_indices)
        tokens = self.generate_after(
            label_tensor, documents, None, config or self.default_sampling, seed=seed, image_indices=indices,
            watch=watch,
        )  # fmt: skip
        return self.codec.decode_tokens(tokens)

    @torch.no_grad()
    def draw_next(
        self,
        documents: Sequence[Sequence[str | Tensor]],
        config: SampleConfig | None = None,
        *,
        seed: int = 0,
        image_indices: Sequence[int] | None = None,
        watch: Watcher | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] that come next in documents, each of texts and of images (C, H, W)
        such as `to_tensor` makes, in any order.

        Image i is a function of (seed, image_indices[i], document i, config), as in `generate`."""
        asked, images = given_documents(documents, ImageToCome(), self.with_text(), self.model.config, 0)
        tokens = None
        if images:
            tokens = self.codec.encode_tokens(torch.stack(images).to(self.device), None)
        indices = range(len(asked)) if image_indices is None else image_indices
        drawn = self.generate_after(
            self.null_labels(len(asked)), asked, tokens, config or self.default_sampling, seed=seed,
            image_indices=indices, watch=watch,
        )  # fmt: skip
        return self.codec.decode_tokens(drawn)

    @torch.no_grad()
    def edit(
        self,
        images: Images,
        mask: Tensor | np.ndarray | Picture | Path | str,
        labels: Sequence[int | str] | None = None,
        config: SampleConfig | None = None,
        *,
        prompts: Sequence[str] | None = None,
        seed: int = 0,
        image_indices: Sequence[int] | None = None,
        variants: int = 1,
        strength: float = 1.0,
        paste: bool = True,
        watch: Watcher | None = None,
    ) -> Tensor:
        """Regenerate the masked region of images under new classes or prompts, zero-shot. The images are
        (B, C, H, W) in [-1, 1], pictures, or image files.

        With a `strength` below 1, the region is drawn from what it shows, noised to that share of the path.

        `mask` (H, W), a tensor or an array, is True where pixels may change; or it is a mask image, its path,
        or a region's name ("right", as `region_mask` says). A token is regenerated if any of its
        pixels is masked. Kept tokens are clean context, in the cache once for all variants. With `paste`,
        pixels outside the mask are the input's, exactly. Returns (B * variants, C, H, W), the variants of an
        image side by side; variant v of image b has index image_indices[b] * variants + v, by default b's.
        """
        spec = self.model.config
        if spec.head.ask == "previous":
            raise UserError("this model cannot edit: its head asks for one token after another")
        sized = self._sized(given := self.to_tensor(images))
        mask, images = sized._mask(mask, images), given
        label_tensor, documents = self.conditions(labels, prompts)
        check(variants >= 1, "variants", variants, "at least 1")
        check(0 < strength <= 1, "strength", strength, "a number above 0, up to 1")
        kept, changed = sized._kept_and_changed(mask, images, len(label_tensor))
        original = images.to(self.device)
        tokens = sized.codec.encode_tokens(original, None)
        config = config or fit_ar_steps(self.default_sampling, len(changed))
        sizes = step_sizes(config, len(changed), seed)
        of_images = range(len(images)) if image_indices is None else image_indices
        indices = [index * variants + variant for index in of_images for variant in range(variants)]
        order = sized._orders_among(changed, config, seed, indices)
        places = order[:, :, None].expand(-1, -1, spec.token_dim)
        before = tokens.repeat_interleave(variants, dim=0)
        sketch = Sketch(before.gather(1, places), strength) if strength < 1 else None
        noise = ImageNoise(seed, indices, sized.codec.num_tokens, spec.token_dim)
        with autocast(self.device, self.autocast_dtype):
            context = prefill(
                self.model, label_tensor, config, prompts=self.prompts_of(documents),
                kept_tokens=tokens[:, kept], kept_positions=kept.expand(len(images), -1), grid=sized.grid,
                sizes=sizes,
            ).fork(variants)  # fmt: skip
            new = generate_tokens(
                self.model, self.process, config, context, order, sizes, noise, watch,
                self.guided_numbers(config), sketch,
            )  # fmt: skip
        edited = sized.codec.decode_tokens(before.scatter(1, places, new))
        if not paste:
            return edited
        return torch.where(mask.to(self.device), edited, original.repeat_interleave(variants, dim=0))

    def _sized(self, images: Tensor) -> Self:
        """This pipeline for images (B, C, H, W) of their size, where the model's may have any."""
        return self.at(*images.shape[-2:]) if self.codec.config.max_area else self

    def _mask(self, mask: Tensor | np.ndarray | Picture | Path | str, images: Images) -> Tensor:
        from PIL.Image import Image

        if isinstance(mask, Tensor | np.ndarray):
            return torch.as_tensor(mask)
        size = self.codec.config.image_height, self.codec.config.image_width
        if isinstance(mask, str):
            return region_mask(mask, *size)
        first = images[0] if isinstance(images, list | tuple) else images
        original = Original.of(first) if isinstance(first, str | Path | Image) else None
        if isinstance(mask, Image):
            return mask_of(mask, *size, original)
        expected = "a tensor (H, W), a picture or the path of one, or a region's name"
        check(isinstance(mask, Path), "the mask", type(mask).__name__, expected)
        return read_mask(mask, *size, original)

    def _kept_and_changed(self, mask: Tensor, images: Tensor, asked: int) -> tuple[Tensor, Tensor]:
        """Raster positions of the tokens without and with masked pixels. Raises UserError if none has any, or
        if the mask, or the number of labels or prompts, does not fit the images."""
        if mask.shape != images.shape[-2:] or asked != len(images):
            raise UserError(
                f"mask {tuple(mask.shape)} and {asked} labels or prompts do not fit images of shape "
                f"{tuple(images.shape)}; expected a mask (H, W), and one of them for each image"
            )
        masked = tokens_of_mask(mask, *self.grid).flatten()
        if not masked.any():
            raise UserError("the mask is empty; expected at least one masked pixel")
        kept, changed = (m.nonzero().flatten().to(self.device) for m in (~masked, masked))
        return kept, changed

    def _orders_among(self, changed: Tensor, config: SampleConfig, seed: int, indices: list[int]) -> Tensor:
        """(B, n) the masked raster positions in the order in which the whole image's order meets them."""
        whole = draw_orders(config, *self.grid, seed, indices).to(self.device)
        return whole[torch.isin(whole, changed)].view(len(indices), -1)

    @torch.no_grad()
    def caption(
        self,
        images: Images,
        config: WriteConfig | None = None,
        *,
        labels: Sequence[int | str] | None = None,
        seed: int = 0,
        image_indices: Sequence[int] | None = None,
        watch: TokenWatcher | None = None,
    ) -> list[str]:
        """The model's captions of images (B, C, H, W) in [-1, 1], of pictures or of image files.

        Text i depends on (seed, image_indices[i]) and image i alone."""
        tokenizer, images = self.describing(), self.to_tensor(images)
        sized = self._sized(images)
        label_tensor, _ = self.conditions(labels or [self.model.config.null_label] * len(images), None)
        documents = [[Image(row), Text(open=True)] for row in range(len(images))]
        tokens = sized.codec.encode_tokens(images.to(self.device), None)
        indices = range(len(images)) if image_indices is None else image_indices
        texts = sized.write(label_tensor, documents, tokens, config or WriteConfig(), seed, indices, watch)
        return [tokenizer.decode(ids) for ids in texts]

    def features(
        self,
        images: Images,
        *,
        layer: int = -1,
        timestep: float | None = None,
        plan: Plan | None = None,
        per_token: bool = False,
        batch_size: int = 64,
        seed: int = 0,
    ) -> Tensor:
        """(B, D) float32: what a layer makes of images (B, C, H, W) in [-1, 1], of pictures or image files,
        without class or caption; the mean over tokens, or `per_token` (B, L, D) of each, in raster order.

        Layer 0 enters the first block, -1 leaves the last. `timestep`, `plan`: as in `features.read_layers`.
        """
        given = self.to_tensor(images)
        sized = self.at(int(given.shape[-2]), int(given.shape[-1]))
        found = image_features(
            sized, given, [layer], timestep=timestep, plan=plan, batch_size=batch_size, seed=seed
        )
        (values,) = found.values()
        return values if per_token else values.mean(1)

    def conditions(
        self, labels: Sequence[int | str] | None, prompts: Sequence[str] | None
    ) -> tuple[Tensor, list[Document] | None]:
        """Labels (B,), the null label where there are none, and documents with an image to come."""
        if labels is None and prompts is None:
            raise UserError("expected labels, prompts, or both: what to generate")
        words = "" if self.tokenizer is None else f"; of a description, prompts=[{labels!r}]"
        check(not isinstance(labels, str), "labels", labels, f"a list, such as [{labels!r}]{words}")
        check(not isinstance(prompts, str), "prompts", prompts, f"a list, such as [{prompts!r}]")
        if prompts is not None:
            tokenizer = self.with_text()
            if labels is not None and len(labels) != len(prompts):
                raise UserError(f"{len(labels)} labels and {len(prompts)} prompts; expected equal numbers")
            labels = [self.model.config.null_label] * len(prompts) if labels is None else labels
            return self._labels(labels), image_documents(prompts, tokenizer, self.model.config)
        assert labels is not None
        if self.tokenizer is None:
            return self._labels(labels), None
        return self._labels(labels), [[Text(), ImageToCome()] for _ in labels]
