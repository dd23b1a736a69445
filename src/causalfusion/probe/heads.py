"""Probes: small classifiers on features that stay as they are.

Each chooses its one setting on a fifth of the training images, the validation images, then learns from all of
them. The held-out images take no part in any choice.

Shape letters: N, M images to learn from and to classify, L tokens, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from causalfusion.errors import UserError
from causalfusion.rng import derive_generator

VALIDATION = 0.2
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Factors of half the squared weights in the loss of linear probes, strongest first."""
RATES = (3e-4, 1e-3, 3e-3)
"""Learning rates of attentive probes."""
_BATCH = 128
_TEMPERATURE = 0.07
"""Of the votes of neighbours, exp(similarity / temperature), as DINO's (2104.14294)."""


@dataclass(frozen=True)
class Labelled:
    """Features of images with their classes."""

    features: NDArray[np.floating]
    """(N, D), or (N, L, D)."""
    labels: NDArray[np.int64]
    """(N,)."""

    def rows(self, rows: NDArray[np.int64]) -> Labelled:
        return Labelled(self.features[rows], self.labels[rows])

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(features float32, labels int64) on a device."""
        features = torch.from_numpy(np.array(self.features, np.float32))
        return features.to(device), torch.from_numpy(np.array(self.labels)).to(device)


@dataclass(frozen=True)
class Reading:
    """What a probe makes of the held-out images."""

    predicted: NDArray[np.int64]
    """(M,) classes."""
    validation: float
    """The share of the validation images whose class is right."""
    chosen: float
    """The setting that was chosen on them: penalty, learning rate; knn: the neighbours, as given."""


def split_validation(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of (images to learn from, validation images), each in order."""
    shuffled = np.random.default_rng([seed, 17]).permutation(count)
    held = max(1, round(count * VALIDATION))
    return np.sort(shuffled[held:]), np.sort(shuffled[:held])


def linear(
    train: Labelled, test: NDArray[np.floating], num_classes: int, seed: int, device: torch.device
) -> Reading:
    """Multinomial logistic regression on standardised features (N, D), by L-BFGS."""

    def fits(known: Labelled, penalties: Sequence[float]) -> list[Callable[[Tensor], Tensor]]:
        x, labels = known.tensors(device)
        centre, scale = x.mean(0), x.std(0).clamp(min=1e-6)
        found, start = [], None
        for penalty in penalties:
            weight, bias = start = fit_logistic((x - centre) / scale, labels, num_classes, penalty, start)
            found.append(lambda new, w=weight, b=bias: F.linear((new - centre) / scale, w, b).argmax(-1))
        return found

    first, second = split_validation(len(train.labels), seed)
    x, labels = train.rows(second).tensors(device)
    shares = [float((f(x) == labels).double().mean()) for f in fits(train.rows(first), PENALTIES)]
    best = int(np.argmax(shares))
    classify = fits(train, PENALTIES[: best + 1])[-1]
    predicted = classify(torch.from_numpy(np.array(test, np.float32)).to(device))
    return Reading(predicted.cpu().numpy(), shares[best], PENALTIES[best])


def fit_logistic(
    x: Tensor, labels: Tensor, num_classes: int, penalty: float, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """(weights (K, D), biases (K,)) with the least mean cross-entropy of x (N, D) plus `penalty` / 2 times
    the squared weights; `start`: where to begin."""
    if start is None:
        start = x.new_zeros(num_classes, x.shape[1]), x.new_zeros(num_classes)
    weight, bias = (part.clone().requires_grad_() for part in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=300,
        history_size=20,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # pyright: ignore[reportArgumentType] - L-BFGS takes tensors, as its docs do
    return weight.detach(), bias.detach()


def knn(
    train: Labelled,
    test: NDArray[np.floating],
    num_classes: int,
    seed: int,
    device: torch.device,
    neighbours: int,
) -> Reading:
    """Votes of the nearest training images by the cosine of standardised features (N, D)."""
    first, second = split_validation(len(train.labels), seed)
    if neighbours > len(first):
        raise UserError(
            f"--neighbours is {neighbours}; expected at most {len(first)}, the training images without the "
            "validation images"
        )

    def classify(known: Labelled, new: NDArray[np.floating]) -> NDArray[np.int64]:
        x, labels = known.tensors(device)
        centre, scale = x.mean(0), x.std(0).clamp(min=1e-6)
        x = F.normalize((x - centre) / scale, dim=1)
        found = []
        for part in torch.from_numpy(np.array(new, np.float32)).split(1024):
            y = F.normalize((part.to(device) - centre) / scale, dim=1)
            similarity, nearest = (y @ x.T).topk(neighbours, dim=1)
            votes = torch.zeros(len(y), num_classes, device=device)
            votes.scatter_add_(1, labels[nearest], (similarity / _TEMPERATURE).exp())
            found.append(votes.argmax(1))
        return torch.cat(found).cpu().numpy()

    right = classify(train.rows(first), train.features[second]) == train.labels[second]
    return Reading(classify(train, test), float(right.mean()), neighbours)


class AttentiveHead(nn.Module):
    """One learned query attends to the tokens; what it reads is classified."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        heads = next(n for n in (8, 4, 2, 1) if width % n == 0 and width // n >= min(16, width))
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, D) -> logits (B, K)."""
        tokens = self.norm(tokens)
        query = self.query.expand(len(tokens), -1, -1)
        return self.out(self.attention(query, tokens, tokens, need_weights=False)[0][:, 0])


def attentive(
    train: Labelled,
    test: NDArray[np.floating],
    num_classes: int,
    seed: int,
    device: torch.device,
    steps: int,
) -> Reading:
    """A head over the features of all tokens (N, L, D)."""
    first, second = split_validation(len(train.labels), seed)
    labels = train.labels[second]
    shares = []
    for rate in RATES:
        head = _trained(train, first, num_classes, seed, device, steps, rate)
        shares.append(float((_classified(head, train.features, second, device) == labels).mean()))
    best = int(np.argmax(shares))
    head = _trained(train, np.arange(len(train.labels)), num_classes, seed, device, steps, RATES[best])
    return Reading(_classified(head, test, np.arange(len(test)), device), shares[best], RATES[best])


def _trained(
    train: Labelled,
    rows: NDArray[np.int64],
    num_classes: int,
    seed: int,
    device: torch.device,
    steps: int,
    rate: float,
) -> AttentiveHead:
    """A head trained on these rows: AdamW with a cosine schedule, the same draws for every rate."""
    generator = derive_generator(seed, "attentive")
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(derive_generator(seed, "attentive", "head").initial_seed())
        head = AttentiveHead(train.features.shape[2], num_classes).to(device)
        optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            drawn = torch.randint(len(rows), (min(_BATCH, len(rows)),), generator=generator).numpy()
            x, labels = train.rows(rows[np.sort(drawn)]).tensors(device)
            optimizer.zero_grad()
            F.cross_entropy(head(x), labels).backward()
            optimizer.step()
            schedule.step()
    return head.eval()


@torch.no_grad()
def _classified(
    head: AttentiveHead, features: NDArray[np.floating], rows: NDArray[np.int64], device: torch.device
) -> NDArray[np.int64]:
    found = []
    for start in range(0, len(rows), 512):
        part = np.array(features[rows[start : start + 512]], np.float32)
        found.append(head(torch.from_numpy(part).to(device)).argmax(-1).cpu().numpy())
    return np.concatenate(found)
