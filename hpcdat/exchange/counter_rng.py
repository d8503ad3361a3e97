"""Counter-based random numbers for the quantizer: a pure function of a key and a coordinate's index.

For 25 million numbers, torch's own generator takes as long as the rest of the quantizer, and it cannot
reproduce the numbers of, say, worker 3 in step 7 alone. Here a number is a keyed hash of its index (two
multiplications, three xor-shifts, as in Wellons' ``lowbias32``), computed in registers where it is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIER_1 = 0x7FEB352D
_MULTIPLIER_2 = 0x846CA68B - 2**32
"""The multipliers of ``lowbias32``, as int32."""


def split_key(key: int, device: torch.device) -> Tensor:
    """The lower 64 bits of a key as two int32 numbers, a tensor (2,)."""
    halves = [(key >> shift) & 0xFFFFFFFF for shift in (0, 32)]
    signed = [half - 2**32 if half >= 2**31 else half for half in halves]
    return torch.tensor(signed, dtype=torch.int32, device=device)


def uniform(count: int, key: Tensor) -> Tensor:
    """Independent uniform numbers in [0, 1), multiples of 2^-24: float32 (count,).

    Args:
        count: how many, at most 2^31.
        key: int32 (2,), from :func:`split_key`.
    """
    x = torch.arange(count, dtype=torch.int32, device=key.device) + key[0]
    x = (x ^ _shift(x, 16)) * _MULTIPLIER_1
    x = (x ^ _shift(x, 15) ^ key[1]) * _MULTIPLIER_2
    x = x ^ _shift(x, 16)
    return _shift(x, 8).to(torch.float32) * 2.0**-24


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's ``>>`` of int32 is arithmetic."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)
