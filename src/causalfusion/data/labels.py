"""The classes of a data set: those that occur among its labels, and no others."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from causalfusion.data.names import same_name
from causalfusion.errors import UserError, printable

MAX_LABEL = 1_000_000
"""Labels from this one on are refused as a mistake, such as image numbers given as labels."""


@dataclass(frozen=True)
class Classes:
    names: list[str]
    """The name of each class; their order is that of the model's classes."""
    labels: np.ndarray
    """(N,) int64 class of each image, as an index into `names`."""
    numbers: np.ndarray | None = None
    """(classes,) int64 number of each class in the data; None if the data name their classes."""
    listed: Sequence[str] = ()
    """Names by number, from a list of classes; empty without one."""

    def by_number(self, num_classes: int) -> tuple[list[str], np.ndarray] | None:
        """(class names, the model's class for each of `names`) for a model of `num_classes` whose class n is
        number n of the data; None if the data give no numbers, or some are not below `num_classes`."""
        if self.numbers is None or self.numbers.max() >= num_classes:
            return None
        names = [self.listed[n] if n < len(self.listed) else str(n) for n in range(num_classes)]
        for name, number in zip(self.names, self.numbers.tolist(), strict=True):
            names[number] = name
        return names, self.numbers


def fit_classes(
    classes: Classes | None, names: list[str], num_classes: int
) -> tuple[list[str], np.ndarray | None]:
    """(class names, the model's class for each of the data's classes) for a model of `num_classes` classes
    (0: as many as the data); the second is None where both number the classes alike.

    In a model with more classes than the data, class n is number n of the data: it was trained on data with
    more classes, or by a version that counted numbers without images as classes. A model with a single class
    does not use labels. Raises UserError where the classes do not fit.
    """
    if num_classes in (0, max(len(names), 1)):
        return names, None
    if num_classes == 1:
        return [], np.zeros(len(names), np.int64)
    found = classes.by_number(num_classes) if classes is not None and num_classes > len(names) else None
    if found is None:
        raise UserError(
            f"model.num_classes is {num_classes}, the data make it {max(len(names), 1)}; leave it out"
        )
    return found


def map_classes(
    names: list[str], known: Sequence[str], *, keep: bool, used: bool = True
) -> tuple[list[str], np.ndarray | None]:
    """(class names, the model's class for each of the data's `names`) for a model of the classes `known` that
    goes on with other data. Classes of the same name are the same, and of several with one name the first is
    the first, and so on; with `keep`, those that the data lack stay, else the data's are all. Images without
    labels are of no class, the null class; a model by which classes are not `used` keeps its own. Raises
    UserError where the data have another number of classes of a name that stays."""
    if not used:
        return list(known), np.zeros(max(len(names), 1), np.int64)
    if not names:
        return list(known), np.array([max(len(known), 1)]) if known else None
    counts, ours = Counter(names), Counter(known if keep else [])
    for name in counts.keys() & ours.keys():
        if counts[name] != ours[name]:
            raise UserError(
                f"{name!r} is the name of {ours[name]} of the model's classes and of {counts[name]} of the "
                "data's; expected names that tell classes apart"
            )
    numbers = {each: number for number, each in enumerate(told_apart(known if keep else []))}
    places = [numbers.setdefault(each, len(numbers)) for each in told_apart(names)]
    return [name for name, _ in numbers], np.array(places, np.int64)


def told_apart(names: Sequence[str]) -> list[tuple[str, int]]:
    """Each name with its number, from 0, among those that are the same."""
    seen = Counter[str]()
    found = []
    for name in names:
        found.append((name, seen[name]))
        seen[name] += 1
    return found


def named_classes(labels: Sequence[str]) -> Classes:
    """The classes of named labels, in alphabetical order."""
    composed = [same_name(label) for label in labels]
    names = sorted(set(composed))
    places = {name: place for place, name in enumerate(names)}
    return Classes(names, np.array([places[name] for name in composed], np.int64))


def numbered_classes(
    labels: Sequence[int] | np.ndarray, where: str, listed: Sequence[str] = (), list_name: str = ""
) -> Classes:
    """The classes of numbered labels, in the order of their numbers, named by `listed` or by the numbers
    themselves. Numbers without an image are not classes; a warning says so. Raises UserError for labels that
    are negative or at least MAX_LABEL, and for a list that ends before the highest label."""
    lowest, highest = min(labels), max(labels)
    if lowest < 0 or highest >= MAX_LABEL:
        wrong = str(lowest if lowest < 0 else highest)
        shown = wrong if len(wrong) <= 24 else f"{wrong[:12]}... ({len(wrong)} digits)"
        raise UserError(f"{where}: a label is {shown}; expected classes numbered from 0, below {MAX_LABEL}")
    numbers, places = np.unique(np.asarray(labels, np.int64), return_inverse=True)
    if listed and len(listed) <= highest:
        raise UserError(
            f"{list_name} names {len(listed)} classes, the labels of {where} go to {highest}; expected a "
            "line for each class: complete the file or remove it"
        )
    names = [str(listed[n]) if listed else str(n) for n in numbers.tolist()]
    if len(numbers) <= highest:  # a class that no image has would be sampled untrained
        shown = ", ".join(map(printable, names[:8])) + (", ..." if len(names) > 8 else "")
        warnings.warn(
            f"{where}: {len(numbers)} of the labels 0 to {highest} occur, and are the classes: {shown}",
            stacklevel=3,
        )
    return Classes(names, places.reshape(-1).astype(np.int64), numbers, listed)


def read_class_list(content: bytes, name: str) -> list[str]:
    """The class names in a text file, one per non-blank line, the first naming class 0. Raises UserError for
    text that is not UTF-8."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8 (byte {error.start} is {content[error.start]:#04x}); save it as UTF-8"
        ) from None
    return [same_name(line.strip()) for line in text.splitlines() if line.strip()]
