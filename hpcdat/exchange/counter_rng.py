"""Counter-based random numbers for the quantizer: a pure function of a key and a coordinate's index.

For 25 million numbers, torch's own generator takes as long as the rest of the quantizer, and it cannot
reproduce the numbers of, say, worker 3 in step 7 alone. Here a number is a keyed hash of its index (two
multiplications, three xor-shifts, as in Wellons' ``lowbias32``), computed in registers where it is used.

Correlated numbers (Suresh, Sun, Ro and Yu 2022) are u_i = (pi(i) + gamma_i) / M for worker i of M, where pi
is a random permutation that all workers know and gamma_i is uniform and worker i's own. Each u_i is uniform,
and exactly one lies in each stratum [k/M, (k + 1)/M). Here pi(i) = (p(i) + shift) mod M, with one permutation
p for a vector and a shift for each coordinate. A random permutation that is shifted is again a random
permutation, so a coordinate's numbers are distributed as if it had a pi of its own.

What follows for the rounding error of worker i in steps of its grid, e_i = 1 - f_i if u_i < f_i and otherwise
-f_i, where f_i is the fraction of a step that is rounded:

- e_i has mean 0 and variance f_i (1 - f_i), as with independent numbers, since u_i is uniform.
- No two errors are positively correlated, since a random permutation is negatively associated (Joag-Dev and
  Proschan 1983). So the variance of the sum is at most that of independent rounding, for any f_i and steps.
- Equal steps and equal f_i = f: the variance of the sum is r (1 - r), r the fraction of M f, at most 1/4
  instead of M f (1 - f).
- f_i independent and uniform, as with fine steps: M/12 + 1/(12 M) instead of M/6, if all steps are equal.

Suresh et al. bound the error by the deviation of the workers' numbers from their mean. For more than two
levels they draw the position of the grid at random too. It is fixed here, so their bound is not claimed.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIER_1 = 0x7FEB352D
_MULTIPLIER_2 = 0x846CA68B - 2**32
"""The multipliers of ``lowbias32``, as int32."""


def split_key(key: int, device: torch.device) -> Tensor:
    """The key of independent numbers: the lower 64 bits of a key as two int32 numbers, a tensor (2,)."""
    return torch.tensor(_halves(key), dtype=torch.int32).to(device, non_blocking=True)


def correlated_key(own: int, shift: int, place: int, workers: int, device: torch.device) -> Tensor:
    """The key of a worker's correlated numbers, a tensor int32 (6,).

    Args:
        own: key of gamma_i, 64 bits, another one on each worker.
        shift: key of the shifts, 64 bits, the same on all workers.
        place: p(i), from :func:`place_of`.
        workers: M.
        device: where the numbers are used.
    """
    parts = [*_halves(own), *_halves(shift), place, workers]
    return torch.tensor(parts, dtype=torch.int32).to(device, non_blocking=True)


def place_of(rank: int, workers: int, key: int) -> int:
    """p(rank) of a random permutation p of 0, ..., workers - 1 that is a function of the key."""
    numbers = uniform(workers, split_key(key, torch.device("cpu")))
    return int(numbers.argsort(stable=True)[rank])


def uniform(count: int, key: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), independent of each other: float32 (count,).

    Args:
        count: how many, at most 2^31.
        key: from :func:`split_key`: the numbers are multiples of 2^-24. Or from :func:`correlated_key`: each
            is correlated with the same number of other workers, and may be 1 where float32 rounds it up.
    """
    numbers = _hashes(count, key[:2])
    if len(key) == 2:
        return numbers
    place, workers = key[4], key[5].to(torch.float32)
    stratum = torch.floor(_hashes(count, key[2:4]) * workers) + place
    stratum = torch.where(stratum < workers, stratum, stratum - workers)
    return (stratum + numbers) / workers


def _halves(key: int) -> list[int]:
    """The lower 64 bits of a key as two signed numbers of 32 bits."""
    halves = [(key >> shift) & 0xFFFFFFFF for shift in (0, 32)]
    return [half - 2**32 if half >= 2**31 else half for half in halves]


def _hashes(count: int, key: Tensor) -> Tensor:
    """Hashes of 0, ..., count - 1 with a key, int32 (2,), as multiples of 2^-24."""
    x = torch.arange(count, dtype=torch.int32, device=key.device) + key[0]
    x = (x ^ _shift(x, 16)) * _MULTIPLIER_1
    x = (x ^ _shift(x, 15) ^ key[1]) * _MULTIPLIER_2
    x = x ^ _shift(x, 16)
    return _shift(x, 8).to(torch.float32) * 2.0**-24


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's ``>>`` of int32 is arithmetic."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)
