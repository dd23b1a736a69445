"""Grouping the members of a shard into samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from causalfusion.data.names import IMAGE_SUFFIXES, is_hidden
from causalfusion.data.tar import Member

_FIELDS = {"cls": "label", "txt": "text", "json": "record"}


@dataclass
class Sample:
    """The members that share a key."""

    images: dict[str, Member] = field(default_factory=dict)
    """Image members by suffix."""
    label: Member | None = None
    text: Member | None = None
    """Text with a caption on each line."""
    record: Member | None = None
    """JSON. Captions in it override those of `text`; a label in it is used where `label` is None."""

    def add(self, suffix: str, member: Member) -> None:
        if suffix in _FIELDS:
            setattr(self, _FIELDS[suffix], member)
        else:
            self.images[suffix] = member

    @property
    def image(self) -> Member:
        return next(iter(self.images.values()))


def group(members: Iterable[Member], image_suffix: str, left_out: Counter[str]) -> list[Sample]:
    """The samples that have an image, in the order of their keys. Unused members are counted by kind in
    `left_out`.

    A key ends at the first dot of the base name, as in WebDataset: beside 1.jpg, 1.seg.png is not used. If a
    key has no image but such members, as photo.v1.jpg and photo.v2.jpg, each is a sample whose key ends at
    the last dot.
    """
    samples: dict[str, Sample] = {}
    dotted: list[tuple[str, str, str, Member]] = []
    for member in members:
        folder, _, base = member.name.rpartition("/")
        if member.size < 0:
            left_out["link or device"] += 1
            continue
        if any(is_hidden(part) for part in member.name.split("/") if part not in (".", "..")):
            left_out["hidden file"] += 1
            continue
        stem, _, suffix = base.partition(".")
        key, suffix = f"{folder}/{stem}", suffix.lower()
        last = suffix.rpartition(".")[2]
        if suffix in _FIELDS or _is_image(suffix, image_suffix):
            samples.setdefault(key, Sample()).add(suffix, member)
        elif "." in suffix and not image_suffix and (last in _FIELDS or last in IMAGE_SUFFIXES):
            dotted.append((key, f"{folder}/{base[: -len(last) - 1]}", last, member))
        else:
            left_out[f".{suffix}" if suffix else "file without an ending"] += 1
    _add_dotted(samples, dotted, left_out)
    whole = []
    for sample in samples.values():
        if sample.images:
            whole.append(_with_one_image(sample, left_out))
        else:
            left_out["key without an image"] += 1
    return whole


def _is_image(suffix: str, image_suffix: str) -> bool:
    return suffix == image_suffix if image_suffix else suffix in IMAGE_SUFFIXES


def _add_dotted(
    samples: dict[str, Sample], dotted: list[tuple[str, str, str, Member]], left_out: Counter[str]
) -> None:
    """Make members such as photo.v1.jpg samples, with the label and texts of key photo where they have none
    of their own. Those of a key that has an image are not used."""
    own: dict[str, tuple[str, Sample]] = {}
    for key, own_key, last, member in dotted:
        if key in samples and samples[key].images:
            left_out["." + member.name.rpartition("/")[2].partition(".")[2].lower()] += 1
        else:
            own.setdefault(own_key, (key, Sample()))[1].add(last, member)
    used = set()
    for own_key, (key, sample) in own.items():
        shared = samples.get(key)
        if shared is not None and sample.images:
            used.add(key)
            sample.label = sample.label or shared.label
            sample.text = sample.text or shared.text
            sample.record = sample.record or shared.record
        samples[own_key] = sample
    for key in used:
        if not samples[key].images:
            del samples[key]


def _with_one_image(sample: Sample, left_out: Counter[str]) -> Sample:
    if len(sample.images) == 1:
        return sample
    used, *others = (suffix for suffix in IMAGE_SUFFIXES if suffix in sample.images)
    for suffix in others:
        left_out[f".{suffix} beside a .{used} of the same key (data.image_suffix says which is used)"] += 1
    return replace(sample, images={used: sample.images[used]})
