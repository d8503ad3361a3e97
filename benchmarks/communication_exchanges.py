"""Our exchanges of a gradient, as communication.py runs them: in buckets, several at once, as in training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcdat.config.sections import Exchange
from hpcdat.distributed.communicator import Communicator
from hpcdat.exchange.codecs import Cast, Quantized
from hpcdat.exchange.pipeline import IN_FLIGHT, Pipeline
from hpcdat.exchange.protocols import Draw
from hpcdat.exchange.resolve import Plan, make_plan
from hpcdat.performance.benchmark_file import Value

OURS = (
    Exchange(bucket_mb=4),
    Exchange(protocol="sharded_server", bucket_mb=4),
    Exchange(bits=8, lane_bits=8, bucket_mb=4),
    Exchange(bits=8, bucket_mb=4),
    Exchange(protocol="sharded_server", bits=8, sum_format="bfloat16", bucket_mb=1),
    Exchange(protocol="sharded_server", bits=8, two_sided=True, bucket_mb=1),
    Exchange(protocol="sharded_server", bits=4, two_sided=True, bucket_mb=2),
    Exchange(protocol="allgather", bits=8, bucket_mb=4),
)
"""The exchanges; server protocols have small buckets, since long messages of an all-to-all collide."""
SWEPT = (
    *OURS,
    Exchange(bits="float16", bucket_mb=4),
    Exchange(protocol="sharded_server", bits=16, two_sided=True, bucket_mb=2),
    Exchange(bits=4, bucket_mb=4),
    Exchange(protocol="allgather", bucket_mb=4),
    Exchange(protocol="allgather", bits=16, bucket_mb=4),
    Exchange(protocol="parameter_server", bits=8, two_sided=True, bucket_mb=4),
)
"""Those of the sweep over sizes, those of the DAT paper's Table 4 among them."""
HALF = "ring of float16"
"""Protocol of the ring that adds in half precision, as tables and files name it."""
FRACTION = 2.0**-10
"""The gradient's numbers are multiples of it: float32 sums of up to 2,048 workers are exact in any order."""


def parameters_of(settings: Exchange, count: int, device: torch.device) -> dict[str, Value]:
    """What identifies the row of an exchange.

    Args:
        settings: of the exchange.
        count: numbers in the gradient.
        device: where it is.
    """
    protocol: str = settings.protocol
    if settings.bits == "float16":
        protocol = HALF
    elif settings.lane_bits:
        protocol = f"ring of {settings.lane_bits}-bit lanes"
    return {
        "operation": "exchange",
        "by": "hpcdat",
        "protocol": protocol,
        "bits": 16 if settings.bits == "float16" else settings.bits,
        "two_sided": settings.two_sided,
        "type": "float32",
        "bytes": 4 * count,
        "device": device.type,
    }


def label_of(parameters: Mapping[str, Value]) -> str:
    """The name of a row in tables and plots: ``int8 two-sided, sharded server``, ``float32, MPI``."""
    bits, protocol = parameters["bits"], parameters["protocol"]
    if parameters["operation"] != "exchange":
        by = str(parameters["by"]).removesuffix(" float16")
        return f"float{bits}, {by}{f', {protocol}' if protocol else ''}"
    if bits == 32:
        codes = "float32"
    elif protocol == HALF:
        return "float16, ring"
    else:
        codes = f"int{bits} {'two' if parameters['two_sided'] else 'one'}-sided"
    of_job = f"{parameters['job']}: " if parameters.get("job") else ""
    return f"{of_job}{codes}, {str(protocol).replace('_', ' ').replace('allgather', 'all-gather')}"


@dataclass(frozen=True)
class Gradient:
    """A gradient of this worker, and the sum over all.

    Attributes:
        own: (n,) float32, the same numbers on every worker, in another order.
        exact: (n,) float32, their sum without any rounding.
    """

    own: Tensor
    exact: Tensor

    @classmethod
    def of(cls, count: int, workers: Communicator, device: torch.device) -> Gradient:
        """The gradient of ``count`` numbers, the same in every call."""
        numbers = torch.randn(count, generator=torch.Generator().manual_seed(0))
        numbers = ((numbers / FRACTION).round() * FRACTION).to(device)
        exact = numbers.clone()
        for rank in range(1, workers.size):
            exact += numbers.roll(1009 * rank)
        return cls(numbers.roll(1009 * workers.rank), exact)

    def largest_rounding(self, plan: Plan, workers: int) -> float:
        """How far a number of the sum may be from the exact one after an exchange.

        A code is less than a step away from its number, a sum of M of them less than M steps; the server of a
        two-sided exchange rounds the sum once more, with steps as much larger as its numbers may be. A
        floating-point format rounds by half a unit in the last place, relative to the largest sum.

        Args:
            plan: of the exchange.
            workers: M.
        """
        largest = self.own.abs().max().item()
        if isinstance(plan.codec, Cast):
            return 0.0 if plan.codec.dtype == torch.float32 else self.half_rounding(workers)
        assert isinstance(plan.codec, Quantized)
        bound = workers * largest / plan.codec.quantizer.s
        if plan.name in ("parameter_server", "sharded_server"):
            of_sum = plan.sum_codec
            step = 1 / of_sum.quantizer.s if isinstance(of_sum, Quantized) else _rounding_of(of_sum)
            bound += (workers * largest + bound) * step
        # Decoded numbers are added in float32, whose sums are rounded, too.
        return bound + 2 * workers * torch.finfo(torch.float32).eps * workers * largest

    def half_rounding(self, workers: int) -> float:
        """The same for a sum in float16: M numbers and M - 1 partial sums are rounded."""
        unit = torch.finfo(torch.float16).eps / 2
        return (2 * workers - 1) * unit * workers * self.own.abs().max().item()


class Gradients:
    """Gradients of several sizes. The last one is kept for the next operation of the same size.

    Args:
        workers: that sum them.
        device: where they are.
    """

    def __init__(self, workers: Communicator, device: torch.device) -> None:
        self.workers, self.device = workers, device
        self._last: tuple[int, Gradient] | None = None

    def of(self, count: int) -> Gradient:
        """The gradient of ``count`` numbers, which its users must not change."""
        if not self._last or self._last[0] != count:
            # Not two at a time: they may be large.
            self._last = None
            self._last = count, Gradient.of(count, self.workers, self.device)
        return self._last[1]


def _rounding_of(codec: Any) -> float:
    """The largest relative rounding error of a floating-point format; 0 for float32, which is not rounded."""
    return 0.0 if codec.dtype == torch.float32 else torch.finfo(codec.dtype).eps / 2


class Exchanges:
    """Runs our exchanges; all workers create it together.

    Args:
        workers: that exchange.
        chosen: the exchanges.
        device: where gradients are.
        compiled: whether the codecs are compiled.
    """

    def __init__(
        self, workers: Communicator, chosen: Sequence[Exchange], device: torch.device, *, compiled: bool
    ) -> None:
        self.workers, self.device = workers, device
        self._pipeline = Pipeline()
        self._channels = [workers.channel(f"exchange {number}") for number in range(IN_FLIGHT)]
        self._plans = [
            [make_plan(settings, channel, compiled=compiled) for channel in self._channels]
            for settings in chosen
        ]
        self._buckets = [int(settings.bucket_mb * 2**18) for settings in chosen]

    def plan(self, number: int) -> Plan:
        """The plan of the exchange of this number."""
        return self._plans[number][0]

    def bytes_sent(self, number: int, count: int) -> float:
        """Bytes that all workers send in an exchange of ``count`` numbers, predicted from its messages."""
        size = self._buckets[number]
        lengths = [min(size, count - start) for start in range(0, count, size)]
        return sum(self.plan(number).traffic(length).total for length in lengths)

    def run_of(self, number: int, source: Tensor, target: Tensor) -> Callable[[], Tensor]:
        """A function that exchanges a gradient, in buckets, and returns the sum.

        Args:
            number: of the exchange.
            source: (n,) float32, this worker's gradient.
            target: (n,) float32, for the sum, which the function returns.
        """
        size, plans = self._buckets[number], self._plans[number]
        buckets = list(enumerate(zip(source.split(size), target.split(size), strict=True)))

        def run() -> Tensor:
            for bucket, (part, total) in buckets:
                draw = Draw(0, 0, 0, bucket, self.device)
                plan, channel = plans[bucket % IN_FLIGHT], self._channels[bucket % IN_FLIGHT]
                self._pipeline.submit(
                    lambda plan=plan, channel=channel, part=part, draw=draw, bucket=bucket: plan.protocol(
                        channel, part, draw, f"bucket {bucket}", None
                    ),
                    total.copy_,
                )
            self._pipeline.wait()
            return target

        return run

    def codec_seconds(self, number: int, source: Tensor) -> float:
        """Seconds of computation in one exchange on a CPU, without waiting for the network."""
        total, plan = 0.0, self.plan(number)
        for bucket, part in enumerate(source.split(self._buckets[number])):
            steps = plan.protocol(
                self.workers, part, Draw(0, 0, 0, bucket, self.device), f"computation {bucket}", None
            )
            result: Any = None
            while True:
                start = time.perf_counter()
                try:
                    pending = steps.send(result)
                except StopIteration:
                    total += time.perf_counter() - start
                    break
                total += time.perf_counter() - start
                result = pending.wait()
        return total

    def close(self) -> None:
        """End the thread of the exchanges."""
        self._pipeline.close()
