"""Links between the weights of another system and ours: new names, other orders of the same numbers.

Each link can be followed both ways, so that weights and their gradients can be compared in either layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from causalfusion.errors import UserError

Change = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Link:
    """Some of our weights that hold the numbers of some of theirs."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_ours: Change
    to_theirs: Change


def rename(ours: str, theirs: str) -> Link:
    """One weight under another name."""
    return Link((ours,), (theirs,), lambda t: t, lambda t: t)


def module(ours: str, theirs: str, *, bias: bool = True) -> list[Link]:
    """Weight and, with `bias`, bias of a layer."""
    return [rename(f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias")[: 1 + bias]]


def reshaped(ours: str, theirs: str, to_ours: Sequence[int], to_theirs: Sequence[int]) -> Link:
    """The same numbers in other shapes."""
    return Link((ours,), (theirs,), lambda t: [t[0].reshape(*to_ours)], lambda t: [t[0].reshape(*to_theirs)])


def joined(ours: str, theirs: Sequence[str], sizes: Sequence[int]) -> Link:
    """Ours holds the rows of several of theirs, one after another, `sizes` of each."""
    return Link((ours,), tuple(theirs), lambda t: [torch.cat(t)], lambda t: list(t[0].split(list(sizes))))


def reordered(ours: str, theirs: str, index: Tensor, size: int, *, dim: int = 0, sign: float = 1.0) -> Link:
    """Ours is theirs, of `size` along `dim`, at `index` there, times `sign`. What ours leaves out of theirs
    is zero on the way back, as it has no gradient."""

    def back(tensors: list[Tensor]) -> list[Tensor]:
        shape = list(tensors[0].shape)
        shape[dim] = size
        return [tensors[0].new_zeros(shape).index_copy(dim, index, sign * tensors[0])]

    return Link((ours,), (theirs,), lambda t: [sign * t[0].index_select(dim, index)], back)


def blocks(depth: int, of_one: Callable[[str], list[Link]], ours: str, theirs: str) -> list[Link]:
    """The links of every block: `of_one` gives those of one, its names with `{ours}` and `{theirs}` for the
    prefixes, which hold the block's number for `#`."""
    links: list[Link] = []
    for number in range(depth):
        places = {"{ours}": ours.replace("#", str(number)), "{theirs}": theirs.replace("#", str(number))}
        for link in of_one(""):
            links.append(
                Link(
                    tuple(_filled(name, places) for name in link.ours),
                    tuple(_filled(name, places) for name in link.theirs),
                    link.to_ours,
                    link.to_theirs,
                )
            )
    return links


def _filled(name: str, places: Mapping[str, str]) -> str:
    for placeholder, text in places.items():
        name = name.replace(placeholder, text)
    return name


def channels_last(channels: int, patch_size: int) -> Tensor:
    """(P,) places, in tokens that are ordered (channel, row, column), of the numbers of our tokens, which are
    ordered (row, column, channel)."""
    numbers = torch.arange(channels * patch_size**2).view(channels, patch_size, patch_size)
    return numbers.permute(1, 2, 0).flatten()


def mean_then_variance(channels: int, patch_size: int) -> Tensor:
    """(2 P,) places, in outputs ordered (row, column, channel) with as many channels of variances behind
    those of means, of our outputs: all means, then all variances."""
    numbers = torch.arange(2 * channels * patch_size**2).view(patch_size**2, 2, channels)
    return numbers.transpose(0, 1).flatten()


def follow(links: Sequence[Link], state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Our weights, float32. Raises UserError for a weight of theirs that is missing or that no link knows."""
    known = [name for link in links for name in link.theirs]
    missing, unknown = sorted(set(known) - state.keys()), sorted(state.keys() - set(known))
    for word, keys in (("lacks weight", missing), ("has the unknown weight", unknown)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(f"{where} {word} {keys[0]}{more}; it is of another system or size")
    ours: dict[str, Tensor] = {}
    for link in links:
        tensors = [state[name].detach().float() for name in link.theirs]
        try:
            ours |= zip(link.ours, link.to_ours(tensors), strict=True)
        except (RuntimeError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{where}: weight {link.theirs[0]} has another shape ({reason})") from None
    return {name: value.contiguous() for name, value in ours.items()}


def follow_back(links: Sequence[Link], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors, from ours by name: weights, or gradients of them."""
    theirs: dict[str, Tensor] = {}
    for link in links:
        if link.ours and all(name in tensors for name in link.ours):
            theirs |= zip(link.theirs, link.to_theirs([tensors[n] for n in link.ours]), strict=True)
    return theirs
