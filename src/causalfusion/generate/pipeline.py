"""A trained model in use: labels to images, and images to edited images.

Shape letters: B images, L image tokens, P token dimension, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from causalfusion.codec.codec import Codec, open_codec
from causalfusion.config import SampleConfig
from causalfusion.diffusion.schedule import NoiseSchedule
from causalfusion.errors import UserError
from causalfusion.generate.layout import draw_orders, to_raster, tokens_of_mask
from causalfusion.generate.noise import ImageNoise
from causalfusion.generate.settings import check_label, step_sizes
from causalfusion.generate.tokens import Watcher, generate_tokens, prefill
from causalfusion.model.transformer import Transformer
from causalfusion.runtime import autocast
from causalfusion.saved import ModelSpec, WeightsName, latest_model, load_model


@dataclass(frozen=True)
class Pipeline:
    """Model, codec and noise levels that belong together."""

    model: Transformer
    codec: Codec
    spec: ModelSpec
    schedule: NoiseSchedule
    autocast_dtype: torch.dtype = torch.float32
    """bfloat16 to compute in it."""

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        weights: WeightsName = "ema",
        device: torch.device | str = "cpu",
        autocast_dtype: torch.dtype = torch.float32,
    ) -> Pipeline:
        """From a model folder, or from a training run (its last checkpoint)."""
        model, spec = load_model(latest_model(Path(folder)), weights, device)
        codec = open_codec(spec.codec, image_shape=None).to(device)
        return cls(model, codec, spec, NoiseSchedule.from_config(spec.diffusion), autocast_dtype)

    @property
    def device(self) -> torch.device:
        return self.model.image_out.weight.device

    @torch.no_grad()
    def generate(
        self,
        labels: Sequence[int],
        config: SampleConfig,
        *,
        seed: int = 0,
        image_indices: Sequence[int] | None = None,
        watch: Watcher | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) in [-1, 1], one per label.

        Image i of a run is a function of (seed, image_indices[i], label, config): not of the batch it is
        in. `image_indices` defaults to 0, 1, ...
        """
        indices = list(range(len(labels))) if image_indices is None else list(image_indices)
        label_tensor = self._labels(labels)
        spec = self.model.config
        sizes = step_sizes(config, spec.num_tokens, seed)
        order = draw_orders(config, spec.grid_height, spec.grid_width, seed, indices).to(self.device)
        noise = ImageNoise(seed, indices, spec.num_tokens, spec.token_dim)
        with autocast(self.device, self.autocast_dtype):
            context = prefill(self.model, label_tensor, config)
            tokens = generate_tokens(
                self.model, self.schedule, self.spec.diffusion.prediction_type, config, context, order, sizes,
                noise, watch,
            )  # fmt: skip
        return self.codec.decode_tokens(to_raster(tokens, order))

    @torch.no_grad()
    def edit(
        self,
        images: Tensor,
        mask: Tensor,
        labels: Sequence[int],
        config: SampleConfig,
        *,
        seed: int = 0,
        variants: int = 1,
        paste: bool = True,
        watch: Watcher | None = None,
    ) -> Tensor:
        """Regenerate the masked region of images (B, C, H, W) in [-1, 1] under new classes, zero-shot.

        `mask` (H, W) is True where pixels may change. A token is regenerated if any of its pixels is
        masked. The kept tokens are clean context, in the cache once for all variants. With `paste`, pixels
        outside the mask are those of the input, exactly. Returns (B * variants, C, H, W), the variants of
        an image next to each other; variant v of image b is drawn at image index b * variants + v.
        """
        spec = self.model.config
        if mask.shape != images.shape[-2:] or len(labels) != len(images):
            raise UserError(
                f"mask {tuple(mask.shape)} and {len(labels)} labels do not fit images of shape "
                f"{tuple(images.shape)}; expected a mask (H, W) and a label for each image"
            )
        masked = tokens_of_mask(mask, spec.grid_height, spec.grid_width).flatten()
        if not masked.any():
            raise UserError("the mask is empty; expected at least one masked pixel")
        original = images.to(self.device)
        tokens = self.codec.encode_tokens(original, None)
        kept, changed = (m.nonzero().flatten().to(self.device) for m in (~masked, masked))
        batch_size, label_tensor = len(images), self._labels(labels)
        sizes = step_sizes(config, len(changed), seed)
        indices = list(range(batch_size * variants))
        order = self._orders_among(changed, config, seed, indices)
        noise = ImageNoise(seed, indices, spec.num_tokens, spec.token_dim)
        with autocast(self.device, self.autocast_dtype):
            context = prefill(
                self.model, label_tensor, config,
                kept_tokens=tokens[:, kept], kept_positions=kept.expand(batch_size, -1),
            ).fork(variants)  # fmt: skip
            new = generate_tokens(
                self.model, self.schedule, self.spec.diffusion.prediction_type, config, context, order, sizes,
                noise, watch,
            )  # fmt: skip
        result = tokens.repeat_interleave(variants, dim=0)
        result.scatter_(1, order[:, :, None].expand(-1, -1, spec.token_dim), new)
        edited = self.codec.decode_tokens(result)
        if not paste:
            return edited
        inside = mask.to(self.device)
        return torch.where(inside, edited, original.repeat_interleave(variants, dim=0))

    def _orders_among(self, changed: Tensor, config: SampleConfig, seed: int, indices: list[int]) -> Tensor:
        """(B, n) the masked raster positions in the order in which the whole image's order meets them."""
        spec = self.model.config
        whole = draw_orders(config, spec.grid_height, spec.grid_width, seed, indices).to(self.device)
        return whole[torch.isin(whole, changed)].view(len(indices), -1)

    def _labels(self, labels: Sequence[int]) -> Tensor:
        num_classes = self.model.config.num_classes
        checked = [label if label == num_classes else check_label(label, num_classes) for label in labels]
        return torch.tensor(checked, dtype=torch.int64, device=self.device)
