"""Batch scripts for ``sbatch``, and their submission."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationInfo, field_validator

from hpcdat.config.job import Job
from hpcdat.config.job_file import read_settings, write_job
from hpcdat.errors import InputError, WorkerError, shorten
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.run_folder import RunFolder

SITES = Path(__file__).with_name("sites")
"""Folder of the profiles that come with hpcdat."""
SECONDS_OF_WARNING = 120
"""Time between Slurm's warning and the time limit, for a step, a checkpoint and the requeue."""
SHORTEST_TIME_LIMIT = 300
"""Seconds; a shorter limit would leave no time to train between start and warning."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.,:+&|@/-]+$")]
"""A name for Slurm or a module system, without characters that a shell interprets."""
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
OneLine = Annotated[str, StringConstraints(pattern=r"^[^\n\r\x00]*$")]


class Site(BaseModel):
    """The profile of a cluster: what its jobs need.

    Attributes:
        launcher: what starts the workers.
        partition, account, qos, constraint: options of sbatch.
        cpus_per_worker: cores per worker.
        modules: environment modules to load first.
        container: command that Python runs under, such as ``[apptainer, exec, --nv, image.sif]``.
        interface: network card for the workers' traffic; with mpirun also a subnet.
        environment: variables of the workers, such as NCCL's.
        sbatch: other options of sbatch, without ``--``; null for those without a value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    launcher: Literal["srun", "mpirun", "horovodrun"] = "srun"
    partition: Name | None = None
    account: Name | None = None
    qos: Name | None = None
    constraint: Name | None = None
    cpus_per_worker: int | None = None
    modules: list[Name] = []
    container: list[OneLine] = []
    interface: Name | None = None
    environment: dict[Variable, OneLine] = {}
    sbatch: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z-]*$")], OneLine | int | None] = {}

    @field_validator("interface")
    @classmethod
    def _check_interface(cls, interface: str | None, info: ValidationInfo) -> str | None:
        launcher = info.data.get("launcher", "mpirun")
        if launcher != "mpirun" and "/" in (interface or ""):
            raise ValueError(f"expected a network card, such as ib0; {launcher} accepts no subnet")
        return interface


@dataclass(frozen=True)
class Resources:
    """What a job requests from Slurm.

    Attributes:
        nodes: number of nodes (p).
        workers_per_node: workers per node (q).
        gpus_per_node: GPUs per node; 0 for none.
        time: time limit in sbatch's notation: ``30``, ``12:00:00``, ``1-06:00``; ``0`` for none.
        after: ids of jobs that must have succeeded before.

    Raises:
        InputError: the time limit is not one, or too short.
    """

    nodes: int
    workers_per_node: int
    gpus_per_node: int
    time: str
    after: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", self.time):
            raise InputError(f"time limit {shorten(repr(self.time))}: expected minutes, HH:MM:SS or D-HH:MM")
        # 0 means no limit.
        if 0 < _seconds(self.time) < SHORTEST_TIME_LIMIT:
            raise InputError(
                f"time limit {shorten(self.time)}: expected {SHORTEST_TIME_LIMIT // 60} minutes or more; a "
                f"run stops {SECONDS_OF_WARNING // 60} minutes before its limit to write a checkpoint"
            )


@dataclass(frozen=True)
class Task:
    """One element of a job array.

    Attributes:
        run_dir: of its run.
        settings: ``key=value`` texts that distinguish it from the others.
    """

    run_dir: Path
    settings: tuple[str, ...]


def read_site(name: str) -> Site:
    """Read the profile of a cluster.

    Args:
        name: path of a YAML file, or the name of a profile in ``slurm/sites``.

    Raises:
        InputError: there is no such profile, or it is invalid.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) or "/" in name else SITES / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SITES.glob("*.yaml")))
        raise InputError(f"site {shorten(name)}: no such profile; expected a YAML file or one of: {names}")
    return read_settings(path, Site)


def render_script(job: Job, site: Site, resources: Resources, tasks: Sequence[Task] = ()) -> tuple[Path, str]:
    """Render the batch script of a job, without writing it.

    Args:
        job: resolved.
        site: the cluster's profile.
        resources: what to request from Slurm.
        tasks: elements of an array; none for a single run.

    Returns:
        The path at which :func:`write_script` writes it, and its text.

    Raises:
        InputError: a path holds a control character, which a directive of sbatch cannot contain.
    """
    folder, job_file, _ = _settings_file(job)
    environment = dict(site.environment)
    if site.interface and site.launcher == "srun":
        environment = {
            "HOROVOD_GLOO_IFACE": site.interface,
            "NCCL_SOCKET_IFNAME": site.interface,
        } | environment
    text = _render(
        title=f"{job.method}, {resources.nodes} x {resources.workers_per_node} workers",
        directives=_directives(job, site, resources, tasks, folder),
        site=site,
        environment=environment,
        container="".join(f"{shlex.quote(word)} " for word in site.container),
        python=sys.executable,
        mpirun=_next_to_python("mpirun"),
        horovodrun=_next_to_python("horovodrun"),
        as_root=os.geteuid() == 0,
        job=str(job_file),
        array=bool(tasks),
        tasks=[_element(task) for task in tasks or [Task(job.run_dir, ())]],
        nodes=resources.nodes,
        workers_per_node=resources.workers_per_node,
    )
    return folder / "job.sh", text


def write_script(job: Job, site: Site, resources: Resources, tasks: Sequence[Task] = ()) -> tuple[Path, str]:
    """Write the batch script of a job, and the job's settings, to its run folder.

    Args:
        job, site, resources, tasks: as for :func:`render_script`.

    Returns:
        The script's path and text.

    Raises:
        InputError: as :func:`render_script`, or the folder cannot be written.
    """
    script, text = render_script(job, site, resources, tasks)
    folder, job_file, settings = _settings_file(job)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(job_file, settings)
        write_text(script, text)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from None
    return script, text


def _settings_file(job: Job) -> tuple[Path, Path, str]:
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
        key, equals, values = sweep.partition("=")
        if not equals or not all(values.split(",")):
            raise InputError(
                f"sweep {shorten(sweep)}: expected KEY=VALUE,VALUE,... as in attack.eps=2/255,4/255"
            )
        axes.append([f"{key}={value}" for value in values.split(",")])
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


def submit_script(script: Path) -> int:
    """Submit a script with sbatch.

    Returns:
        The job's id.

    Raises:
        InputError: sbatch is not on PATH.
        WorkerError: Slurm rejects the job; the message is Slurm's.
    """
    if shutil.which("sbatch") is None:
        raise InputError("sbatch not found: submit from a login node of a Slurm cluster, or make a dry run")
    done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True)
    if done.returncode != 0:
        raise WorkerError(f"sbatch rejected {script}: {done.stderr.strip()}")
    return int(done.stdout.strip().split(";")[0])


def _seconds(time: str) -> int:
    """Seconds of a time limit in sbatch's notation: D-H[:M[:S]], M[:S] or H:M:S."""
    days, dash, rest = time.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    if not dash and len(numbers) < 3:
        numbers.insert(0, 0)
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _element(task: Task) -> dict[str, Any]:
    run_dir = str(task.run_dir.resolve())
    # Settings are YAML, of which JSON strings are a subset.
    return {"run_dir": run_dir, "settings": [f"run_dir={json.dumps(run_dir)}", *task.settings]}


def _directives(
    job: Job, site: Site, resources: Resources, tasks: Sequence[Task], folder: Path
) -> dict[str, str | int | None]:
    log = str(folder).replace("%", "%%") + ("/%A_%a.log" if tasks else "/%j.log")
    directives: dict[str, str | int | None] = {
        "job-name": re.sub(r"[^A-Za-z0-9_.-]+", "-", job.run_dir.name) or "hpcdat",
        "nodes": resources.nodes,
        "ntasks-per-node": resources.workers_per_node,
        "cpus-per-task": site.cpus_per_worker,
        "gpus-per-node": resources.gpus_per_node or None,
        "time": resources.time,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "array": f"0-{len(tasks) - 1}" if tasks else None,
        "dependency": "afterok:" + ":".join(map(str, resources.after)) if resources.after else None,
        # Relative paths in a job start at the folder it was submitted from.
        "chdir": str(Path.cwd()),
        "output": log,
        "signal": f"B:USR1@{SECONDS_OF_WARNING}",
        "open-mode": "append",
    }
    given = {name: value for name, value in directives.items() if value is not None}
    for name, value in given.items():
        # Directives are comments, which quotes do not extend: the next line of a value would be a command.
        if re.search(r"[\x00-\x1f\x7f]", str(value)):
            raise InputError(
                f"{shorten(repr(str(value)))}: line breaks and other control characters are not allowed in "
                f"sbatch --{name}; rename the folder"
            )
    return given | {"requeue": None} | site.sbatch


def _render(**values: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hpcdat.slurm"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (a shell script; every value passes through q)
    )
    environment.filters["q"] = lambda value: shlex.quote(str(value))
    text = environment.get_template("job.sh.j2").render(values)
    return re.sub(r"\n{3,}", "\n\n", text)


def _next_to_python(name: str) -> str:
    path = Path(sys.executable).parent / name
    return str(path) if path.exists() else name
