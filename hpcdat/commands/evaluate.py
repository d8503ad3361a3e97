"""Evaluate the checkpoint of a run, or given weights, on every worker."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcdat.commands.run_result import (
    EVALUATION_SETTINGS,
    changed_settings,
    conclude_evaluation,
    conclude_run,
)
from hpcdat.commands.trained_model import images_for, load_model, prepare_folder
from hpcdat.config.job import Job
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.evaluation.attack_text import describe_evaluation
from hpcdat.evaluation.determinism import deterministic
from hpcdat.evaluation.gallery import gallery
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.evaluation.results import AutoAttacked, evaluate_robustness
from hpcdat.evaluation.sharded_runner import Execution
from hpcdat.progress import Progress
from hpcdat.report.gallery import gallery_page
from hpcdat.report.sweep_files import write_sweeps
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.evaluated import WeightsResult
from hpcdat.storage.evaluation_folder import open_for_evaluation
from hpcdat.storage.folder_lock import locked
from hpcdat.storage.run_folder import Result
from hpcdat.tracking.tracking import check_trackers, record_result


def evaluate(
    source: Path, settings: list[str], request: EvaluationRequest, workers: Communicator, stop: StopRequest
) -> Result | WeightsResult:
    """Evaluate the latest checkpoint of a finished or interrupted run, or given weights.

    Args:
        source: the folder of the run or of an earlier evaluation, or a job file whose model has weights.
        settings: ``key=value`` texts, such as ``evaluation.steps=50``.
        request: measurements in addition to TA and RA.
        workers: all of them call this together.
        stop: request to stop.

    Returns:
        The result of the folder, with this evaluation: as its own one if no setting differs from its job's,
        otherwise among the others. Worker 0 has written it and the results of all measurements to the
        folder, and the warnings of the sanity checks to stderr.

    Raises:
        InputError: the folder is not a run's or has no checkpoint, the job has no weights or they do not fit,
            a setting is wrong, or another evaluation in this folder is in progress.
        WorkerError: something failed on a worker.
        Stopped: a stop was requested; the same command resumes.
    """
    folder, job = workers.on_all_ranks(
        "read the job", lambda: open_for_evaluation(source, settings, attacked=True)
    )
    if isinstance(job, Job) and job.trackers:
        workers.on_rank0("load the trackers", lambda: check_trackers(job.trackers))
    trained = load_model(folder, job, workers, averaged=request.averaged)
    test_images = images_for(trained, job, workers)
    prepare_folder(folder, job, trained, workers)
    progress = Progress(shown=workers.is_rank0)
    execution = Execution(workers, progress, stop)
    with deterministic(trained.device, progress.say), locked(folder.outcomes_folder, workers):
        results = evaluate_robustness(
            request, test_images, trained.model, job, execution, folder.outcomes_folder
        )
        shown = None
        if request.gallery:
            shown = gallery(
                request.gallery, test_images, trained.model, job, execution, folder.outcomes_folder
            )

    def write() -> dict[str, Any]:
        changed = changed_settings(folder, job, EVALUATION_SETTINGS, averaged=request.averaged)
        everything = replace(results, changed=changed).merged_with(folder.evaluation_file)
        everything.write(folder.evaluation_file, trained.epoch, trained.step)
        for file in write_sweeps(folder.evaluation_file, folder.path):
            progress.say(f"written: {file}")
        if shown is not None:
            weights = "averaged weights" if request.averaged else "weights"
            model = f"{job.model.name}, {weights} of {folder.path}"
            page = folder.outcomes_folder / "gallery.html"
            write_text(page, gallery_page(shown, test_images.classes, describe_evaluation(job), model))
            progress.say(f"written: {page}")
        for warning in results.warnings:
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        ball = job.evaluation, job.evaluation.resolved_norm
        return {"aa": everything.autoattack(*ball), "fast_bound": everything.fast_bound(*ball)}

    written = workers.on_rank0("write the results", write)
    bounds = written | {"aa": AutoAttacked(*written["aa"]) if written["aa"] else None}
    weights = results.key["weights"]
    if trained.epoch is None or not isinstance(job, Job):
        return conclude_evaluation(folder, job, results.accuracy, workers, weights=weights, **bounds)
    result = conclude_run(
        *(folder, job, results.accuracy, weights, trained.epoch, workers),
        finished=False,
        averaged=request.averaged,
        **bounds,
    )
    if job.trackers:
        workers.on_rank0("record the result in the trackers", lambda: record_result(job, folder, result))
    return result
