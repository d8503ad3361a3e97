"""Compare the settings of a run with those that it is resumed with."""

from __future__ import annotations

from pathlib import Path

import yaml

from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.config.sections import by_name
from hpcdat.errors import shorten

FOLD = "attack.fold_batch_norm"


def compare_settings(job_file: Path, job: Job, *, finished: bool) -> tuple[list[str], list[str]]:
    """The settings that differ from those of a run, each as ``key: before -> now``.

    Args:
        job_file: the run's own job, which states all settings.
        job: the job to resume it with.
        finished: whether the run has been trained to its end.

    Returns:
        The settings that may change, and those that may not.

    Raises:
        JobError: the run's job cannot be read.
    """
    before = by_name(read_job(job_file))
    if not _states(job_file, FOLD):
        # A run from before there was this setting; it makes no difference where nothing would be folded.
        folds = job.folds_batch_norm and not finished
        before[FOLD] = (job.attack.fold_batch_norm and not folds, False)
    changed: list[str] = []
    refused: list[str] = []
    for key, (value, may_change) in by_name(job).items():
        if before[key][0] != value:
            text = f"{key}: {shorten(before[key][0])} -> {shorten(value)}"
            (changed if may_change else refused).append(text)
    return changed, refused


def _states(job_file: Path, key: str) -> bool:
    section, setting = key.split(".")
    return setting in yaml.safe_load(job_file.read_text()).get(section, {})
