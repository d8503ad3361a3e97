"""The most floating-point operations per second that a device reaches, measured on matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from timing import in_turns

from hpcdat.distributed.communicator import Communicator
from hpcdat.models.pixel_model import Precision

SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192, 16384)}
"""Rows and columns of the matrices that are tried, by type of device."""
ROUNDS = 5


@dataclass(frozen=True)
class Peak:
    """The fastest of the matrix products.

    Attributes:
        size: rows and columns of its square matrices.
        arithmetic: ``float32``, ``TF32`` or ``bfloat16``.
        seconds: of every repetition, of the slowest worker.
    """

    size: int
    arithmetic: str
    seconds: list[float]

    @property
    def flops(self) -> int:
        """Of a product."""
        return 2 * self.size**3

    @property
    def rate(self) -> float:
        """FLOP/s of a worker, in the fastest repetition."""
        return self.flops / min(self.seconds)

    @property
    def what(self) -> str:
        """The name of the row in the benchmark's file."""
        return f"matrix product of {self.size} x {self.size} in {self.arithmetic}"


def measure_peak(precision: Precision, device: torch.device, workers: Communicator) -> Peak:
    """Try matrix products of all sizes on all workers at the same time.

    Args:
        precision: of both factors; products in float32 on a GPU use TF32 if convolutions may.
        device: that computes.
        workers: all of them.
    """
    dtype = getattr(torch, precision)
    tf32 = precision == "float32" and device.type == "cuda" and torch.backends.cudnn.allow_tf32
    products = {}
    for size in SIZES[device.type]:
        generator = torch.Generator(device).manual_seed(0)
        a, b = (torch.rand(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
        products[str(size)] = partial(torch.mm, a, b, out=torch.empty_like(a))
    with _matrix_products_like_convolutions():
        times = in_turns(products, ROUNDS, device, workers)
    found = [Peak(int(size), "TF32" if tf32 else precision, each) for size, each in times.items()]
    return max(found, key=lambda peak: peak.rate)


@contextmanager
def _matrix_products_like_convolutions() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
