"""Damage to what has a format of its own: members of archives that lie, arrays that declare what is not
there, pictures that are none, pickles that would run something."""

from __future__ import annotations

import io
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from typing import Any

from benchmarks.malformed.values import Mutation, damage_bytes, damage_json

# --- tar ------------------------------------------------------------------------------------------------

_TYPES = (b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S", b"V", b"\0")
_NAMES = (
    b"../../evil.png",
    b"/tmp/evil.png",
    b"",
    b".",
    b"\xff\xfe.png",
    b"a" * 99,
    b"0.png\0.cls",
    b"\x1b[2J.png",
    b"0",
    b"CON.cls",
    b".png",
    b"x.png/",
    b"0.json",
    b"0.txt",
    b"0.cls",
)
_SIZES = (
    b"-0000000001\0",
    b"77777777777\0",
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b"\x80" + b"\0" * 10 + b"\1",
    b"99999999999\0",
    b"            ",
    b"0x000001000\0",
    b"00000000000\0",
    b"00000010000\0",
)


def damage_tar(content: bytes, rng: random.Random) -> bytes:
    """A member whose header says another size, type, name or checksum, or whose content is another."""
    if rng.random() < 0.25:
        return damage_bytes(content, rng)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        member = rng.choice(tar.getmembers())
    data, header = bytearray(content), member.offset
    match rng.randrange(5):
        case 0:
            data[header + 124 : header + 136] = rng.choice(_SIZES)
        case 1:
            data[header + 156 : header + 157] = rng.choice(_TYPES)
            data[header + 157 : header + 257] = rng.choice((b"/etc/passwd", b"../..", b"0.png", b"")).ljust(
                100, b"\0"
            )
        case 2:
            data[header : header + 100] = rng.choice(_NAMES).ljust(100, b"\0")
        case 3:
            place = header + rng.randrange(512)
            data[place : place + 1] = rng.randbytes(1)
        case 4:
            start, size = member.offset_data, member.size
            label = rng.choice(
                (b"9" * 60, b"-1", b"nan", b"", b"1e9", b"\xff", b"999999", b'{"label": []}', b"[" * 500)
            )
            data[start : start + size] = label[:size].ljust(size, rng.choice((b" ", b"0", b"\0")))
    if rng.random() < 0.8:  # else the checksum tells
        data[header + 148 : header + 156] = b" " * 8
        data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
    return bytes(data)


# --- arrays ---------------------------------------------------------------------------------------------


def npy(description: str, shape: str, body: bytes) -> bytes:
    """An array file with any header."""
    text = f"{{'descr': {description}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


_ARRAYS = (
    ("'|u1'", "(1000000, 1000, 1000, 3)"),
    ("'|u1'", "(9223372036854775807, 2, 2, 3)"),
    ("'|u1'", "(-1, 8, 8, 3)"),
    ("'|u1'", "(0, 8, 8, 3)"),
    ("'|u1'", "(8, 0, 8, 3)"),
    ("'|u1'", "()"),
    ("'|u1'", "(8,)"),
    ("'|O'", "(2,)"),
    ("'<f8'", "(8, 8, 8, 3)"),
    ("'<U100000'", "(100000,)"),
    ("[('a', '<f8')]", "(8,)"),
    ("'<c16'", "(8, 8, 8, 3)"),
    ("'|V1000000000'", "(8,)"),
    ("'|u1'", "(8, 8, 8, 4)"),
    ("'|b1'", "(8, 8, 8, 3)"),
    ("'<M8[s]'", "(8,)"),
    ("__import__('os')", "(1,)"),
)


def damage_npz(content: bytes, rng: random.Random) -> bytes:
    """An array that declares another shape or type, a bomb, a member missing, doubled or renamed."""
    if rng.random() < 0.35:
        return damage_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    match rng.randrange(4):
        case 0:
            members[name] = npy(*rng.choice(_ARRAYS), rng.randbytes(200))
        case 1:
            del members[name]
        case 2:
            members[name] = damage_bytes(members[name], rng)
        case 3:
            members[rng.choice(("images.npy", "labels.npy", "arr_0.npy", "mu.npy", "features.npy"))] = npy(
                "'|u1'", "(50000, 100, 100, 3)", bytes(10**6)
            )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return packed.getvalue()


def damage_npy(content: bytes, rng: random.Random) -> bytes:
    """The same of one array."""
    if rng.random() < 0.5:
        return damage_bytes(content, rng)
    return npy(*rng.choice(_ARRAYS), content[128:])


def damage_safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header damaged as JSON, its length, or the bytes."""
    if rng.random() < 0.3:
        return damage_bytes(content, rng)
    (length,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.2:
        return (
            struct.pack("<Q", rng.choice((0, 1, length - 1, length + 1, 2**40, 2**63, 2**64 - 1)))
            + header
            + body
        )
    if rng.random() < 0.2:  # numbers that are none
        place = rng.randrange(0, max(len(body) - 4, 1), 4)
        fill = rng.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f"))
        return content[: 8 + length] + body[:place] + fill + body[place + 4 :]
    header = damage_json(header, rng)
    return struct.pack("<Q", len(header)) + header + body


# --- pictures -------------------------------------------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(MARKER) (w) file closefile\nshowpage\n%%EOF\n"
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, body: bytes = b"") -> bytes:
    """A PNG that says so of its size."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(chunks)
        + _chunk(b"IDAT", zlib.compress(body))
        + _chunk(b"IEND", b"")
    )


def damage_picture(content: bytes, rng: random.Random) -> bytes:
    """Bytes, sizes that lie, chunks that unpack to much, other formats under this name."""
    if rng.random() < 0.6:
        return damage_bytes(content, rng)
    bomb = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(30 * 10**6)))
    return rng.choice(
        (
            png(100_000, 100_000),
            png(2**31 - 1, 1),
            png(0, 0),
            png(170_000_000, 1),
            png(8, 8, bomb, body=bytes(200)),
            png(20_000, 20_000, body=bytes(10**6)),
            EPS,
            SVG,
            b"MZ" + content,
            b"P6\n999999 999999\n255\n",
            b"P5 8 8 65535 ",
            b"GIF89a" + rng.randbytes(50),
            b"%PDF-1.4\n" + content,
            b"\xff\xd8\xff\xe0" + rng.randbytes(300),
            b"RIFF\xff\xff\xff\x7fWEBPVP8L" + rng.randbytes(50),
            b"II*\0\x08\0\0\0" + rng.randbytes(400),
            b"BM" + rng.randbytes(60),
        )
    )


# --- pickles --------------------------------------------------------------------------------------------


class Hostile:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.marker, "w")


def hostile_pickles(marker: str) -> Mutation:
    """Damage to a torch checkpoint; those with a pickle that runs something would make the file `marker`."""

    def damage(content: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            return damage_bytes(content, rng)
        payload = pickle.dumps(
            rng.choice(
                (
                    [Hostile(marker)],
                    {"ema": Hostile(marker)},
                    {"model": {"x_embedder.weight": Hostile(marker)}},
                )
            ),
            protocol=rng.choice((2, 4)),
        )
        if rng.random() < 0.3:
            return payload
        packed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(packed, "w") as target:
            for name in source.namelist():
                data = source.read(name)
                if name.endswith("data.pkl"):
                    data = payload if rng.random() < 0.7 else damage_bytes(data, rng)
                elif rng.random() < 0.1:
                    data = damage_bytes(data, rng)
                target.writestr(name, data)
        return packed.getvalue()

    return damage
