"""What a worker of ``handover.py`` times."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
from handover_ways import SECONDS_TO_ANSWER, AllToAll, Pairs, Place, Way, mpi_pairs, torch_pairs
from mpi_rows import join_mpi
from timing import settings_of

from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.initialization import init_communicator
from hpcdat.distributed.torch_communicator import TorchCommunicator
from hpcdat.distributed.watchdog import Watchdog
from hpcdat.errors import InputError, WorkerError
from hpcdat.performance.benchmark_file import BenchmarkFile, Row

BATCHES = {"CIFAR": (64, 32), "ImageNet": (8, 224)}
"""Images of a batch, and their height and width."""


class Times(NamedTuple):
    """One repetition on one worker, seconds; ``arrival`` is None where nothing is awaited."""

    arrival: float | None
    step: float
    processor: float


class Measured(NamedTuple):
    """A way, or None for nothing, at one size and beside what."""

    way: Way | None
    pixels: int
    computes: bool


def once(what: Measured, chunks: int, align: Callable[[], object]) -> Times:
    """Hand a batch over after a common start."""
    align()
    start, used = time.perf_counter(), time.process_time()
    arrival = None
    if what.way:
        what.way.start()
    if what.computes:
        arrival = computation(chunks, what.way, start)
    if what.way:
        what.way.wait()
    step, processor = time.perf_counter() - start, time.process_time() - used
    awaited = what.way and not what.way.place.attacks
    return Times((arrival or step) if awaited else None, step, processor)


def computation(chunks: int, way: Way | None, start: float) -> float | None:
    """Multiply matrices; seconds until it was first seen that all had arrived, None if it was not."""
    matrix, seen = torch.eye(256), None
    for _ in range(chunks):
        matrix @ matrix
        if way and seen is None and way.arrived():
            seen = time.perf_counter() - start
    return seen


def bounded_barrier(world: Any, workers: Communicator) -> Callable[[], None]:
    """MPI's barrier, which ends this process after :data:`SECONDS_TO_ANSWER`.

    Args:
        world: a communicator of mpi4py.
        workers: the same workers.
    """
    watchdog = Watchdog(SECONDS_TO_ANSWER, f"worker {workers.rank} on {workers.host}")

    def barrier() -> None:
        with watchdog.waiting("MPI: barrier"):
            world.Barrier()

    return barrier


def work(engine: Literal["horovod", "torch"], rounds: int, chunks: int) -> BenchmarkFile:
    """A worker's whole part; the measurement, the same on all workers."""
    workers = init_communicator(SECONDS_TO_ANSWER, engine=engine)
    place = Place(workers.rank, workers.size)
    notes: list[str] = []
    align: Callable[[], object] = partial(workers.barrier, "common start")
    pairs: Callable[[int, int], Pairs]
    if isinstance(workers, TorchCommunicator):
        pairs = torch_pairs(workers, place)
    else:
        world, reason = join_mpi(workers)
        if world is None:
            raise InputError(f"pairs need MPI: {reason}", everywhere=True)
        pairs, align = mpi_pairs(world, place), bounded_barrier(world, workers)
        notes.append(
            "MPI grants MPI_THREAD_MULTIPLE. Horovod's thread calls MPI in every cycle, and the main thread "
            "while it waits for a pair; nothing else moves data on, as Open MPI has no thread for it."
        )
    measured = [
        Measured(way, images * 3 * size**2, computes)
        for images, size in BATCHES.values()
        for way in (AllToAll(workers, place, images, size), pairs(images, size))
        for computes in (False, True)
    ]
    measured.append(Measured(None, 0, True))
    times: list[list[Times]] = [[] for _ in measured]
    wrong = 0
    for number in range(rounds + 1):
        for turn in range(len(measured)):
            which = (number + turn) % len(measured)
            what = measured[which]
            found = once(what, chunks, align)
            wrong += what.way.wrong() if what.way else 0
            if number:
                times[which].append(found)
    if any(workers.all_gather_object(wrong, "wrong")):
        raise WorkerError("what was handed over is not what was sent", everywhere=True)
    rows = [_row(workers, *one) for one in zip(measured, times, strict=True)]
    device = torch.device("cpu")
    settings = settings_of(workers, device, rounds, chunks=chunks)
    environment = describe_environment(workers, device)
    workers.close()
    return BenchmarkFile.of("handover", environment, settings, rows, notes=notes)


def _row(workers: Communicator, what: Measured, own: list[Times]) -> Row:
    every: list[list[list[float | None]]] = workers.all_gather_object([list(one) for one in own], "times")
    rounds = list(zip(*every, strict=True))
    steps = [max(step for _, step, _ in each) for each in rounds]
    arrivals = [max((a for a, _, _ in each if a is not None), default=None) for each in rounds]
    parameters = {
        "operation": "hand-over" if what.way else "computation",
        "by": what.way.by if what.way else "nothing",
        "protocol": what.way.protocol if what.way else None,
        "beside": "computing" if what.computes else "idle",
        "type": "float32",
        "bytes": 4 * what.pixels,
        "device": "cpu",
        "workers": workers.size,
    }
    figures = {
        "step_seconds": median(steps),
        "processor_seconds": median(sum(processor for _, _, processor in each) for each in rounds),
    }
    return Row(parameters=parameters, seconds=arrivals if what.way else steps, figures=figures)
