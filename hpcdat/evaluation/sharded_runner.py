"""The loop over test images that all measurements share: batches divided among workers and stored on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from hpcdat.attacks.folding import fold
from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.uneven_work import run_unevenly
from hpcdat.errors import InputError
from hpcdat.evaluation.cache_key import cache_key, numerics_key
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.outcome_store import OutcomeStore, StoredOutcome
from hpcdat.evaluation.sanity_checks import pixels_out_of_range
from hpcdat.models.random_numbers import seeded
from hpcdat.out_of_memory import enough_memory
from hpcdat.progress import Progress
from hpcdat.seeds import derive


class Outcome(Protocol):
    """The result of a measurement on one batch."""

    def to_json(self) -> Any:
        """As a JSON value."""
        ...

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The inverse of :meth:`to_json`."""
        ...


OutcomeT = TypeVar("OutcomeT", bound=Outcome)


class Measurement(ABC, Generic[OutcomeT]):
    """A function of a model and a batch of images.

    Attributes:
        name: for messages, and the stem of the store's file.
        settings: all that outcomes depend on besides model, images, batch size and seed; a JSON value.
        outcome: the type of an outcome.
        batch_size_setting: the job's setting to lower when memory runs out.
        folds: whether it has a use for folded batch norm.
    """

    name: str
    settings: Mapping[str, Any]
    outcome: type[OutcomeT]
    batch_size_setting = "evaluation.batch_size"
    folds = True

    @property
    def task(self) -> str:
        """The task as a phrase for messages such as "cannot ..."."""
        return f"measure {self.name}"

    @abstractmethod
    def measure(
        self, model: nn.Module, x: Tensor, y: Tensor, number: int, *, folded: nn.Module | None = None
    ) -> OutcomeT:
        """Measure one batch; random numbers depend only on the job's seed and the batch's number.

        Args:
            model: in evaluation mode; must be left in it.
            x: images (N, C, H, W) in [0, 1], N >= 1.
            y: labels (N,), int64.
            number: of the batch.
            folded: the same function, but for rounding, with batch norm folded, for what is called often;
                None: there is none.
        """


@dataclass(frozen=True)
class Execution:
    """How a measurement is run: its workers, progress bar and stop request.

    Attributes:
        workers: all workers, which run it together.
        progress: shows worker 0's share.
        stop: request to stop, on any worker; None: the measurement cannot be stopped.
    """

    workers: Communicator
    progress: Progress
    stop: StopRequest | None


class _Polled(nn.Module):
    """A model that calls a function before each forward pass.

    An attack on one batch may take minutes, during which the worker must answer the others and notice a stop
    request; every attack, also one of another package, consists of forward passes.
    """

    def __init__(self, model: nn.Module, poll: Callable[[], None]) -> None:
        super().__init__()
        self.model, self.poll, self.training = model, poll, model.training

    def forward(self, x: Tensor) -> Tensor:
        self.poll()
        logits: Tensor = self.model(x)
        return logits


def _folded(model: nn.Module, x: Tensor, poll: Callable[[], None], progress: Progress) -> nn.Module | None:
    """The model with its batch norm folded, if it has any and can be folded; otherwise worker 0 says why."""
    network, remark = fold(model, x)
    if remark:
        progress.say_once(remark)
    return network and _Polled(network.refreshed(), poll)


def run_sharded(
    measurement: Measurement[OutcomeT],
    images: ImageBatches,
    model: nn.Module,
    job: EvaluationJob,
    execution: Execution,
    *,
    store: OutcomeStore | None = None,
) -> dict[int, OutcomeT]:
    """Measure all batches of a list of images, divided among the workers.

    Neither the batches nor their random numbers depend on the number of workers. With a store, a batch is
    written as soon as it is measured, and only missing batches are measured: an evaluation that was stopped
    or killed resumes with any number of workers, with the same outcomes.

    Args:
        measurement: is called with each batch.
        images: the batches.
        model: the same on all workers, in evaluation mode.
        job: resolved.
        execution: workers, progress and stop.
        store: worker 0 reads and merges it, every worker appends to it.

    Returns:
        The outcomes by number of the batch, in order, the same on all workers. Batches without a readable
        image are missing.

    Raises:
        Stopped: a stop was requested; with a store, measured batches are stored.
        InputError: an image lies outside [0, 1], or none can be read.
        WorkerError: a worker failed.
    """
    workers, progress = execution.workers, execution.progress
    name, task = measurement.name, measurement.task

    # On worker 0, since another node may see the files later; the others have none.
    stored: dict[int, StoredOutcome] = {}
    known: dict[int, StoredOutcome] = {}

    def load() -> list[int]:
        """Batches that are still to be measured."""
        stored.update(store.load(progress.say) if store else {})
        for number, indices in images.batches.items():
            # A batch that lacks an image is complete only if images that cannot be read are skipped.
            complete = number in stored and stored[number].images == len(indices)
            if complete or (number in stored and job.data.corrupt == "skip"):
                known[number] = stored[number]
        return sorted(images.batches.keys() - known.keys())

    missing = workers.on_rank0(f"read the outcomes of {name}", load)
    if known:
        progress.say(f"{name}: {len(known)} of {len(images.batches)} batches are already measured")
    own = missing[workers.rank :: workers.size]

    def measure_own(poll: Callable[[], None]) -> dict[int, StoredOutcome]:
        measured: dict[int, StoredOutcome] = {}
        if not own:
            return measured
        polled, folded = _Polled(model, poll), None
        to_fold = measurement.folds and job.evaluation.fold_batch_norm
        progress.begin(task, len(own))
        try:
            batches = images.loader.read([images.batches[number] for number in own], seed=0)
            for number, (x, y) in zip(own, batches, strict=True):
                if len(x):
                    if problems := pixels_out_of_range(*torch.stack(x.aminmax()).tolist()):
                        raise InputError(problems[0])
                    seed = derive(job.seed, "network, evaluation", number)
                    with enough_memory(job, measurement.batch_size_setting), seeded(seed, x.device):
                        if to_fold:
                            folded, to_fold = _folded(model, x, poll, progress), False
                        outcome = measurement.measure(polled, x, y, number, folded=folded)
                    measured[number] = StoredOutcome(len(x), outcome.to_json())
                    if store:
                        store.append(number, measured[number], workers.rank)
                progress.step()
                poll()
        finally:
            progress.end()
        return measured

    measured = run_unevenly(workers, task, measure_own, execution.stop)
    mine = [[number, one.images, one.value] for number, one in {**known, **measured}.items()]
    shares = workers.gather_object(mine, f"outcomes of {name}")
    by_number = {number: [number, count, value] for share in shares for number, count, value in share}
    outcomes = workers.broadcast_object(list(by_number.values()), f"all outcomes of {name}")
    everything = {number: StoredOutcome(count, value) for number, count, value in outcomes}
    if store and not everything.keys().isdisjoint(missing):
        # Stored batches that were not requested now are preserved.
        merged = {**stored, **everything}
        workers.on_rank0(f"write the outcomes of {name}", lambda: store.write(merged))
    if not everything:
        raise InputError(f"{name}: none of the images can be read", everywhere=True)
    return {number: measurement.outcome.from_json(everything[number].value) for number in sorted(everything)}


def open_store(
    folder: Path,
    measurement: Measurement[Any],
    images: ImageBatches,
    model: nn.Module,
    job: EvaluationJob,
    workers: Communicator,
) -> OutcomeStore:
    """The store of a measurement of one model on one list of images; all workers call this together.

    Each combination of weights, images and settings has its own file; so has each kind of device and version
    of torch, since rounding depends on them.

    Args:
        folder: of the files; shared by all workers.
        measurement, images, model, job, workers: as for :func:`run_sharded`.
    """
    key = {
        "measurement": measurement.settings,
        **cache_key(model, job, images.images, workers),
        **numerics_key(model),
        "batch_size": images.batch_size,
        "seed": job.seed,
        # Only if it is set, so that outcomes of before there was this setting are still of use.
        **({"fold_batch_norm": True} if measurement.folds and job.evaluation.fold_batch_norm else {}),
    }
    return OutcomeStore(folder, measurement.name, key)
