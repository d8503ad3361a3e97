"""Codecs: float32 numbers to bytes on the wire and back."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from hpcdat.exchange.bit_packing import Lanes, pack, packed_bytes, unpack
from hpcdat.exchange.quantizer import Quantizer
from hpcdat.exchange.rotation import rotate, rotate_back

if TYPE_CHECKING:
    from hpcdat.exchange.triton_codec import TritonCodec


class Codec(Protocol):
    """Encodes float32 numbers as bytes; the receiver adds the decoded numbers."""

    def encode(self, x: Tensor, key: Tensor) -> Tensor:
        """Numbers (rows, n), float32, as bytes (rows, k), uint8; k depends only on n.

        Args:
            x: each row becomes one message.
            key: of the random numbers, int32 (2,) or (6,).
        """
        ...

    def decode(self, message: Tensor, count: int) -> Tensor:
        """The numbers (rows, count), float32, of messages (rows, k)."""
        ...

    def decode_sum(self, messages: Tensor, count: int) -> Tensor:
        """The sum over messages (M, k), added in order in float32: (count,)."""
        ...

    def message_bytes(self, count: int) -> int:
        """k: bytes of a message of ``count`` numbers."""
        ...


class Cast:
    """A floating-point format: float32 (lossless), float16 or bfloat16, rounded to nearest.

    Args:
        dtype: of the numbers on the wire.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def encode(self, x: Tensor, key: Tensor) -> Tensor:  # noqa: D102
        return x.to(self.dtype).view(torch.uint8)

    def decode(self, message: Tensor, count: int) -> Tensor:  # noqa: D102
        return message.view(self.dtype).to(torch.float32)

    def decode_sum(self, messages: Tensor, count: int) -> Tensor:  # noqa: D102
        numbers = messages.view(self.dtype)
        total = numbers[0].to(torch.float32, copy=True)
        for row in numbers[1:]:
            total += row
        return total

    def message_bytes(self, count: int) -> int:  # noqa: D102
        return count * self.dtype.itemsize


class Quantized:
    """Messages of a quantizer: the norms of all blocks, then the packed codes.

    Compiling fuses passes over memory and does not change a byte, except for the last bits of l2 norms where
    blocks are no powers of two. Packing is compiled separately: fused with the rounding, the compiler would
    compute the codes again for every part of a word. The rotation is not compiled: the compiler would write
    out every coordinate as a sum of all of its block.

    On a GPU, Triton's kernels (:mod:`~hpcdat.exchange.triton_codec`) do all but the rotation, where they can
    hold a block, and do not change a byte either.

    Args:
        quantizer: computes norms and codes.
        compiled: whether to use torch.compile, which takes a few seconds on first use, for what the kernels
            do not do.
        kernels: whether to use Triton's kernels; None: for tensors on a GPU, if they can be used.

    Raises:
        ValueError: ``kernels`` is true, and they cannot hold a block.
    """

    def __init__(self, quantizer: Quantizer, *, compiled: bool = False, kernels: bool | None = None) -> None:
        self.quantizer = quantizer
        self._automatic, self._kernels = kernels is None, None
        if kernels:
            from hpcdat.exchange.triton_codec import TritonCodec

            self._kernels = TritonCodec(quantizer)
        self._norms, self._codes, self._numbers = quantizer.norms, quantizer.encode, quantizer.decode
        self._total: Callable[[Tensor, Tensor], Tensor] = self._sum_of_rows
        if compiled:
            if not (quantizer.norm == "l2" and quantizer.sums_by_halves):
                # The compiler would write out a sum by halves as one sum of all of the block.
                self._norms = _compiled(self._norms, quantizer)
            self._codes, self._numbers = (
                _compiled(method, quantizer) for method in (self._codes, self._numbers)
            )
            self._total = _compiled(self._sum_of_rows, quantizer)
        self._compiled = compiled

    def norms(self, x: Tensor) -> Tensor:
        """The norm of every block: (..., n) float32 to (..., blocks)."""
        kernels = self._kernels_for(x)
        return kernels.norms(x) if kernels else self._norms(x)

    def encode(self, x: Tensor, key: Tensor) -> Tensor:  # noqa: D102
        if kernels := self._kernels_for(x):
            return kernels.encode(self.rotated(x), key, self.message_bytes(x.shape[1]))
        merged = self.rotated(self._merged(x))
        norms = self._norms(merged)
        codes = self._codes(merged, norms, key).view(x.shape)
        norms = norms.view(len(x), -1)
        if self.quantizer.bits == 16:
            packed = (codes - 2**15).to(torch.int16).view(torch.uint8)
        else:
            packed = pack(codes, self.quantizer.bits)
        message = x.new_zeros(len(x), self.message_bytes(x.shape[1]), dtype=torch.uint8)
        at = 4 * norms.shape[1]
        message[:, :at].view(torch.float32).copy_(norms)
        message[:, at : at + packed.shape[1]].copy_(packed)
        return message

    def decode(self, message: Tensor, count: int) -> Tensor:  # noqa: D102
        if kernels := self._kernels_for(message):
            return self._rotated_back(kernels.decode(message, count))
        codes, norms = self._parts(message, count)
        merged = self._merged(codes)
        numbers = self._numbers(merged, norms.reshape(*merged.shape[:-1], -1))
        return self._rotated_back(numbers).view(codes.shape)

    def decode_sum(self, messages: Tensor, count: int) -> Tensor:  # noqa: D102
        if kernels := self._kernels_for(messages):
            return self._rotated_back(kernels.decode_sum(messages, count))
        return self._rotated_back(self._total(*self._parts(messages, count)))

    def _kernels_for(self, x: Tensor) -> TritonCodec | None:
        """The kernels, if they are to be used for this tensor."""
        if not x.numel():
            return None
        return kernels_on_gpu(self.quantizer) if self._automatic and x.is_cuda else self._kernels

    def rotated(self, x: Tensor) -> Tensor:
        """The numbers (..., n) whose norms and codes are sent: x itself without rotation."""
        block = self.quantizer.block
        return rotate(x, block) if block and self.quantizer.rotation == "hadamard" else x

    def _rotated_back(self, x: Tensor) -> Tensor:
        block = self.quantizer.block
        return rotate_back(x, block) if block and self.quantizer.rotation == "hadamard" else x

    def _merged(self, x: Tensor) -> Tensor:
        """Rows of whole blocks as one vector, whose blocks are the same.

        For rows of blocks the compiler generates loops without vector instructions.
        """
        block = self.quantizer.block
        return x.flatten() if block and x.shape[-1] % block == 0 else x

    def _parts(self, messages: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Codes (rows, count) and norms (rows, blocks) of messages."""
        at = 4 * self.quantizer.blocks(count)
        packed = messages[:, at : at + self._code_bytes(count)]
        if self.quantizer.bits == 16:
            codes = packed.view(torch.int16).to(torch.int32) + 2**15
        else:
            codes = unpack(packed, self.quantizer.bits, count)
        return codes, messages[:, :at].view(torch.float32)

    def _sum_of_rows(self, codes: Tensor, norms: Tensor) -> Tensor:
        """The sum over the rows, in order."""
        total = self.quantizer.decode(codes[0], norms[0])
        for row in range(1, len(codes)):
            total = total + self.quantizer.decode(codes[row], norms[row])
        return total

    def message_bytes(self, count: int) -> int:  # noqa: D102
        # A multiple of four bytes, so that the rows of a matrix of messages are aligned.
        return 4 * (self.quantizer.blocks(count) + -(-self._code_bytes(count) // 4))

    def _code_bytes(self, count: int) -> int:
        return 2 * count if self.quantizer.bits == 16 else packed_bytes(count, self.quantizer.bits)

    def to_lanes(self, x: Tensor, norms: Tensor, key: Tensor, lanes: Lanes) -> Tensor:
        """The codes of a vector (n,) as words that can be added.

        Args:
            x: float32, from :meth:`rotated`.
            norms: (blocks,), the same on all workers.
            key: of the random numbers, int32 (2,) or (6,).
            lanes: wide enough for the sum of all workers' codes.
        """
        if kernels := self._kernels_for(x):
            return kernels.to_lanes(x, norms, key, lanes)
        pack, _ = self._packing(lanes)
        words: Tensor = pack(self._codes(x, norms, key))
        return words

    def from_lanes(self, words: Tensor, norms: Tensor, lanes: Lanes, count: int, workers: int) -> Tensor:
        """The numbers (count,) that the sum of the words of ``workers`` workers encodes."""
        if kernels := self._kernels_for(words):
            return self._rotated_back(kernels.from_lanes(words, norms, lanes, count, workers))
        _, unpack = self._packing(lanes)
        return self._rotated_back(self._numbers(unpack(words, count), norms, workers))

    def _packing(self, lanes: Lanes) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        # torch.compile miscompiles a view with another dtype.
        if self._compiled and not lanes.is_view:
            return _compiled_packing(lanes)
        return lanes.pack, lanes.unpack


@cache
def kernels_on_gpu(quantizer: Quantizer) -> TritonCodec | None:
    """The kernels, if there is a Triton and they can hold a block."""
    if find_spec("triton") is None or not can_compile():
        return None
    from hpcdat.exchange.triton_codec import TritonCodec, can_hold

    return TritonCodec(quantizer) if can_hold(quantizer.block) else None


@cache
def _compiled_packing(lanes: Lanes) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    return _compiled(lanes.pack, lanes), _compiled(lanes.unpack, lanes)


def _compiled(method: Any, constants: object) -> Callable[..., Tensor]:
    """The bound method compiled for one quantizer or one layout of lanes.

    torch.compile records which inputs vary by file, line and name of the code object. After a second
    quantizer under the same name it would treat bits and levels as variables too, not only the length, and
    generate slower code. So each quantizer compiles a copy of the method under a name of its own; the method
    itself is not changed.
    """
    code = method.__func__.__code__
    name = re.sub(r"\W", "_", f"{code.co_name}_{constants}")
    original = method.__func__
    function = FunctionType(code.replace(co_name=name), original.__globals__, name, original.__defaults__)
    return torch.compile(MethodType(function, method.__self__))


def can_compile() -> bool:
    """Whether this machine has a C++ compiler, for torch.compile; with it comes the C compiler for Triton."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "c++", "clang++"))
