"""The randomised Hadamard rotation of blocks (Suresh, Yu, Kumar and McMahan 2017).

    R x = H D x / sqrt(n),  the inverse D H / sqrt(n)

for a block of n coordinates, a power of two, with the Hadamard matrix H (symmetric, entries 1 and -1,
H H = n I) and a diagonal D of random signs. R is orthogonal: errors of rotated coordinates have the same
squared sum after the rotation back. Each rotated coordinate is a sum of all of the block, so that few large
coordinates, which set a block's largest magnitude and thereby its steps, are spread over it.

The signs are drawn once for all, so that no key is needed to decode a message. Suresh et al.'s bounds, which
are over random signs, hold for gradients that do not depend on these signs.

Only sums and differences of two numbers are taken, in a fixed order, and one product at the end. So all
workers rotate the same codes back to the same bits, whatever their processors, unlike with a product of
matrices.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hpcdat.exchange.counter_rng import split_key, uniform
from hpcdat.seeds import derive


def rotate(x: Tensor, block: int) -> Tensor:
    """R of every block.

    Args:
        x: (..., n) float32; an incomplete last block stays as it is.
        block: coordinates of a block, a power of two.
    """
    whole = x.shape[-1] // block * block
    signs = _signs(block, x.device)
    rotated = _hadamard(x[..., :whole].unflatten(-1, (-1, block)) * signs) * block**-0.5
    return torch.cat([rotated.flatten(-2), x[..., whole:]], -1)


def rotate_back(x: Tensor, block: int) -> Tensor:
    """The inverse of :func:`rotate`."""
    whole = x.shape[-1] // block * block
    signs = _signs(block, x.device) * block**-0.5
    rotated = _hadamard(x[..., :whole].unflatten(-1, (-1, block)).clone()) * signs
    return torch.cat([rotated.flatten(-2), x[..., whole:]], -1)


@cache
def _signs(block: int, device: torch.device) -> Tensor:
    """D: as many signs, 1 or -1."""
    numbers = uniform(block, split_key(derive(0, "signs of a rotation"), device))
    return torch.where(numbers < 0.5, -1.0, 1.0)


def _hadamard(x: Tensor) -> Tensor:
    """H x over the last dimension of a contiguous tensor, which is overwritten: log2(n) passes."""
    other, width = torch.empty_like(x), 1
    while width < x.shape[-1]:
        a, b = x.unflatten(-1, (-1, 2, width)).unbind(-2)
        total, difference = other.unflatten(-1, (-1, 2, width)).unbind(-2)
        torch.add(a, b, out=total)
        torch.sub(a, b, out=difference)
        x, other, width = other, x, 2 * width
    return x
