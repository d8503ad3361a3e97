"""What one of M workers does in a short training, phase by phase, for ``benchmarks/scale.py``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.data.images import Images
from hpcdat.data.sampler import training_shares
from hpcdat.distributed.communicator import JSON, Communicator, Pending
from hpcdat.distributed.counting import Counted
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.single_process import Completed
from hpcdat.errors import Stopped
from hpcdat.models import build_model_for
from hpcdat.performance.microbenchmarks import SimulatedCommunicator
from hpcdat.storage.checkpoint_format import file_of_rows
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.step import Algorithm1
from hpcdat.training.trainer import Trainer
from hpcdat.training.validation import ImageSplits

JOB = Path(__file__).resolve().parents[1] / "jobs" / "demo.yaml"
CPU = torch.device("cpu")
PER_NODE = 6
"""Simulated workers on a node."""
BATCH, STEPS, EPOCHS = 2, 4, 6
"""Images a worker and step, steps an epoch, and epochs; the first one is not measured."""
TEST_IMAGES, TEST_BATCH = 96, 16
"""Six batches, so that with every M the workers that are measured have one."""
SETTINGS = [
    *("method=dat-fgsm", "attack.steps=null", "early_stopping.fgsm_guard=false"),
    *(f"batch_size={BATCH}", f"epochs={EPOCHS}", "schedule.decay_epochs=[]", "data.loader=device"),
    *("evaluation.every=1", "evaluation.steps=1", f"evaluation.batch_size={TEST_BATCH}"),
]
FEEDBACK = ["exchange.bits=8", "exchange.protocol=sharded_server", "exchange.error_feedback=true"]
STATUS_ROUND = "whether all have done their share"
"""An all-reduce of 24 bytes, four times a second in an evaluation; not counted, as it depends on the time."""
IMAGENET, IMAGENET_BATCH = 1_281_167, 64
REPEATS = 3
PHASES = {
    "begin": "epoch's begin",
    "step": "step",
    "end": "epoch's end",
    "checkpoint": "checkpoint after an epoch",
    "checkpoint within": "checkpoint within an epoch",
    "evaluation": "evaluation",
}
"""What is measured, with its label."""


@dataclass
class Stop:
    """A request to stop that the program makes itself."""

    requested: bool = False


class OneOf(SimulatedCommunicator):
    """One of M workers, of which the others are like it: a sum is M times its own part.

    Args:
        size: M.
        rank: of the worker.
        of_rank0: by the name of a collective, what worker 0 gave in each; it is filled by worker 0, and any
            other worker gets it from there.
    """

    def __init__(self, size: int, rank: int, of_rank0: dict[str, list[Any]]) -> None:
        super().__init__(size)
        self.rank, self.local_rank = rank, rank % PER_NODE
        self.node_of = [other // PER_NODE for other in range(size)]
        self.nodes = self.node_of[-1] + 1
        self.of_rank0 = of_rank0

    def _of_rank0(self, name: str, own: Any) -> Any:
        """What worker 0 gave in this collective."""
        given = self.of_rank0.setdefault(name, [])
        if self.is_rank0:
            given.append(own)
            return own
        return given.pop(0)

    def iall_reduce(self, tensors: Sequence[Tensor], name: str) -> Pending:  # noqa: D102
        torch._foreach_mul_(list(tensors), self.size)
        return Completed(tensors)

    def iall_to_all_v(self, rows: Tensor, counts: Sequence[int], name: str) -> Pending:  # noqa: D102
        first = sum(counts[: self.rank])
        received = rows[first : first + counts[self.rank]]
        return Completed(torch.cat([received] * self.size) if len(received) else received)

    def ibroadcast(self, tensor: Tensor, name: str) -> Pending:  # noqa: D102
        return Completed(tensor.copy_(self._of_rank0(name, tensor.clone())))

    def all_gather_object(self, value: JSON, name: str) -> list[Any]:  # noqa: D102
        return super().all_gather_object(self._of_rank0(name, value), name)


class Mark(NamedTuple):
    """A moment in what a worker does.

    Attributes:
        clock: seconds.
        process: seconds of a core that the process has used.
        thread: seconds of a core that this thread has used.
        messages: number of collectives started.
    """

    clock: float
    process: float
    thread: float
    messages: int


class Event(NamedTuple):
    """Something that a worker does, from one mark to another."""

    name: str
    began: Mark
    ended: Mark


@dataclass
class Recorder:
    """Records what a worker does, in order, by wrapping the functions that do it."""

    workers: Counted
    events: list[Event] = field(default_factory=list)

    def mark(self) -> Mark:
        """This moment."""
        now = time.perf_counter(), time.process_time(), time.thread_time()
        return Mark(*now, len(self.workers.messages))

    def wrap(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The function, recorded under a name."""

        def recorded(*arguments: Any, **named: Any) -> Any:
            began = self.mark()
            try:
                return work(*arguments, **named)
            finally:
                self.events.append(Event(name, began, self.mark()))

        return recorded

    def phases(self) -> dict[str, list[Event]]:
        """The events by phase, after the first epoch; what lies between two of them is a phase too."""
        found: dict[str, list[Event]] = {name: [] for name in PHASES}
        epoch, last = 0, self.events[-1]
        for before, event in zip(self.events, self.events[1:], strict=False):
            name, between = event.name, ""
            if event.name == "step" != before.name:
                epoch, between = epoch + 1, "begin"
            elif event is last:
                name = "checkpoint within"
            elif before.name == "step" != event.name:
                between = "end"
            if epoch > 1 and between:
                found[between].append(Event(between, before.ended, event.began))
            if epoch > 1:
                found[name].append(event)
        return found


def images(count: int) -> Images:
    """Random images of digits' size, in memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    names = [f"{number}" for number in range(count)]
    return Images(names, [number % 10 for number in range(count)], list("0123456789"), pixels)


def job_in(folder: Path, settings: Sequence[str]) -> Job:
    """The job of the training."""
    return read_job(JOB, [*SETTINGS, f"run_dir={folder}", *settings])


def train(job: Job, inner: Communicator) -> dict[str, Any]:
    """Train for some epochs, stop within the last one, and report each phase.

    Returns:
        By phase the median seconds of the clock, of a core in the process and in this thread, the number of
        messages, and the bytes given and got, gradients not counted; with the bytes of a checkpoint after an
        epoch and within one.
    """
    workers, stop = Counted(inner), Stop()
    recorder = Recorder(workers)
    folder = RunFolder(job.run_dir)
    environment = describe_environment(workers, CPU)
    workers.on_rank0("make the run folder", lambda: folder.begin(job, environment, overwrite=True))
    start = len(workers.messages)
    train_images, test_images = images(BATCH * STEPS * workers.size), images(TEST_IMAGES)
    model = build_model_for(job, 10, CPU)
    algorithm = Algorithm1(job, model, job.exchange, workers, CPU)
    trainer = Trainer(algorithm, folder, ImageSplits(train_images, test_images, test_images), stop)
    trainer.progress.say = lambda text: None
    trainer.progress.shown = False
    step = recorder.wrap("step", algorithm.step)

    def counted(*arguments: Any) -> Any:
        stop.requested = trainer.state.epoch == EPOCHS - 1 and trainer.state.step == STEPS // 2
        return step(*arguments)

    algorithm.step = counted
    trainer.state.save = recorder.wrap("checkpoint", trainer.state.save)
    trainer.validation.measure = recorder.wrap("evaluation", trainer.validation.measure)
    with suppress(Stopped):
        trainer.run()
    trainer.close()
    algorithm.exchange.close()
    sizes = {}
    if workers.is_rank0:
        kept = folder.checkpoints
        for name, file in {"after": kept.epoch_file, "within": kept.step_file}.items():
            rows = file_of_rows(file)
            files = [file, kept.folder / rows] if rows else [file]
            sizes[name] = sum(one.stat().st_size for one in files)
    return {
        "start": _messages(workers, 0, start),
        "phases": {name: _summary(workers, events) for name, events in recorder.phases().items()},
        "checkpoint_bytes": sizes,
    }


def _summary(workers: Counted, events: Sequence[Event]) -> dict[str, float]:
    spent = [np.subtract(event.ended, event.began) for event in events]
    clock, process, thread, _ = np.median(spent, axis=0).tolist()
    last = events[-1]
    messages = _messages(workers, last.began.messages, last.ended.messages)
    return {"clock": clock, "seconds": process, "thread": thread, **messages}


def _messages(workers: Counted, first: int, last: int) -> dict[str, float]:
    """Number of collectives, and bytes of those that do not carry gradients."""
    own = [message for message in workers.messages[first:last] if message.name != STATUS_ROUND]
    control = [message for message in own if not message.name.startswith("gradients")]
    return {
        "messages": len(own),
        "given": sum(message.sent for message in control),
        "got": sum(message.received for message in control),
        "counts": sum(message.counts for message in control),
    }


def seconds_of_shares(size: int, rank: int) -> dict[str, float]:
    """Seconds of a core to assign ImageNet's images to a worker: of all, and of a part of its own."""
    found = {}
    for name, groups in {"shares": [0] * size, "own shares": list(range(size))}.items():
        times = []
        for epoch in range(REPEATS):
            began = time.process_time()
            training_shares(IMAGENET, IMAGENET_BATCH, rank=rank, groups=groups, seed=0, epoch=epoch)
            times.append(time.process_time() - began)
        found[name] = median(times)
    return found
