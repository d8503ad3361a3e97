"""Random numbers for the quantizer: a pure function of a key and a coordinate's place.

torch's own generator takes as long for 25 million numbers as all the rest of the quantizer, and
cannot be told to give worker 3 of step 7 the same numbers again. Here a number is a keyed hash of
its index (two multiplications, three xor-shifts, as in Wellons' ``lowbias32``), computed in registers
where it is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

_M1 = 0x7FEB352D
_M2 = 0x846CA68B - 2**32


def split_key(key: int, device: torch.device) -> Tensor:
    """The lower 64 bits of a key as two int32 numbers, a tensor (2,)."""
    halves = [(key >> shift) & 0xFFFFFFFF for shift in (0, 32)]
    signed = [half - 2**32 if half >= 2**31 else half for half in halves]
    return torch.tensor(signed, dtype=torch.int32, device=device)


def uniform(count: int, key: Tensor) -> Tensor:
    """Independent uniform numbers in [0, 1), multiples of 2^-24: float32 (count,).

    Args:
        count: how many, at most 2^31.
        key: int32 (2,), of :func:`split_key`.
    """
    x = torch.arange(count, dtype=torch.int32, device=key.device) + key[0]
    x = (x ^ _shift(x, 16)) * _M1
    x = (x ^ _shift(x, 15) ^ key[1]) * _M2
    x = x ^ _shift(x, 16)
    return _shift(x, 8).to(torch.float32) * 2.0**-24


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's of int32 copies the sign."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)
