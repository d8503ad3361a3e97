"""Batch scripts of jobs and evaluations, and the submission of scripts."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job import Job
from hpcdat.config.job_file import write_job
from hpcdat.config.paths import escape
from hpcdat.errors import InputError, WorkerError, shorten
from hpcdat.slurm.gpus import Gpus, parse_gpus
from hpcdat.slurm.script import Resources, log_in, render
from hpcdat.slurm.site import OPTIONS, OWN, Site
from hpcdat.slurm.time_limit import SECONDS_OF_WARNING
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.run_folder import RunFolder

ENVIRONMENT_OF = {"time": "SBATCH_TIMELIMIT", "array": "SBATCH_ARRAY_INX"}
"""Variables that override an option of a script and do not have its name."""


@dataclass(frozen=True)
class Command:
    """What the workers of a batch script run.

    Attributes:
        name: ``train``, ``evaluate`` or ``certify``.
        run: the run that is evaluated; None: the job, of which the script gets a copy.
        settings: ``key=value`` texts that override those of the run.
        options: further arguments, such as ``--autoattack 1000``.
    """

    name: str = "train"
    run: Path | None = None
    settings: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def script(self) -> str:
        """Name of the script."""
        return "job.sh" if self.name == "train" else f"{self.name}.sh"


TRAIN = Command()
"""Trains the job."""


@dataclass(frozen=True)
class Task:
    """One element of a job array.

    Attributes:
        run_dir: of its run.
        settings: ``key=value`` texts that distinguish it from the others.
    """

    run_dir: Path
    settings: tuple[str, ...]


def choose_gpus(site: Site, requested: str | None) -> Gpus | None:
    """The GPUs per node that a job gets, from the profile or from ``--gpus-per-node``.

    Args:
        site: the cluster's profile.
        requested: a number, or a type and a number such as ``a100:4``; None for what the profile requests.

    Raises:
        InputError: it is neither, or not what the profile requests.
    """
    if requested is None:
        return site.gpus
    try:
        gpus = parse_gpus(requested)
    except ValueError as error:
        raise InputError(f"--gpus-per-node {error}") from None
    if site.gpus is None:
        return gpus if gpus.count else None
    if site.gpus.count != gpus.count or (":" in requested and not site.gpus.value.endswith(requested)):
        raise InputError(
            f"--gpus-per-node {shorten(requested)}: the profile requests others "
            f"(sbatch.{site.gpus.option}: {shorten(site.gpus.value)}); remove one of them"
        )
    return site.gpus


def render_script(
    job: EvaluationJob,
    site: Site,
    resources: Resources,
    tasks: Sequence[Task] = (),
    command: Command = TRAIN,
) -> tuple[Path, str]:
    """Render the batch script of a job, without writing it.

    Args:
        job: resolved; a training job for ``train``.
        site: the cluster's profile.
        resources: what to request from Slurm.
        tasks: elements of an array; none for a single run.
        command: what the workers run.

    Returns:
        The path at which :func:`write_script` writes it, and its text.

    Raises:
        InputError: a path holds a control character, which a directive of sbatch cannot contain.
    """
    folder, job_file, _ = _settings_file(job)
    what = job.method if isinstance(job, Job) and command.name == "train" else command.name
    limit = f"%{resources.at_once}" if resources.at_once else ""
    text = render(
        "job.sh.j2",
        site,
        resources,
        title=what,
        name=job.run_dir.name,
        log=log_in(folder, "%A_%a.log" if tasks else "%j.log"),
        directives=({"array": f"0-{len(tasks) - 1}{limit}"} if tasks else {})
        | {"signal": f"B:USR1@{SECONDS_OF_WARNING}", "open-mode": "append", "requeue": None},
        command=command.name,
        job=escape(command.run.resolve() if command.run else job_file),
        options=command.options,
        array=bool(tasks),
        tasks=[_element(task) for task in tasks or [Task(job.run_dir, ())]]
        if command.run is None
        else [{"run_dir": str(command.run.resolve()), "settings": command.settings}],
    )
    return folder / command.script, text


def write_script(
    job: EvaluationJob,
    site: Site,
    resources: Resources,
    tasks: Sequence[Task] = (),
    command: Command = TRAIN,
) -> tuple[Path, str]:
    """Write the batch script of a job, and the job's settings, to its run folder.

    Args:
        job, site, resources, tasks, command: as for :func:`render_script`.

    Returns:
        The script's path and text.

    Raises:
        InputError: as :func:`render_script`, or the folder cannot be written.
    """
    script, text = render_script(job, site, resources, tasks, command)
    folder, job_file, settings = _settings_file(job)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if command.run is None:
            write_text(job_file, settings)
        write_text(script, text)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from None
    return script, text


def _settings_file(job: EvaluationJob) -> tuple[Path, Path, str]:
    """The folder of a job's script, and the path and text of its settings in there."""
    folder, settings = RunFolder(job.run_dir.resolve()).slurm_folder, write_job(job)
    # Named by its contents, so that a later submission does not change the settings of a queued script.
    name = f"job-{hashlib.blake2b(settings.encode(), digest_size=4).hexdigest()}.yaml"
    return folder, folder / name, settings


def array_tasks(
    run_dir: Path, sweeps: Sequence[str], seeds: range, check: Callable[[tuple[str, ...]], object]
) -> list[Task]:
    """The elements of an array: every value of every sweep, with every seed.

    Args:
        run_dir: folder that holds the run folders of all elements.
        sweeps: texts like ``attack.eps=2/255,4/255``.
        seeds: seeds of every element; a single one adds no dimension.
        check: called with the settings of each element; raises InputError if they are invalid.

    Raises:
        InputError: a sweep or a setting is invalid, or two elements would have the same run folder.
    """
    axes = []
    for sweep in sweeps:
        key, equals, text = sweep.partition("=")
        values = _split(text)
        if not equals or not all(values):
            raise InputError(
                f"sweep {shorten(sweep)}: expected KEY=VALUE,VALUE,... as in attack.eps=2/255,4/255"
            )
        axes.append([f"{key}={value}" for value in values])
    tasks = []
    for settings in itertools.product(*axes):
        folder = run_dir.joinpath(*(re.sub(r"[^A-Za-z0-9_.=-]", "_", text) for text in settings))
        if len(seeds) > 1:
            tasks += [Task(folder / f"seed-{seed}", (*settings, f"seed={seed}")) for seed in seeds]
        elif settings:
            tasks.append(Task(folder, settings))
    folders: dict[Path, Task] = {}
    for task in tasks:
        other = folders.setdefault(task.run_dir, task)
        if other is not task:
            one, two = (shorten(", ".join(each.settings)) for each in (other, task))
            raise InputError(f"sweep: {one} and {two} have the same run folder {task.run_dir}: remove one")
    for task in tasks:
        check(task.settings)
    return tasks


def _split(values: str) -> list[str]:
    """Split at commas, but not at those of a list: ``[1,2],[3]`` has two values."""
    parts, depth = [""], 0
    for character in values:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def submit_script(script: Path) -> int:
    """Submit a script with sbatch.

    Returns:
        The job's id.

    Raises:
        InputError: sbatch is not on PATH.
        WorkerError: Slurm rejects the job, with its message, or prints no id.
    """
    if shutil.which("sbatch") is None:
        raise InputError("sbatch not found: submit from a login node of a Slurm cluster, or make a dry run")
    environment, options = dict(os.environ), re.findall(r"(?m)^#SBATCH --([a-z-]+)", script.read_text())
    for option in sorted({*options, *OPTIONS, *OWN}):
        variable = ENVIRONMENT_OF.get(option, f"SBATCH_{option.upper().replace('-', '_')}")
        if (value := environment.pop(variable, None)) is not None:
            print(f"ignored: {variable}={shorten(value)}, which would override the script", file=sys.stderr)
    done = subprocess.run(
        ["sbatch", "--parsable", str(script)], capture_output=True, text=True, env=environment
    )
    if done.returncode != 0:
        raise WorkerError(f"sbatch rejected {script}: {'; '.join(done.stderr.strip().splitlines())}")
    match = re.search(r"^(\d+)(;\S*)?$", done.stdout, re.MULTILINE)
    if match is None:
        raise WorkerError(f"sbatch printed no job id for {script}: {shorten(repr(done.stdout))}; see squeue")
    return int(match[1])


def _element(task: Task) -> dict[str, Any]:
    run_dir = str(task.run_dir.resolve())
    # Settings are YAML, of which JSON strings are a subset.
    return {"run_dir": run_dir, "settings": [f"run_dir={json.dumps(escape(run_dir))}", *task.settings]}
