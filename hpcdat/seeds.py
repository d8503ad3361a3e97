"""Independent streams of random numbers from the job's one seed."""

from __future__ import annotations

import hashlib


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """Derive a 63-bit seed for one purpose and position, the same on every machine.

    Args:
        seed: the job's seed.
        purpose: what is drawn, such as ``"attack"``.
        numbers: the position: epoch, step, rank, as the purpose needs.
    """
    text = "/".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
