"""Images by path, which may lead into a tar: `photos.tar/a/1.png` is its member `a/1.png`."""

from __future__ import annotations

import os
from pathlib import Path

from causalfusion.data.names import Listing
from causalfusion.data.picture import MAX_FILE, read_file
from causalfusion.data.tar import DamagedTar, Member, list_members
from causalfusion.errors import UserError, printable


class ImagePlaces:
    """Finds files and members, and reads those that were found. Each folder and each tar is listed once."""

    def __init__(self) -> None:
        self._listing, self._tars = Listing(), dict[str, dict[str, Member]]()
        self._odd_files = dict[str, str]()
        """Files whose name on disk has another Unicode form (NFD for NFC), by the path that was asked for."""

    def missing(self, path: str) -> str:
        """A few words, if there is nothing at this path; empty if there is. Raises UserError for a tar that
        cannot be read."""
        actual = self._listing.find(path)
        if actual is not None:
            if actual != path:
                self._odd_files[path] = actual
            return ""
        tar, inside = _tar_of(path)
        if not tar:
            return f"no image file {printable(path)}"
        return "" if inside in self._members(tar) else f"no member {printable(inside)} in {printable(tar)}"

    def file_of(self, path: str) -> str:
        """The file on disk: that of the image, or the tar that has it."""
        return self._odd_files.get(path) or _tar_of(path)[0] or path

    def read(self, path: str) -> bytes:
        """The bytes of an image. Raises OSError."""
        if path in self._odd_files or os.path.isfile(path):
            return read_file(self._odd_files.get(path, path))
        tar, inside = _tar_of(path)
        member = self._members(tar).get(inside) if tar else None
        if member is None:
            raise FileNotFoundError(2, "it is gone", path)
        if member.size > MAX_FILE:
            raise OSError(f"it has {member.size:,} bytes; expected at most {MAX_FILE:,}")
        with open(tar, "rb", buffering=0) as stream:
            return os.pread(stream.fileno(), member.size, member.offset)

    def _members(self, tar: str) -> dict[str, Member]:
        if tar not in self._tars:
            try:
                members = list_members(Path(tar))
            except (DamagedTar, OSError) as error:
                raise UserError(f"{printable(tar)} cannot be read ({error}); pack it again") from error
            self._tars[tar] = {os.path.normpath(m.name): m for m in members if m.size >= 0}
        return self._tars[tar]


def _tar_of(path: str) -> tuple[str, str]:
    """(the tar that a path leads into, the name of its member); empty without one."""
    parts = path.split("/")
    for end in range(1, len(parts)):
        tar = "/".join(parts[:end])
        if tar.lower().endswith(".tar") and os.path.isfile(tar):
            return tar, os.path.normpath("/".join(parts[end:]))
    return "", ""
