"""Evaluations of given weights: from a job file, in a folder of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job_file import read_evaluation_job, write_job
from hpcdat.errors import InputError
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.run_folder import RunError, RunFolder


def open_for_evaluation(
    source: Path, settings: Sequence[str], *, attacked: bool = False
) -> tuple[RunFolder, EvaluationJob]:
    """The folder for the results of an evaluation, and its job.

    Args:
        source: the folder of a run or of an earlier evaluation, or a job file whose model has weights.
        settings: ``key=value`` texts that override the job's.
        attacked: whether the evaluation attacks the model, for which it needs a radius.

    Returns:
        The folder and the resolved job: a training job for the folder of a run, otherwise one without
        training, whose model has weights.

    Raises:
        InputError: there is no such folder or file, it is not a run or job, a setting is invalid, the job has
            no weights, or its folder is another's.
    """
    folder, job = _open(source, settings)
    if attacked and job.evaluation.eps is None:
        raise InputError(
            f"{source}: evaluation.eps: missing: the radius of the attack, such as 8/255; or name a threat "
            "model with evaluation.preset"
        )
    return folder, job


def _open(source: Path, settings: Sequence[str]) -> tuple[RunFolder, EvaluationJob]:
    if not source.exists():
        raise RunError(f"{source} is neither the folder of a run nor a job file: it does not exist")
    folder = RunFolder(source)
    if source.is_file():
        folder = RunFolder(source.parent)
        if not (folder.is_evaluation and source.name == folder.job_file.name):
            return _open_job(source, settings)
    return folder, folder.read_evaluation_job(list(settings))


def _open_job(file: Path, settings: Sequence[str]) -> tuple[RunFolder, EvaluationJob]:
    job = read_evaluation_job(file, settings)
    if job.model.pretrained is None:
        raise InputError(
            f"{file}: model.pretrained: missing: the file of the weights to evaluate. To evaluate a run of "
            f"this job, name its folder instead, such as {job.run_dir}"
        )
    folder = RunFolder(job.run_dir)
    _check_free(folder)
    return folder, job.without_training()


def check_given(path: Path) -> None:
    """Check that the file or folder of given weights is there, before anything that takes long.

    Raises:
        InputError: it is not.
    """
    try:
        path.stat()
    except FileNotFoundError:
        raise InputError(f"model.pretrained: {path}: there is no such file or folder") from None
    except OSError as error:
        raise InputError(f"model.pretrained: {path}: cannot be read: {error.strerror}") from None


def begin_evaluation(
    folder: RunFolder, job: EvaluationJob, weights: str, environment: dict[str, Any]
) -> None:
    """Create the folder of an evaluation of given weights, or check that it is of the same weights.

    Args:
        folder: of the results.
        job: resolved; it is recorded if the folder is new.
        weights: hash of the model.
        environment: description of what this start runs on.

    Raises:
        InputError: the folder is another's, of other weights, or cannot be written.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        _check_free(folder)
        if not folder.is_evaluation:
            record = {"file": str(job.model.pretrained), "weights": weights}
            write_text(folder.weights_file, json.dumps(record, indent=2) + "\n")
        _check_weights(folder, weights)
        write_text(folder.environment_file, json.dumps(environment, indent=2) + "\n")
        if not folder.job_file.exists():
            pretrained = job.model.pretrained and job.model.pretrained.absolute()
            model = job.model.model_copy(update={"pretrained": pretrained})
            write_text(folder.job_file, write_job(job.model_copy(update={"model": model})))
    except OSError as error:
        raise RunError(f"run_dir {folder.path} cannot be written: {error.strerror}") from None


def _check_free(folder: RunFolder) -> None:
    """Check that a folder is new, empty, or of an evaluation of given weights."""
    if folder.is_evaluation or not folder.path.is_dir() or not folder.contents():
        return
    if folder.job_file.exists() and folder.environment_file.exists():
        raise RunError(
            f"run_dir {folder.path} holds a training run: evaluate it with `hpcdat evaluate {folder.path}`, "
            "or choose another folder for model.pretrained"
        )
    raise RunError(f"run_dir {folder.path} contains files that are not an evaluation: choose another folder")


def _check_weights(folder: RunFolder, weights: str) -> None:
    try:
        record = json.loads(folder.weights_file.read_text())
        file, before = record["file"], record["weights"]
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{folder.weights_file} is damaged: choose another run_dir") from None
    if before != weights:
        raise RunError(
            f"run_dir {folder.path} holds an evaluation of other weights, or with other model.mean and "
            f"model.std ({file}): choose another folder"
        )
