"""The record of an epoch: its line in the metrics and on the screen."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

import torch

from hpcdat.distributed.cores import CoreUse
from hpcdat.hardware.energy_meter import total
from hpcdat.hardware.nvml import GpuSample
from hpcdat.hardware.usage import Energy, Usage, add_up, gpu_uuid
from hpcdat.progress import Progress
from hpcdat.training.state import TrainingState
from hpcdat.training.step import StepOutcome

SLOW_WORKER = 1.25
"""A worker is reported as slow if its step time exceeds the median of the workers by this factor."""


class EpochLog:
    """Adds up seconds, costs and images of an epoch in the state's totals, and writes its line.

    Args:
        state: of the training.
        progress: prints the line.
    """

    def __init__(self, state: TrainingState, progress: Progress) -> None:
        self.state, self.progress = state, progress
        self.job, self.exchange = state.algorithm.job, state.algorithm.exchange
        self.workers, self.roles = state.workers, state.algorithm.roles
        on_cpu = state.algorithm.device.type == "cpu"
        self._core_use = CoreUse(torch.get_num_threads() if on_cpu else 1)
        gpu = gpu_uuid(state.algorithm.device)
        self._usage = Usage(gpu, first_on_node=self.workers.local_rank == 0)
        self.begin()

    def begin(self) -> None:
        """Start the clock of an epoch, or of the rest of it."""
        self._usage.begin()
        self._clock = time.perf_counter()
        self._step_seconds: list[float] = []

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count the time inside the block as waiting for images."""
        began = time.perf_counter()
        yield
        self.state.totals.data_seconds += time.perf_counter() - began

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Count the time inside the block as a step, without waiting for the other workers."""
        began, waited = time.perf_counter(), self.exchange.seconds.waited
        yield
        self._step_seconds.append(time.perf_counter() - began - (self.exchange.seconds.waited - waited))
        self._usage.step()
        if warning := self._core_use.step():
            place = f"worker {self.workers.rank} on {self.workers.host}"
            print(f"warning: {place}: {warning}", file=sys.stderr, flush=True)

    def count(self, outcome: StepOutcome, global_size: int, flops: int | None) -> None:
        """Add a step to the totals.

        Args:
            outcome: of the step.
            global_size: images of all workers in it, including those that could not be read.
            flops: floating-point operations of an image; None if they are not counted.
        """
        totals = self.state.totals
        if self.state.flops is not None:
            self.state.flops = None if flops is None else self.state.flops + outcome.images * flops
        totals.skipped_images += global_size - outcome.images
        if outcome.finite:
            totals.cost += outcome.cost * outcome.images
            totals.images += outcome.images
            totals.correct += outcome.correct
        else:
            totals.skipped_steps += 1

    def measure(self) -> None:
        """Add the seconds since the last call, or since :meth:`begin`; all workers call this together."""
        now = time.perf_counter()
        self.state.totals.total_seconds += now - self._clock
        seconds = self.exchange.reset()
        if seconds.busy:
            busy = torch.tensor(seconds.busy, dtype=torch.float64)
            # The last worker to join an exchange waits for no other, so its time is that of the network.
            shortest = -self.workers.all_reduce_max(-busy, "seconds of exchanges")
            self.state.totals.communication_seconds += shortest.sum().item()
        self.state.totals.waited_seconds += seconds.waited
        self._add(add_up(self.workers.gather_object(self._usage.take_energy(), "energy")))
        self._clock = now

    def _add(self, energy: Energy) -> None:
        """Add energy to the totals, in which a part that was not measured once is missing."""
        for name, joules in energy._asdict().items():
            before = getattr(self.state.totals, f"{name}_joules")
            setattr(self.state.totals, f"{name}_joules", total([before, joules]))

    def record(self, rate: float, left_out: int) -> None:
        """Write the epoch's line; all workers call this together.

        Args:
            rate: learning rate of its last step.
            left_out: training images that were not in the epoch, since they fill no global batch.
        """
        totals, traffic = self.state.totals, self.exchange.traffic()
        cost = totals.cost / totals.images if totals.images else math.nan
        seen = totals.images and self.job.weights_of_cost[0]
        self.state.log(
            event="epoch",
            epoch=self.state.epoch,
            lr=rate,
            **asdict(totals) | {"cost": cost if totals.images else None},
            flops=self.state.flops,
            left_out_images=left_out,
            training_accuracy=totals.correct / totals.images if seen else None,
            images_per_second=totals.images / totals.total_seconds,
            data_share=totals.data_seconds / totals.total_seconds,
            megabytes=traffic.total / 2**20,
            megabytes_busiest_card=traffic.busiest / 2**20,
            gpu_watts=None if totals.gpu_joules is None else totals.gpu_joules / totals.total_seconds,
            **self._of_workers(),
        )
        self.progress.say(
            f"epoch {self.state.epoch:3d}/{self.job.total_epochs}  cost {cost:.4f}  lr {rate:g}  "
            f"T {totals.total_seconds:.1f} s  C {totals.communication_seconds:.1f} s"
            + (f"  {totals.skipped_images} images could not be read" if totals.skipped_images else "")
        )

    def _of_workers(self) -> dict[str, Any]:
        """On worker 0 each worker's step times, memory (GiB, largest) and utilisation (mean) of the GPUs."""
        gpu = self._usage.gpu_sample()
        mine = [median(self._step_seconds), max(self._step_seconds), self.workers.host, gpu]
        every = self.workers.gather_object(mine, "step times, GPUs")
        if not every:
            return {}
        medians, longest, hosts, gpus = zip(*every, strict=True)
        self._report_slow(medians, hosts)
        known = [GpuSample(*each) for each in gpus if each is not None]
        return {
            "gpu_memory_gib": max(each.memory for each in known) / 2**30 if known else None,
            "gpu_utilisation": fmean(each.utilisation for each in known) if known else None,
            "workers": {"step_seconds": list(medians), "longest_step_seconds": list(longest)},
        }

    def _report_slow(self, medians: Sequence[float], hosts: Sequence[str]) -> None:
        """Report the slowest worker if it keeps the others waiting.

        Args:
            medians: step time of each worker since :meth:`begin`, seconds. Time spent waiting for images and
                for other workers does not count, so that a slow worker is visible.
            hosts: of each worker.
        """
        # Compared only with workers of the same role: an attack worker has less to do.
        works = [role.work for role in self.roles]
        alike: dict[tuple[int, int, int], list[float]] = {}
        for work, seconds in zip(works, medians, strict=True):
            alike.setdefault(work, []).append(seconds)
        usual = {work: median(seconds) for work, seconds in alike.items()}
        slowest = max(range(len(medians)), key=lambda rank: medians[rank] / usual[works[rank]])
        if medians[slowest] > SLOW_WORKER * usual[works[slowest]]:
            self.progress.say(
                f"worker {slowest} on {hosts[slowest]} is slow: {medians[slowest]:.3g} s for its part of a "
                f"step, the median of the workers is {usual[works[slowest]]:.3g} s"
            )
