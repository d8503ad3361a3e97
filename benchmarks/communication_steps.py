"""What one worker of communication.py times: exchanges, other all-reduces, and an exchange that overlaps."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hpcdat.config.sections import Exchange
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.exchange.codecs import Quantized, can_compile
from hpcdat.exchange.gradient_exchange import GradientExchange, gradients_of
from hpcdat.exchange.pipeline import IN_FLIGHT, Pipeline
from hpcdat.exchange.protocols import Draw
from hpcdat.exchange.resolve import Plan, make_plan
from hpcdat.hardware.network_cards import network_cards, sent_between

OURS = {
    "float32, ring": Exchange(bucket_mb=4),
    "float32, sharded server": Exchange(protocol="sharded_server", bucket_mb=4),
    "int8 one-sided, ring of 8-bit lanes": Exchange(bits=8, lane_bits=8, bucket_mb=4),
    "int8 one-sided, ring": Exchange(bits=8, bucket_mb=4),
    "int8 one-sided, sharded server": Exchange(
        protocol="sharded_server", bits=8, sum_format="bfloat16", bucket_mb=1
    ),
    "int8 two-sided, sharded server": Exchange(
        protocol="sharded_server", bits=8, two_sided=True, bucket_mb=1
    ),
    "int4 two-sided, sharded server": Exchange(
        protocol="sharded_server", bits=4, two_sided=True, bucket_mb=2
    ),
    "int8, all-gather": Exchange(protocol="allgather", bits=8, bucket_mb=4),
}
"""The exchanges; server protocols have small buckets, since long messages of an all-to-all collide."""

CPU = torch.device("cpu")


def bucket_of(name: str) -> int:
    """Size of a bucket of this exchange, in numbers."""
    return int(OURS[name].bucket_mb * 2**18)


@dataclass(frozen=True)
class Timed:
    """One run of an exchange.

    Attributes:
        seconds: of the slowest worker.
        processor: seconds of processor time, mean over the workers.
        sent: bytes that all cards sent; None if no card counts them.
        most_sent: bytes of the card that sent most.
    """

    seconds: float
    processor: float
    sent: int | None
    most_sent: int


class Bench:
    """One worker's part of the measurement."""

    def __init__(self, workers: Communicator, count: int) -> None:
        self.workers, self.count = workers, count
        gradient = torch.randn(count, generator=torch.Generator().manual_seed(0))
        # Few bits, so that float32 sums are exact in any order.
        gradient = (gradient * 2**10).round() / 2**10
        shifts = [1009 * rank for rank in range(workers.size)]
        self.own = gradient.roll(shifts[workers.rank])
        self.exact = sum(gradient.roll(shift) for shift in shifts)
        self.pipeline = Pipeline()
        self.channels = [workers.channel(f"exchange {number}") for number in range(IN_FLIGHT)]
        self.plans = {
            name: [make_plan(s, channel, compiled=can_compile()) for channel in self.channels]
            for name, s in OURS.items()
        }
        self.result = torch.empty(count)

    def ours(self, name: str) -> Callable[[], None]:
        """A function that runs one of our exchanges, in buckets."""
        plans, size = self.plans[name], bucket_of(name)

        def run() -> None:
            for number, (source, target) in enumerate(
                zip(self.own.split(size), self.result.split(size), strict=True)
            ):
                draw = Draw(0, 0, 0, number, CPU)
                plan, channel = plans[number % IN_FLIGHT], self.channels[number % IN_FLIGHT]
                self.pipeline.submit(
                    lambda plan=plan, channel=channel, source=source, draw=draw, number=number: plan.protocol(
                        channel, source, draw, f"bucket {number}", None
                    ),
                    target.copy_,
                )
            self.pipeline.wait()

        return run

    def peers(self) -> dict[str, Callable[[], None]]:
        """All-reduces of the same gradient by the engine itself, in one call."""
        if self.workers.engine == "horovod":
            return {"float16, Horovod": self._horovod_fp16()}
        return {"float32, torch.distributed": self._torch_float32()}

    def _horovod_fp16(self) -> Callable[[], None]:
        import horovod.torch as hvd

        def run() -> None:
            self.result = hvd.allreduce(self.own, op=hvd.Sum, compression=hvd.Compression.fp16, name="fp16")

        return run

    def _torch_float32(self) -> Callable[[], None]:
        import torch.distributed as dist

        with socket.socket() as probe:
            probe.bind(("", 0))
            place = [self.workers.host, probe.getsockname()[1]]
        host, port = self.workers.all_gather_object(place, "where torch.distributed meets")[0]
        dist.init_process_group(
            "gloo", init_method=f"tcp://{host}:{port}", rank=self.workers.rank, world_size=self.workers.size
        )

        return lambda: dist.all_reduce(self.result.copy_(self.own))

    def time(self, run: Callable[[], None]) -> Timed:
        """Time one run on all workers."""
        self.workers.all_gather_object(None, "ready")
        cards, start, processor = network_cards(), time.perf_counter(), time.process_time()
        run()
        spent, processor = time.perf_counter() - start, time.process_time() - processor
        # The last packets may not have been sent yet.
        time.sleep(0.05)
        # One worker of each node counts its cards, which workers on one node do not use.
        counted = self.workers.local_rank == 0 and self.workers.nodes > 1
        sent = list(sent_between(cards, network_cards()).values()) if counted else []
        answers = self.workers.all_gather_object([spent, processor, sent], "times")
        wall, processors, by_node = zip(*answers, strict=True)
        by_card = [count for node in by_node for count in node if count is not None]
        return Timed(max(wall), fmean(processors), sum(by_card) if by_card else None, max(by_card, default=0))

    def codec_seconds(self, name: str) -> float:
        """Seconds of computation in one exchange, without waiting for the network."""
        total, plan = 0.0, self.plans[name][0]
        for number, source in enumerate(self.own.split(bucket_of(name))):
            steps = plan.protocol(
                self.workers, source, Draw(0, 0, 0, number, CPU), f"computation {number}", None
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

    def check(self, plan: Plan | None) -> tuple[float, int]:
        """Relative l2 error of the last result, and how many numbers exceed the bound of rounding."""
        off = self.result - self.exact
        error = (off.norm() / self.exact.norm()).item()
        if plan is None or not isinstance(plan.codec, Quantized):
            bound = 0.0 if plan is not None else 1e-2
            return error, int((off.abs() > bound * self.exact.abs().max()).sum())
        quantizer, size = plan.codec.quantizer, self.workers.size
        step = self.own.abs().max() / quantizer.s
        bound = size * step + (
            size * self.own.abs().max() / quantizer.s if plan.sum_codec is plan.codec else 0
        )
        return error, int((off.abs() > bound + 2**-7 * self.exact.abs().max()).sum())


class Computing(torch.autograd.Function):
    """A layer whose backward pass takes a given time without using a core, as on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, seconds: float) -> Tensor:  # noqa: D102
        ctx.save_for_backward(weight)
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: D102
        (weight,) = ctx.saved_tensors
        time.sleep(ctx.seconds)
        return gradient, torch.ones_like(weight), None


def measure_overlap(bench: Bench, rounds: int) -> dict[str, float]:
    """Seconds of computation, of an exchange, and of both in a training step."""
    layers = 24
    model = nn.ParameterList([nn.Parameter(torch.zeros(bench.count // layers, 1)) for _ in range(layers)])
    settings = OURS["float32, sharded server"].model_copy(
        update={"bucket_mb": 4 * bench.count / layers / 2**20}
    )
    exchange = GradientExchange(bench.workers, gradients_of(model), settings, 0)

    def backward(seconds: float) -> None:
        model.zero_grad(set_to_none=True)
        x = torch.zeros(1, requires_grad=True)
        for weight in model:
            x = Computing.apply(x, weight, seconds / layers)
        x.sum().backward()

    def step(seconds: float) -> None:
        exchange.begin(0, 0)
        backward(seconds)
        exchange.finish(torch.zeros(1))

    def typical(run: Callable[[], None]) -> float:
        return median([bench.time(run).seconds for _ in range(rounds + 1)][1:])

    communication = typical(lambda: step(0.0))
    computation = typical(lambda: backward(communication))
    return {
        "computation": computation,
        "communication": communication,
        "step": typical(lambda: step(communication)),
    }


def work(
    count: int, rounds: int, rate: str | None, engine: Literal["auto", "horovod", "torch"]
) -> dict[str, Any]:
    """A worker's whole part; the report, the same on all workers."""
    torch.set_num_threads(1)
    workers = init_communicator(600, engine=engine)
    bench = Bench(workers, count)
    runs = {name: bench.ours(name) for name in OURS} | bench.peers()
    times: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    rows: dict[str, dict[str, Any]] = {}
    for number in range(rounds + 1):
        for name, run in runs.items():
            timed = bench.time(run)
            if number == 0:
                plan = bench.plans[name][0] if name in bench.plans else None
                error, wrong = bench.check(plan)
                predicted = plan and sum(
                    plan.traffic(len(part)).total for part in bench.own.split(bucket_of(name))
                )
                rows[name] = {"error": error, "wrong": wrong, "predicted": predicted}
            else:
                times[name].append(timed.seconds)
                processor[name].append(timed.processor)
                rows[name] |= {"sent": timed.sent, "most_sent": timed.most_sent}
    for name in OURS:
        rows[name]["codec"] = bench.codec_seconds(name)
    report = {
        "environment": describe_environment(workers, CPU),
        "settings": {
            "count": count,
            "workers": workers.size,
            "rate": rate,
            "threads": 1,
            "engine": workers.engine,
            "transport": workers.transport,
        },
        "rows": rows,
        "seconds": times,
        "processor_seconds": processor,
        "overlap": measure_overlap(bench, rounds),
    }
    workers.close()
    return report
