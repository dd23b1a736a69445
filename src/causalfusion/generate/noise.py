"""Where generation's random numbers come from: one stream per image, addressed by (seed, image index).

Shape letters: B images, L image tokens, n tokens of an AR step, K diffusion steps, P token dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from causalfusion.rng import derive_generator


class NoiseSource(Protocol):
    def initial(self, ar_step: int, positions: Tensor) -> Tensor:
        """(B, n, P): where the tokens at raster `positions` (B, n) start, standard normal."""
        ...

    def during(self, ar_step: int, num_steps: int, positions: Tensor) -> Tensor:
        """(K, B, n, P): what a stochastic sampler adds in each diffusion step, standard normal."""
        ...


class ImageNoise:
    """Noise that depends on (seed, image index, AR step) alone: not on the batch, nor on the process.

    Starting noise belongs to a token's place in the image, so image i starts alike for every S and order.
    """

    def __init__(self, seed: int, image_indices: Sequence[int], num_tokens: int, token_dim: int) -> None:
        self.seed, self.image_indices, self.token_dim = seed, list(image_indices), token_dim
        self._start = torch.stack(
            [
                torch.randn(num_tokens, token_dim, generator=derive_generator(seed, "start", index))
                for index in self.image_indices
            ]
        )

    def initial(self, ar_step: int, positions: Tensor) -> Tensor:
        index = positions.cpu()[:, :, None].expand(-1, -1, self.token_dim)
        return self._start.gather(1, index).to(positions.device)

    def during(self, ar_step: int, num_steps: int, positions: Tensor) -> Tensor:
        shape = (num_steps, positions.shape[1], self.token_dim)
        draws = [
            torch.randn(shape, generator=derive_generator(self.seed, "during", index, ar_step))
            for index in self.image_indices
        ]
        return torch.stack(draws, dim=1).to(positions.device)
