"""Randomness by address: a generator is a function of (seed, purpose, position), never of what ran before.

This is what makes a resumed run the same run, and image i of a generation run the same image at any
batch size and on any number of processes.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *address: int | str) -> int:
    """A 63-bit seed from a run's seed and an address such as ("noise", sample_index)."""
    text = "/".join(str(part) for part in (seed, *address))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def derive_generator(seed: int, *address: int | str) -> torch.Generator:
    """A CPU generator at that address. Draw on the CPU, then move: the same numbers on every device."""
    return torch.Generator().manual_seed(derive_seed(seed, *address))
