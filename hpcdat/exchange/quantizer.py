"""The randomised quantizer of the DAT paper, (A5) and (A6): unbiased codes of few bits.

A coordinate g of a block with norm ||g|| lies between two of the levels l/s, l = -s..s, of its norm;
it is rounded to the upper one with the probability that makes the mean right:

    Q(g) = ||g|| xi,  xi = (l + 1)/s with probability s g/||g|| - l, else l/s      (A5), (A6)

(The paper rounds |g| and then restores the sign, which gives the same distribution.) Here b counts the
sign: with s = 2^(b-1) - 1 levels of each sign, 127 at 8 bits, sign and level fit in b bits. With one bit
there is no zero: the levels are -1 and 1.

The paper's b does not count the sign: its Appendix 1 has s = 2^b and 32 + d + bd bits for d coordinates,
although the magnitudes 0..s, 2^b + 1 of them, do not fit in b bits. Its Table 4 counts "8 bits" as a
quarter of float32's bytes, so there they include the sign; how many levels that left, it does not say. The
authors' public code has b = 7 and s = 127, a byte with the sign: the levels of 8 bits here.

A block of zeros decodes to exact zeros, a block of denormal numbers to its values, and a block that contains
NaN or infinity to non-finite numbers, on every worker that decodes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from hpcdat.exchange.counter_rng import uniform


@dataclass(frozen=True)
class Quantizer:
    """Codes of b bits on a grid that is symmetric about zero.

    Attributes:
        bits: b, 1 to 8 or 16.
        norm: of a block: ``max``, or the paper's ``l2``, with which most levels are rarely used, since a
            coordinate is seldom as large as the norm of its block.
        block: number of coordinates that share a norm; None: all coordinates of a call.
        levels: s, if smaller than b bits allow.
        rotation: whether codes are those of gradients whose blocks are rotated, see
            :mod:`~hpcdat.exchange.rotation`; the codec rotates.
        rounding: of the workers' codes, with random numbers that are independent or correlated, see
            :mod:`~hpcdat.exchange.counter_rng`. Both are unbiased, and take the same bits.
    """

    bits: int
    norm: Literal["max", "l2"] = "max"
    block: int | None = 512
    levels: int | None = None
    rounding: Literal["independent", "correlated"] = "independent"
    rotation: Literal["none", "hadamard"] = "none"

    @property
    def s(self) -> float:
        """Half the width of the grid, in steps; the codes are 0, 1, ..., 2 s."""
        return self.levels or (2 ** (self.bits - 1) - 1 if self.bits > 1 else 0.5)

    @property
    def largest(self) -> int:
        """The largest code, 2 s."""
        return int(2 * self.s)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the codes: uint8, or int32 for 16 bits."""
        return torch.uint8 if self.bits <= 8 else torch.int32

    def blocks(self, count: int) -> int:
        """Number of blocks, each with one norm, of ``count`` coordinates."""
        return 1 if self.block is None else -(-count // self.block)

    @property
    def sums_by_halves(self) -> bool:
        """Whether l2 norms are sums in an order that is the same on all devices: blocks of a power of two."""
        return self.block is not None and self.block & (self.block - 1) == 0

    def norms(self, x: Tensor) -> Tensor:
        """The norm of every block: (..., n) float32 to (..., blocks(n)).

        With ``block=None`` all rows of a matrix have the same norm. The same bits on all devices, unless
        squares are summed and a block is no power of two.
        """
        if self.block is None:
            whole = _norm(x.flatten(), self.norm)
            return whole.expand(*x.shape[:-1], 1)
        if self.norm == "l2" and self.sums_by_halves:
            return _l2_by_halves(self._in_blocks(x))
        return _norm(self._in_blocks(x), self.norm)

    def encode(self, x: Tensor, norms: Tensor, key: Tensor) -> Tensor:
        """The codes of (..., n) float32 numbers.

        Args:
            x: the numbers to round, no larger in magnitude than their norm.
            norms: (..., blocks(n)), those of x or larger.
            key: of the random numbers, int32 (2,) or (6,).
        """
        blocks = self._in_blocks(x)
        codes = round_at_random(blocks, norms[..., None], key, self.s).to(self.dtype)
        return codes.flatten(-2)[..., : x.shape[-1]]

    def decode(self, codes: Tensor, norms: Tensor, workers: int = 1) -> Tensor:
        """The numbers that codes represent, float32 (..., n).

        Args:
            codes: (..., n), or the sum of the codes of several workers.
            norms: (..., blocks(n)).
            workers: number of summands.
        """
        blocks = self._in_blocks(codes)
        return from_codes(blocks, norms[..., None], self.s, workers).flatten(-2)[..., : codes.shape[-1]]

    def _in_blocks(self, x: Tensor) -> Tensor:
        """(..., n) as (..., blocks, block), padded with zeros; one block of n if n is less than a block."""
        count = max(x.shape[-1], 1)
        size = min(self.block or count, count)
        missing = -x.shape[-1] % size
        blocks: Tensor = (pad(x, (0, missing)) if missing else x).unflatten(-1, (-1, size))
        return blocks


def _norm(x: Tensor, name: str) -> Tensor:
    """The norm over the last dimension; not finite if an element is not."""
    if name == "max":
        # amax fails on an empty dimension.
        return x.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return norm


def _l2_by_halves(x: Tensor) -> Tensor:
    """The l2 norm over the last dimension: halves of the squares are added until one is left."""
    squares = x * x
    width = 1 << (x.shape[-1] - 1).bit_length()
    if missing := width - x.shape[-1]:
        squares = pad(squares, (0, missing))
    while width > 1:
        width //= 2
        squares = squares[..., :width] + squares[..., width:]
    # In float64, since torch's float32 square root is not correctly rounded on every CPU.
    return squares[..., 0].to(torch.float64).sqrt().to(torch.float32)


def round_at_random(x: Tensor, norms: Tensor, key: Tensor, s: float) -> Tensor:
    """(A6): stochastic rounding to the grid point below each number or the one above, without bias.

    Args:
        x: float32.
        norms: broadcast to x.
        key: of the random numbers.
        s: half the width of the grid, in steps.

    Returns:
        Codes 0, ..., 2 s, float32.
    """
    # A norm of zero means that all numbers are zero: x / inf = 0.
    scale = torch.where(norms > 0, norms, torch.inf)
    # Dividing first: s / scale would overflow for a denormal norm.
    place = x / scale * s
    if s == 0.5:
        place = place + 0.5
    below = torch.floor(place)
    up = uniform(x.numel(), key).view(x.shape) < place - below
    code = below + up.to(torch.float32)
    if s != 0.5:
        code = code + s
    # NaN is not above 0 and becomes 0: as an integer, it could be any.
    return torch.where(code > 0, code, 0.0).clamp(max=2 * s)


def from_codes(codes: Tensor, norms: Tensor, s: float, workers: int) -> Tensor:
    """(A5): norm times level, for sums of the codes of ``workers`` workers."""
    # By a tensor: on a GPU, torch multiplies by 1 / s if s is a number.
    return (codes.to(torch.float32) - workers * s) * (norms / torch.full_like(norms, s))
