"""One worker's share of a node: its threads, its cores, and the other workers, which compute too."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from hpcdat.config.job import Job
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.device import choose_device
from hpcdat.emulation.cluster import emulated_links
from hpcdat.errors import WorkerError, shorten
from hpcdat.performance.microbenchmarks import SimulatedCommunicator

SECONDS_TO_START = 120.0
"""Longest time that the other workers of a trial may take to start: they import torch."""
SECONDS_BETWEEN_POLLS = 0.2
"""Pause between polls while they start."""
COMPUTING = "computing"
"""What another worker of a trial prints once it computes."""


@dataclass(frozen=True)
class NodeShare:
    """How the workers of a node share its cores, in training and in a trial.

    Attributes:
        workers: workers per node (q).
        cores: the cores of each worker that computes in the trial, the one that is timed first. There are at
            most as many workers as cores; with a GPU only one.
        threads: of each of them.
        own_cores: whether there is a core for each thread.
    """

    workers: int
    cores: Sequence[Sequence[int]]
    threads: int
    own_cores: bool

    @property
    def slowdown(self) -> float:
        """Workers per node over workers in the trial, on a CPU: more workers take turns on the cores."""
        return self.workers / len(self.cores)

    def describe(self) -> str:
        """``2 workers at once, each with 1 thread``, for the line on the computation."""
        count = len(self.cores)
        text = f"{count} workers at once, each with " if count > 1 else ""
        text += f"{self.threads} thread{'s' * (self.threads > 1)}"
        if self.slowdown > 1:
            text += f", seconds times {self.slowdown:.3g} for {self.workers} workers on {count} cores"
        return text


def use_share(job: Job, workers: Communicator, per_node: int) -> torch.device:
    """This worker's device; on a CPU, torch uses the threads of one of ``per_node`` workers from now on.

    Raises:
        InputError: the job requests a GPU and none is available.
    """
    place = SimulatedCommunicator(per_node)
    place.local_rank, place.local_size = workers.local_rank, per_node
    return choose_device(job, place)


def share_of_node(workers: Communicator, per_node: int, device: torch.device) -> NodeShare:
    """How ``per_node`` workers share this node; all workers call this together, after :func:`use_share`.

    The cores are those that the workers here may use: a launcher may have bound each to cores of its own.
    """
    here = [workers.node_of[workers.rank], sorted(os.sched_getaffinity(0))]
    everywhere = workers.all_gather_object(here, "cores")
    bound = [cores for node, cores in everywhere if node == here[0]]
    available = len(set().union(*bound))
    threads = torch.get_num_threads()
    if device.type == "cuda":
        return NodeShare(1, bound[:1], threads, own_cores=False)
    count = min(per_node, available)
    # The nodes of a cluster in a box share the cores of one machine.
    own_cores = count * threads <= available and emulated_links() is None
    return NodeShare(per_node, [bound[i % len(bound)] for i in range(count)], threads, own_cores)


class OtherWorkers:
    """The other workers of a node, as processes that compute a step again and again, inside a ``with`` block.

    They end with the block, and when this process ends in any way.

    Args:
        job: resolved.
        classes, images: as for :class:`~hpcdat.performance.trial_step.TrialStep`.
        share: cores and threads.
        poll: called while they start; may raise to end the trial.
    """

    def __init__(
        self, job: Job, classes: int, images: int, share: NodeShare, poll: Callable[[], None]
    ) -> None:
        task = {
            "job": job.model_dump(mode="json", by_alias=True),
            "classes": classes,
            "images": images,
            "threads": share.threads,
        }
        self._tasks = [json.dumps(task | {"cores": list(cores)}) for cores in share.cores[1:]]
        self._poll = poll
        self._processes: list[subprocess.Popen[str]] = []
        self._files = ExitStack()

    def __enter__(self) -> OtherWorkers:
        self._errors = self._files.enter_context(tempfile.TemporaryFile("w+"))
        try:
            for task in self._tasks:
                process = subprocess.Popen(
                    [sys.executable, "-m", "hpcdat.performance.other_worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    text=True,
                )
                self._processes.append(process)
                assert process.stdin is not None
                print(task, file=process.stdin, flush=True)
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def check(self) -> None:
        """Check that all of them still compute.

        Raises:
            WorkerError: one has ended, so that the others have more than their share of the cores.
        """
        for process in self._processes:
            if process.poll() is not None:
                self._errors.seek(0)
                lines = self._errors.read().splitlines() or ["it printed no error"]
                raise WorkerError(
                    f"a trial with {len(self._processes) + 1} workers on this machine failed: one of them "
                    f"ended with code {process.returncode}: {shorten(lines[-1])}"
                )

    def _wait(self) -> None:
        """Wait until all of them compute."""
        deadline = time.monotonic() + SECONDS_TO_START
        starting = [process.stdout for process in self._processes if process.stdout]
        while starting:
            self._poll()
            for output in select.select(starting, [], [], SECONDS_BETWEEN_POLLS)[0]:
                if output.readline().strip() == COMPUTING:
                    starting.remove(output)
            self.check()
            if time.monotonic() > deadline:
                raise WorkerError(
                    f"{len(starting)} of {len(self._processes)} other workers on this machine have not "
                    f"started to compute within {SECONDS_TO_START:.0f} s"
                )

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
        self._processes = []
        self._files.close()
