"""One seed in the job, many independent streams of random numbers."""

from __future__ import annotations

import hashlib


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """A seed of 63 bits for one purpose and place, the same on every machine.

    Args:
        seed: the job's seed.
        purpose: what is drawn, such as ``"attack"``.
        numbers: where: epoch, step, rank, as the purpose needs.
    """
    text = "/".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
