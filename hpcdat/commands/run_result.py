"""The result of a run, for its folder and the result table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from statistics import median
from typing import Any, TypeVar

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job import Job
from hpcdat.config.sections import Data, by_name
from hpcdat.distributed.communicator import Communicator
from hpcdat.evaluation.accuracy import Accuracy
from hpcdat.evaluation.attack_text import describe_evaluation
from hpcdat.evaluation.results import AutoAttacked
from hpcdat.hardware.energy_meter import total
from hpcdat.performance.autotune import exchange_of_run
from hpcdat.report.result_table import result_table
from hpcdat.storage.evaluated import AVERAGED, Concluded, Evaluated, WeightsResult
from hpcdat.storage.run_folder import RESULT_ADAPTER, WEIGHTS_RESULT_ADAPTER, Result, RunError, RunFolder
from hpcdat.training.roles import assign_roles

ConcludedT = TypeVar("ConcludedT", bound=Concluded)
IRRELEVANT = (
    *("data.train", "data.train_images", "data.unlabelled", "data.unlabelled_part", "data.split"),
    *("data.last_batch", "data.threads", "data.download", "data.policy"),
    "data.progressive_resizing",
    *("evaluation.every", "evaluation.autoattack", "evaluation.fast_bound", "certification.sigma"),
    *("model.batch_norm", "model.pretrained", "model.pretrained_averaged", "model.compiled"),
)
"""Settings of the sections below that make no difference to a measurement, or stand beside it anyway."""
EVALUATION_SETTINGS = ("data.", "evaluation.", "model.", "seed")
"""Beginnings of the settings that TA, RA and AA depend on."""
CERTIFICATION_SETTINGS = ("certification.", "data.", "evaluation.fold_batch_norm", "model.", "seed")
"""Beginnings of those that certificates depend on."""
AGAIN = "measured again"
"""Stands among the changed settings where none has changed but the accuracies have."""


def conclude_run(
    folder: RunFolder,
    job: Job,
    accuracy: Accuracy,
    weights: str,
    epoch: int,
    workers: Communicator,
    *,
    finished: bool,
    averaged: bool = False,
    aa: AutoAttacked | None = None,
    fast_bound: float | None = None,
) -> Result:
    """Add an evaluation to the result of a run on rank 0, and return the result on all workers.

    Args:
        folder: with the records of the training.
        job, accuracy, weights, epoch, aa, fast_bound: as for :func:`summarise`.
        workers: all of them call this together.
        finished: whether this is the evaluation at the end of the training, which is logged.
        averaged: whether averaged weights were evaluated, which are never the run's own result.

    Raises:
        InputError, WorkerError: the records cannot be read or the result cannot be written.
    """

    def conclude() -> dict[str, Any]:
        changed = () if finished else changed_settings(folder, job, EVALUATION_SETTINGS, averaged=averaged)
        measured = summarise(folder, job, accuracy, epoch, weights, changed, aa, fast_bound)
        replaces = finished or not folder.metrics("finished")
        result = with_evaluation(_result_so_far(folder), measured, replaces=replaces)
        folder.write_result(result, result_table({folder.path: result}))
        if finished:
            folder.log(event="finished")
        return asdict(result)

    return RESULT_ADAPTER.validate_python(workers.on_rank0("write the result", conclude))


def conclude_evaluation(
    folder: RunFolder,
    job: EvaluationJob,
    accuracy: Accuracy,
    workers: Communicator,
    *,
    weights: str,
    aa: AutoAttacked | None = None,
    fast_bound: float | None = None,
) -> WeightsResult:
    """Add an evaluation to the result of given weights on rank 0, and return it on all workers.

    Args:
        folder: of the evaluation.
        job, accuracy, weights, aa, fast_bound: as for :func:`summarise`.
        workers: all of them call this together.

    Raises:
        InputError, WorkerError: the records cannot be read or the result cannot be written.
    """
    pretrained = job.model.pretrained
    assert pretrained is not None  # the job was opened for an evaluation

    def conclude() -> dict[str, Any]:
        measured = WeightsResult(
            file=pretrained.name,
            data=_name_of_data(job.data),
            images=accuracy.images,
            ta=accuracy.ta,
            ra=accuracy.ra,
            attack=describe_evaluation(job),
            epoch=None,
            changed=changed_settings(folder, job, EVALUATION_SETTINGS),
            weights=weights,
            fast_bound=fast_bound,
            **aa._asdict() if aa else {},
        )
        before = folder.read_weights_result() if folder.result_file.exists() else None
        result = with_evaluation(before, measured, replaces=True)
        folder.write_result(result, result_table({folder.path: result}))
        return asdict(result)

    return WEIGHTS_RESULT_ADAPTER.validate_python(workers.on_rank0("write the result", conclude))


def _name_of_data(data: Data) -> str:
    """The test images as a table names them."""
    if not data.has_folders or data.root is None:
        return data.source
    return f"{data.root.name}/{data.train if data.test_fraction else data.test}"


def summarise(
    folder: RunFolder,
    job: Job,
    accuracy: Accuracy,
    epoch: int,
    weights: str,
    changed: tuple[str, ...],
    aa: AutoAttacked | None,
    fast_bound: float | None = None,
) -> Result:
    """The row of a run in the result table.

    Args:
        folder: with the records of the training: workers, times, bytes.
        job: resolved, with the settings of the evaluation.
        accuracy: of the evaluation.
        epoch: number of epochs trained.
        weights: hash of the evaluated weights.
        changed: settings in which the evaluation differs from that of the run's own job.
        aa: the result of AutoAttack; None if not measured.
        fast_bound: in [0, 1]; None if not measured.
    """
    environment = folder.environment()
    epochs = folder.metrics("epoch")
    # Epochs with skipped steps or unreadable images are shorter.
    complete = [e for e in epochs if e["images"] == max(e["images"] for e in epochs)]
    return Result(
        method=job.method,
        seed=job.seed,
        p=environment["nodes"],
        q=len(environment["workers"]) // environment["nodes"],
        batches=assign_roles(job, len(environment["workers"])).batches,
        batch=job.batch_size,
        images=accuracy.images,
        ta=accuracy.ta,
        ra=accuracy.ra,
        attack=describe_evaluation(job),
        communication=median(e["communication_seconds"] for e in complete) if complete else None,
        total=median(e["total_seconds"] for e in complete) if complete else None,
        exchange=exchange_of_run(job.exchange, folder.choice_file).describe(),
        megabytes=epochs[-1]["megabytes"] if epochs else None,
        epoch=epoch,
        changed=changed,
        weights=weights,
        images_per_second=median(e["images"] / e["total_seconds"] for e in complete) if complete else None,
        gpu_wh=_watt_hours(epochs, "gpu_joules"),
        package_wh=_watt_hours(epochs, "package_joules"),
        dram_wh=_watt_hours(epochs, "dram_joules"),
        flops=epochs[-1].get("flops") if epochs else None,
        chosen_on_test=job.early_stopping.chooses_weights and not job.early_stopping.held_out,
        fast_bound=fast_bound,
        **aa._asdict() if aa else {},
    )


def _watt_hours(epochs: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Energy of all epochs; None if it was not measured in one of them."""
    joules = total([epoch.get(key) for epoch in epochs])
    return None if joules is None else joules / 3600


def changed_settings(
    folder: RunFolder, job: EvaluationJob, relevant: tuple[str, ...], *, averaged: bool = False
) -> tuple[str, ...]:
    """The settings in which a measurement differs from that of the run's own job, with their values.

    Args:
        folder: of the run.
        job: of the measurement, resolved.
        relevant: beginnings of the settings to compare.
        averaged: whether averaged weights are measured, not those that the training ended with.
    """
    own = by_name(folder.read_evaluation_job([]))
    changed = tuple(
        f"{key}: {'none' if value is None else value}"
        for key, (value, _) in by_name(job).items()
        if key.startswith(relevant) and key not in IRRELEVANT and value != own[key][0]
    )
    return (AVERAGED, *changed) if averaged else changed


def _result_so_far(folder: RunFolder) -> Result | None:
    """The result in a run's folder; None if there is none, or none that can be read.

    Before results listed other evaluations, these replaced the run's own: its attack shows that.
    """
    try:
        before = folder.read_result()
    except RunError:
        return None
    own = folder.read_job([])
    if not before.changed and before.attack != describe_evaluation(own):
        return replace(before, changed=("settings: unknown",))
    return before


def with_evaluation(before: ConcludedT | None, measured: ConcludedT, *, replaces: bool) -> ConcludedT:
    """The result of a run after a further evaluation; what its own job has measured stays first.

    Args:
        before: the result so far.
        measured: the evaluation.
        replaces: whether it replaces an earlier one with the run's own settings: training has ended with it,
            or has not ended yet. Otherwise what the end of the training has measured stays.

    Returns:
        The run's own measurement, or the first evaluation if there is none, and the others.
    """
    if before is None:
        return measured
    first, others = before, before.others
    same_weights = before.weights in (None, measured.weights) and before.epoch == measured.epoch
    if measured.changed == before.changed:
        if replaces or measured.changed:
            first = measured
        elif not same_weights or measured.counts != before.counts:
            others = _with(others, replace(_evaluated(measured), changed=(AGAIN,)))
        if same_weights:
            source = before if measured.aa is None else measured
            bound = before.fast_bound if measured.fast_bound is None else measured.fast_bound
            aa = {key: getattr(source, key) for key in AutoAttacked._fields}
            first = replace(first, fast_bound=bound, **aa)
    elif not measured.changed:
        first, others = measured, _with(others, _evaluated(before))
    else:
        others = _with(others, _evaluated(measured))
    return replace(first, others=others)


def _evaluated(result: Concluded) -> Evaluated:
    """The accuracies of a result without the rest."""
    return Evaluated(**{field.name: getattr(result, field.name) for field in fields(Evaluated)})


def _with(others: tuple[Evaluated, ...], one: Evaluated) -> tuple[Evaluated, ...]:
    """The evaluations and one more, in place of an earlier one with the same settings."""
    return (*(other for other in others if other.changed != one.changed), one)
