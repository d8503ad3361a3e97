"""The codec as Triton kernels: each number is read once to encode it, and written once to decode it.

The kernels give the same bits as the eager code of :mod:`~hpcdat.exchange.quantizer` and
:mod:`~hpcdat.exchange.bit_packing` on a CPU, but for the payload of a NaN: random numbers are the same
function of key and index, additions are in the same order, divisions and square roots are rounded to nearest,
products and sums are rounded separately (no fused multiply-add), and denormal numbers are kept.

Bytes per number that cross the GPU's memory, at 8 bits in blocks of 512:

======================= ============== ============= =============
kernel                  read           written       together
======================= ============== ============= =============
encode                  4              1 + 4/512     5.01
decode                  1 + 4/512      4             5.01
decode_sum of M         M (1 + 4/512)  4             4 + 1.01 M
norms                   4              4/512         4.01
to_lanes                4 + 4/512      a lane        4.01 + a lane
from_lanes              a lane + 4/512 4             4.01 + a lane
======================= ============== ============= =============

So encoding and decoding move 10 bytes, which no codec of these messages can avoid, and cannot be faster than
copies of as many bytes. Encoding takes about 50 instructions per number on compute capability 9.0, a third of
them for the division. On an H200 both together took 2.8 times as long as such copies; the reason is unknown.

With fewer than 8 bits, a byte holds numbers from several places of the vector, and in lanes a word does.
Where these places are not beginnings of blocks, ``encode`` also reads what is missing of the blocks, for
their norms. These are numbers of the next program, so that at best they come from the cache.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from hpcdat.exchange import triton_kernels
from hpcdat.exchange.bit_packing import Lanes, chunks_of
from hpcdat.exchange.quantizer import Quantizer

NUMBERS_PER_PROGRAM = 2048
"""In whole blocks; a larger block has a program of its own."""
AS_WRITTEN = {"enable_fp_fusion": False, "enable_reflect_ftz": False}
"""Launch options: no fused multiply-add, and no function that takes denormal numbers for zeros."""


@dataclass(frozen=True)
class _Layout:
    """Codes in memory: word i holds coordinate i of every one of some equal, contiguous chunks.

    Attributes:
        stored: dtype in memory.
        word: dtype in registers.
        width: bits of a code in a word.
        chunks: codes in a word.
        planes: bytes of a word, if they are stored apart, all first bytes first; otherwise 1.
        offset: what is subtracted from the codes.
        after_norms: whether they belong to a message, which begins with the norms.
    """

    stored: torch.dtype
    word: Any
    width: int
    chunks: int
    planes: int = 1
    offset: int = 0
    after_norms: bool = False

    @staticmethod
    def of_message(bits: int) -> _Layout:
        """As :func:`~hpcdat.exchange.bit_packing.pack`; 16 bits as int16."""
        if bits == 16:
            return _Layout(torch.int16, tl.int32, 16, 1, offset=2**15, after_norms=True)
        chunks = chunks_of(bits)
        planes = chunks * bits // 8
        word = tl.int64 if planes > 1 else tl.int32
        return _Layout(torch.uint8, word, bits, chunks, planes, after_norms=True)

    @staticmethod
    def of_lanes(lanes: Lanes) -> _Layout:
        """As :class:`~hpcdat.exchange.bit_packing.Lanes`."""
        if lanes.is_view:
            return _Layout(torch.uint8, tl.int32, 8, 1)
        word = tl.int32 if lanes.word == torch.int32 else tl.int64
        return _Layout(lanes.word, word, lanes.width, lanes.count)

    def chunk(self, count: int) -> int:
        """Length of a chunk."""
        return -(-count // self.chunks)

    @property
    def units(self) -> int:
        """How many are stored in four bytes; 1 of eight bytes."""
        return max(1, 4 // self.stored.itemsize)

    def constants(self, count: int, block: int) -> dict[str, Any]:
        """What the kernels are compiled for."""
        return {
            "ALIGNED": self.chunks == 1 or self.chunk(count) % block == 0,
            "UNITS": self.units,
            "WORD": self.word,
            "WIDTH": self.width,
            "CHUNKS": self.chunks,
            "PLANES": self.planes,
            "OFFSET": self.offset,
        }


class TritonCodec:
    """What :class:`~hpcdat.exchange.codecs.Quantized` computes, without the rotation.

    Args:
        quantizer: with a block that the kernels :func:`can_hold`.

    Raises:
        ValueError: it has another block.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        if not can_hold(quantizer.block):
            raise ValueError(
                f"the kernels need a block of a power of two from 16 to 8192, not {quantizer.block}"
            )
        self.quantizer, self._block = quantizer, quantizer.block or 0
        self._message = _Layout.of_message(quantizer.bits)
        self._tile = max(1, NUMBERS_PER_PROGRAM // self._block)
        # Of 32 threads, each of which holds 16 numbers.
        warps = self._tile * self._block // 512
        self._tiling = {"TILE": self._tile, "BLOCK": self._block, "num_warps": warps} | AS_WRITTEN
        self._of_norms = {"L2": quantizer.norm == "l2", "HALVINGS": self._block.bit_length() - 1}
        self._s = float(quantizer.s)

    def norms(self, x: Tensor) -> Tensor:
        """The norms (..., blocks) of numbers (..., n), float32."""
        count = x.shape[-1]
        blocks = self.quantizer.blocks(count)
        norms = x.new_empty(*x.shape[:-1], blocks)
        with _on_its_device(x):
            triton_kernels.norms[self._grid(count, x.numel() // count)](
                x.contiguous(), norms, count, blocks, **self._of_norms, **self._tiling
            )
        return norms

    def encode(self, x: Tensor, key: Tensor, message_bytes: int) -> Tensor:
        """Messages, uint8 (rows, message_bytes), of numbers (rows, n), float32."""
        message = torch.empty(len(x), message_bytes, dtype=torch.uint8, device=x.device)
        self._encode(x, message.view(torch.float32), message, key, self._message)
        return message

    def decode(self, messages: Tensor, count: int) -> Tensor:
        """The numbers, float32 (rows, count), of messages (rows, k)."""
        return self._decode(messages, None, self._message, (len(messages), count))

    def decode_sum(self, messages: Tensor, count: int) -> Tensor:
        """The sum over messages (M, k), added in order in float32: (count,)."""
        return self._decode(messages, None, self._message, (1, count))[0]

    def to_lanes(self, x: Tensor, norms: Tensor, key: Tensor, lanes: Lanes) -> Tensor:
        """The codes of a vector (n,) as words; see :meth:`~hpcdat.exchange.codecs.Quantized.to_lanes`."""
        words = torch.empty(-(-len(x) // lanes.count), dtype=lanes.word, device=x.device)
        self._encode(x[None], norms.contiguous(), words[None], key, _Layout.of_lanes(lanes))
        return words

    def from_lanes(self, words: Tensor, norms: Tensor, lanes: Lanes, count: int, workers: int) -> Tensor:
        """The numbers (count,) that the sum of the words of ``workers`` workers encodes."""
        layout = _Layout.of_lanes(lanes)
        return self._decode(words[None], norms.contiguous(), layout, (1, count), workers)[0]

    def _encode(self, x: Tensor, norms: Tensor, words: Tensor, key: Tensor, layout: _Layout) -> None:
        """Write the codes of rows (rows, n) to words; norms are written in a message and otherwise read."""
        (rows, count), words = x.shape, words.view(layout.stored)
        blocks, chunk = self.quantizer.blocks(count), layout.chunk(count)
        start = blocks if layout.after_norms else 0
        # The last plane ends with the bytes that fill up the message.
        longest = words.shape[1] - start * layout.units - (layout.planes - 1) * chunk
        with _on_its_device(x):
            triton_kernels.encode[self._grid(longest, rows)](
                x.contiguous(),
                norms,
                words,
                key,
                count,
                blocks,
                blocks * min(self._block, count),
                chunk,
                words.shape[1] // layout.units,
                start,
                S=self._s,
                CORRELATED=len(key) > 2,
                OWN_NORMS=layout.after_norms,
                **layout.constants(count, self._block),
                **self._of_norms,
                **self._tiling,
            )

    def _decode(
        self, words: Tensor, norms: Tensor | None, layout: _Layout, shape: tuple[int, int], workers: int = 1
    ) -> Tensor:
        """Numbers (rows, n), each row the sum of as many rows of words; norms are those of the messages."""
        words = words.contiguous().view(layout.stored)
        norms = words.view(torch.float32) if norms is None else norms
        numbers = torch.empty(shape, device=words.device)
        (rows, count), blocks = shape, self.quantizer.blocks(shape[1])
        with _on_its_device(words):
            triton_kernels.decode[self._grid(layout.chunk(count), rows)](
                words,
                norms,
                numbers,
                count,
                blocks,
                len(words) // rows,
                layout.chunk(count),
                words.shape[1] // layout.units,
                blocks if layout.after_norms else 0,
                S=self._s,
                CENTRE=workers * self._s,
                **layout.constants(count, self._block),
                **self._tiling,
            )
        return numbers

    def _grid(self, units: int, rows: int) -> tuple[int, int]:
        return -(-units // (self._tile * self._block)), rows


def can_hold(block: int | None) -> bool:
    """Whether the kernels can hold a block in registers: a power of two from 16 to 8192."""
    return block is not None and 16 <= block <= 8192 and block & (block - 1) == 0


def _on_its_device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton starts kernels on the current device of the thread."""
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()
