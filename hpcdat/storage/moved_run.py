"""Runs whose folder was moved or copied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpcdat.config.job import Job
from hpcdat.storage.run_folder import RunError, RunFolder


def folder_of(file: Path, job: Job, settings: Sequence[str]) -> Path:
    """The run folder of a job: its ``run_dir``, or the folder of its file if that is a run that was moved.

    Args:
        file: from which the job was read.
        job: resolved.
        settings: ``key=value`` texts that have replaced settings of the file.

    Raises:
        RunError: both folders hold a run, so that either may be meant.
    """
    here = file.parent.absolute()
    is_given = any(setting.partition("=")[0].strip() == "run_dir" for setting in settings)
    if is_given or file.name != RunFolder(here).job_file.name or not _is_run(here):
        return job.run_dir
    if here.resolve() == job.run_dir.resolve():
        return job.run_dir
    if _is_run(job.run_dir):
        raise RunError(
            f"{file} lies in the folder of a run, but its run_dir is another run, {job.run_dir}: resume "
            f"one of them with --set run_dir={here} or --set run_dir={job.run_dir}, or choose another folder"
        )
    return here


def _is_run(folder: Path) -> bool:
    run = RunFolder(folder)
    return run.job_file.exists() and run.environment_file.exists()
