"""Packing of codes: of fewer than eight bits into bytes, and into lanes of words that can be added.

Both split a vector into equal, contiguous chunks; word i holds coordinate i of every chunk. So all
operations run on contiguous memory, and no element moves within a register.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


def packed_bytes(count: int, bits: int) -> int:
    """Bytes into which :func:`pack` packs ``count`` codes of 1 to 8 bits."""
    chunks = chunks_of(bits)
    return -(-count // chunks) * chunks * bits // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (..., n), uint8 below 2^bits, as bytes (..., packed_bytes(n, bits)).

    Args:
        codes: packed along the last dimension.
        bits: 1 to 8.
    """
    if bits == 8:
        return codes
    chunks = chunks_of(bits)
    parts = _in_chunks(codes, chunks)
    if chunks * bits == 8:
        return _joined(parts, bits)
    word = _joined([part.to(torch.int64) for part in parts], bits)
    return torch.cat([((word >> (8 * byte)) & 0xFF).to(torch.uint8) for byte in range(bits)], -1)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of :func:`pack`: codes (..., count), uint8."""
    if bits == 8:
        return packed
    chunks = chunks_of(bits)
    if chunks * bits == 8:
        word = packed
    else:
        word = _joined([part.to(torch.int64) for part in packed.chunk(bits, -1)], 8)
    mask = (1 << bits) - 1
    parts = [((word >> (bits * chunk)) & mask).to(torch.uint8) for chunk in range(chunks)]
    return torch.cat(parts, -1)[..., :count]


def chunks_of(bits: int) -> int:
    """Number of chunks: the codes in a byte or, where none fit exactly, eight codes in ``bits`` bytes."""
    return 8 // bits if bits in (1, 2, 4, 8) else 8


def _in_chunks(codes: Tensor, chunks: int) -> list[Tensor]:
    missing = -codes.shape[-1] % chunks
    return list((pad(codes, (0, missing)) if missing else codes).chunk(chunks, -1))


def _joined(parts: list[Tensor], bits: int) -> Tensor:
    word = parts[0]
    for place, part in enumerate(parts[1:], start=1):
        word = word | (part << (bits * place))
    return word


@dataclass(frozen=True)
class Lanes:
    """A layout of non-negative codes in the lanes of integer words, so that adding words adds codes.

    A lane of w bits holds sums up to 2^w - 1, and the codes of all workers together do not exceed that: no
    lane carries into the next, in any order of addition.

    Attributes:
        width: bits of a lane.
        word: dtype, int32 or int64, which Horovod's all-reduce can add.
    """

    width: int
    word: torch.dtype

    @staticmethod
    def for_sums_up_to(largest: int) -> Lanes:
        """The lanes for sums up to ``largest`` < 2^31, in the word that takes the fewest bits per code."""
        width = largest.bit_length()
        candidates = [Lanes(width, word) for word in (torch.int32, torch.int64) if width <= 8 * word.itemsize]
        return min(candidates, key=lambda lanes: lanes.bits_per_code)

    @property
    def count(self) -> int:
        """Number of lanes in a word."""
        return 8 * self.word.itemsize // self.width

    @property
    def bits_per_code(self) -> float:
        """Bits on the wire per code."""
        return 8 * self.word.itemsize / self.count

    def pack(self, codes: Tensor) -> Tensor:
        """Codes (n,), non-negative integers, as words (ceil(n / count),)."""
        if self.is_view:
            missing = -len(codes) % self.count
            narrow = codes.to(torch.uint8)
            return (pad(narrow, (0, missing)) if missing else narrow).contiguous().view(self.word)
        return _joined([part.to(self.word) for part in _in_chunks(codes, self.count)], self.width)

    def unpack(self, words: Tensor, count: int) -> Tensor:
        """The codes, or their sums, (count,): uint8 from lanes of 8 bits, otherwise int32."""
        if self.is_view:
            return words.view(torch.uint8)[:count]
        mask = (1 << self.width) - 1
        parts = [(words >> (self.width * lane)) & mask for lane in range(self.count)]
        return torch.cat([part.to(torch.int32) for part in parts])[:count]

    @property
    def is_view(self) -> bool:
        """Whether packing is a view: lanes of 8 bits are the bytes of the word."""
        return self.width == 8
