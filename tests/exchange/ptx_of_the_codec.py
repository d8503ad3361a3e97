"""Prints the PTX of the codec's kernels for an H100 or H200 as JSON; needs no GPU.

With --every, of every number of bits, for a length that no power of two divides.

Started by test_triton_codec.py as a process of its own, in which Triton compiles and does not interpret.
"""

import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hpcdat.exchange import triton_codec, triton_kernels
from hpcdat.exchange.codecs import Quantized
from hpcdat.exchange.counter_rng import correlated_key, split_key
from hpcdat.exchange.protocols import lanes_for
from hpcdat.exchange.quantizer import Quantizer
from hpcdat.exchange.triton_codec import TritonCodec

TYPES = {torch.float32: "fp32", torch.int32: "i32", torch.uint8: "u8", torch.int16: "i16", torch.int64: "i64"}
CPU = torch.device("cpu")
COUNT = 64 * 512
"""Numbers: their bytes and blocks are multiples of 16, for which Triton compiles kernels of their own."""


class Launch:
    """In place of a kernel: compiles what would be launched, with the arguments and options of the launch."""

    def __init__(self, kernel, name, found):
        self.kernel, self.name, self.found = kernel, name, found

    def __getitem__(self, grid):
        return self

    def __call__(self, *arguments, **more):
        names = self.kernel.arg_names
        values = dict(zip(names, arguments, strict=False))
        constants = {name: more.pop(name) for name in names if name in more}
        # As Triton does: lengths of 1 are constants.
        plain = [p.name for p in self.kernel.params if p.do_not_specialize]
        constants |= {
            name: 1 for name, v in values.items() if isinstance(v, int) and v == 1 and name not in plain
        }
        signature = {name: "constexpr" if name in constants else type_of(values[name]) for name in names}
        aligned = [n for n, v in values.items() if not isinstance(v, int) or (v % 16 == 0 and n not in plain)]
        place = names.index
        source = ASTSource(
            self.kernel,
            signature,
            {(place(name),): value for name, value in constants.items()},
            {(place(name),): [["tt.divisibility", 16]] for name in aligned},
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=more)
        self.found[self.name] = compiled.asm["ptx"]


def type_of(value):
    return "i32" if isinstance(value, int) else "*" + TYPES[value.dtype]


def launch(name, bits, found, norm="max", rounding="independent", count=COUNT):
    """Compile what encodes and decodes messages, and lanes of six workers."""
    kernels = triton_kernels.norms, triton_kernels.encode, triton_kernels.decode
    quantizer = Quantizer(bits, norm, rounding=rounding)
    codec, size = TritonCodec(quantizer), Quantized(quantizer).message_bytes(count)
    key = correlated_key(1, 2, 0, 6, CPU) if rounding == "correlated" else split_key(1, CPU)
    lanes = lanes_for(quantizer, 6)
    x = torch.zeros(1, count)
    for what, call in {
        "norms": lambda: codec.norms(x[0]),
        "encode": lambda: codec.encode(x, key, size),
        "decode": lambda: codec.decode(torch.zeros(1, size, dtype=torch.uint8), count),
        "to lanes": lambda: codec.to_lanes(x[0], x[0], key, lanes),
        "from lanes": lambda: codec.from_lanes(torch.zeros(count, dtype=lanes.word), x[0], lanes, count, 6),
    }.items():
        for kernel in kernels:
            setattr(triton_codec.triton_kernels, kernel.fn.__name__, Launch(kernel, f"{name}: {what}", found))
        call()
    for kernel in kernels:
        setattr(triton_codec.triton_kernels, kernel.fn.__name__, kernel)


if __name__ == "__main__":
    found = {}
    if sys.argv[1:] == ["--every"]:
        for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16):
            launch(f"{bits} bits", bits, found, count=COUNT + 1)
    else:
        launch("8 bits", 8, found)
        launch("1 bit", 1, found, "l2", "correlated")
    json.dump(found, sys.stdout)
