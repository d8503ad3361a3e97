"""The most FLOP/s that a device reaches, in matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from timing import in_turns
from torch import Tensor
from torch.nn.functional import conv2d

from hpcdat.distributed.communicator import Communicator
from hpcdat.models.pixel_model import Precision

SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192, 16384)}
"""Rows and columns of the matrices that are tried, by type of device."""
ROUNDS = 5


@dataclass(frozen=True)
class Convolution:
    """A convolution of 3 x 3 with stride 1, as in residual networks.

    Attributes:
        channels: of input and output.
        pixels: height and width of both.
        images: of a batch.
    """

    channels: int
    pixels: int
    images: int

    @property
    def flops(self) -> int:
        """Of the forward pass, as torch counts them: products with the zeros of the padding included."""
        return 2 * 9 * self.channels**2 * self.pixels**2 * self.images


CONVOLUTIONS = {
    "cpu": tuple(Convolution(channels, pixels, 16) for channels, pixels in ((64, 32), (128, 16), (256, 8))),
    "cuda": tuple(
        Convolution(channels, pixels, 256) for channels, pixels in ((64, 56), (128, 28), (256, 14), (512, 7))
    ),
}
"""Those of the residual blocks of PreAct ResNet-18 on 32 x 32 images and of ResNet-50 on 224 x 224 images."""
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@dataclass(frozen=True)
class Peak:
    """The fastest of the matrix products and convolutions.

    Attributes:
        work: what it is, with its size.
        flops: of one.
        arithmetic: ``float32``, ``TF32`` or ``bfloat16``.
        seconds: of every repetition, of the slowest worker.
    """

    work: str
    flops: int
    arithmetic: str
    seconds: list[float]

    @property
    def rate(self) -> float:
        """FLOP/s of a worker, in the fastest repetition."""
        return self.flops / min(self.seconds)

    @property
    def what(self) -> str:
        """The name of the row in the benchmark file."""
        return f"{self.work} in {self.arithmetic}"


def measure_peak(
    precision: Precision,
    device: torch.device,
    workers: Communicator,
    sizes: Sequence[int] | None = None,
) -> Peak:
    """Try matrix products and convolutions of all sizes on all workers at the same time.

    Args:
        precision: of both factors; products in float32 on a GPU use TF32 if convolutions may.
        device: that computes.
        workers: all of them.
        sizes: of the matrices; None: those for the device.
    """
    tf32 = precision == "float32" and device.type == "cuda" and torch.backends.cudnn.allow_tf32
    dtype = getattr(torch, precision)
    candidates = _products(sizes or SIZES[device.type], dtype, device) | _convolutions(dtype, device)
    with torch.no_grad(), _matrix_products_like_convolutions(), _fastest_algorithms():
        times = in_turns({name: run for name, (_, run) in candidates.items()}, ROUNDS, device, workers)
    arithmetic = "TF32" if tf32 else precision
    found = [Peak(name, candidates[name][0], arithmetic, each) for name, each in times.items()]
    return max(found, key=lambda peak: peak.rate)


Candidates = dict[str, tuple[int, Callable[[], Tensor]]]
"""What is tried: FLOPs and function by name."""


def _products(sizes: Sequence[int], dtype: torch.dtype, device: torch.device) -> Candidates:
    found: Candidates = {}
    for size in sizes:
        a, b = (_random((size, size), dtype, device) for _ in range(2))
        work = partial(torch.mm, a, b, out=torch.empty_like(a))
        found[f"matrix product of {size} x {size}"] = 2 * size**3, work
    return found


def _convolutions(dtype: torch.dtype, device: torch.device) -> Candidates:
    found: Candidates = {}
    for one in CONVOLUTIONS[device.type]:
        x = _random((one.images, one.channels, one.pixels, one.pixels), dtype, device)
        weight = _random((one.channels, one.channels, 3, 3), dtype, device)
        for layout, memory_format in LAYOUTS.items():
            given = (tensor.contiguous(memory_format=memory_format) for tensor in (x, weight))
            name = (
                f"3 x 3 convolution of {one.channels} channels, {one.pixels} x {one.pixels} pixels, {layout}"
            )
            found[name] = one.flops, partial(conv2d, *given, padding=1)
    return found


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    return torch.rand(shape, device=device, generator=generator).to(dtype)


@contextmanager
def _fastest_algorithms() -> Iterator[None]:
    """Let cuDNN try its algorithms, which it does in the round that does not count."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def _matrix_products_like_convolutions() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
