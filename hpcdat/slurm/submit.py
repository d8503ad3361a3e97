"""From a job to a script for ``sbatch``, and to the queue."""

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
from hpcdat.errors import InputError, WorkerError
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.run_folder import RunFolder

SITES = Path(__file__).with_name("sites")
"""The profiles that come with hpcdat."""
SECONDS_OF_WARNING = 120
"""Between Slurm's warning and the time limit: a step, a checkpoint, and the way back into the queue."""
SHORTEST_TIME = 300
"""Seconds of the shortest time limit that leaves a run some time between its start and the warning."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.,:+&|@/-]+$")]
"""What Slurm and module systems use for names; nothing that a shell would act on."""
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
OneLine = Annotated[str, StringConstraints(pattern=r"^[^\n\r\x00]*$")]


class Site(BaseModel):
    """What a cluster asks of a job: a profile, written once.

    Attributes:
        launcher: what starts the workers.
        partition, account, qos, constraint: for sbatch.
        cpus_per_worker: cores of a worker.
        modules: loaded before anything else.
        container: the command in front of Python, such as ``[apptainer, exec, --nv, image.sif]``.
        interface: network card of the workers' traffic; with mpirun it may be a subnet.
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
    def _names_a_card(cls, interface: str | None, info: ValidationInfo) -> str | None:
        launcher = info.data.get("launcher", "mpirun")
        if launcher != "mpirun" and "/" in (interface or ""):
            raise ValueError(f"expected the name of a network card, such as ib0: {launcher} takes no subnet")
        return interface


@dataclass(frozen=True)
class Request:
    """What a job is to get.

    Attributes:
        nodes: p.
        workers_per_node: q.
        gpus_per_node: 0 for none.
        time: limit, as sbatch writes it: ``30``, ``12:00:00``, ``1-06:00``.
        after: ids of jobs that must have ended well before.
    """

    nodes: int
    workers_per_node: int
    gpus_per_node: int
    time: str
    after: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", self.time):
            raise InputError(f"--time {self.time!r}: expected minutes, HH:MM:SS or D-HH:MM")
        # To Slurm, 0 is no limit.
        if 0 < _seconds(self.time) < SHORTEST_TIME:
            raise InputError(
                f"--time {self.time}: a run is warned {SECONDS_OF_WARNING // 60} minutes before its limit, "
                f"which leaves no time to train; give it {SHORTEST_TIME // 60} minutes or more"
            )


@dataclass(frozen=True)
class Task:
    """One element of a job array.

    Attributes:
        run_dir: of its run.
        settings: ``key=value`` texts that tell it from the others.
    """

    run_dir: Path
    settings: tuple[str, ...]


def read_site(name: str) -> Site:
    """A site's profile.

    Args:
        name: a YAML file, or the name of one in ``slurm/sites``.

    Raises:
        InputError: there is none, or it says something that is not known.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) or "/" in name else SITES / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SITES.glob("*.yaml")))
        raise InputError(f"--site {name}: no such profile; give a YAML file, or one of: {names}")
    return read_settings(path, Site)


def write_script(
    job: Job, site: Site, request: Request, tasks: Sequence[Task] = (), *, keep: bool = True
) -> tuple[Path, str]:
    """Make the script of a job, and keep it with the job in the run folder.

    Args:
        job: resolved.
        site: where it will run.
        request: what it is to get.
        tasks: elements of an array; none for a single run.
        keep: whether to write anything.

    Returns:
        The script's path and text.

    Raises:
        InputError: the folder cannot be written, or sbatch cannot be given its name.
    """
    folder = RunFolder(job.run_dir.resolve()).slurm_folder
    script, settings = folder / "job.sh", write_job(job)
    # Named by its contents: a script that is in the queue finds its own, whatever is submitted after it.
    copy = folder / f"job-{hashlib.blake2b(settings.encode(), digest_size=4).hexdigest()}.yaml"
    environment = dict(site.environment)
    if site.interface and site.launcher == "srun":
        environment = {
            "HOROVOD_GLOO_IFACE": site.interface,
            "NCCL_SOCKET_IFNAME": site.interface,
        } | environment
    text = _render(
        title=f"{job.method}, {request.nodes} x {request.workers_per_node} workers",
        directives=_directives(job, site, request, tasks, folder),
        site=site,
        environment=environment,
        container="".join(f"{shlex.quote(word)} " for word in site.container),
        python=sys.executable,
        mpirun=_beside_python("mpirun"),
        horovodrun=_beside_python("horovodrun"),
        as_root=os.geteuid() == 0,
        job=str(copy),
        array=bool(tasks),
        tasks=[_element(task) for task in tasks or [Task(job.run_dir, ())]],
        nodes=request.nodes,
        workers_per_node=request.workers_per_node,
    )
    if keep:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(copy, settings)
            write_text(script, text)
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror}") from None
    return script, text


def tasks_of(
    run_dir: Path, sweeps: Sequence[str], seeds: range, check: Callable[[tuple[str, ...]], object]
) -> list[Task]:
    """The elements of an array: every value of every sweep, with every seed.

    Args:
        run_dir: holds a folder for each.
        sweeps: texts like ``attack.eps=2/255,4/255``.
        seeds: one of them is no sweep.
        check: takes the settings of each element and raises what is wrong with them.

    Raises:
        InputError: a text is no sweep, two elements have one folder, or a setting is wrong.
    """
    axes = []
    for sweep in sweeps:
        key, equals, values = sweep.partition("=")
        if not equals or not all(values.split(",")):
            raise InputError(f"--sweep {sweep}: expected KEY=VALUE,VALUE,... as in attack.eps=2/255,4/255")
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
            one, two = (", ".join(each.settings) for each in (other, task))
            raise InputError(f"--sweep: {one} and {two} would share the folder {task.run_dir}: leave one out")
    for task in tasks:
        check(task.settings)
    return tasks


def submit(script: Path) -> int:
    """Hand a script to sbatch.

    Returns:
        The job's id.

    Raises:
        InputError: there is no sbatch here.
        WorkerError: Slurm refuses the job; the message is Slurm's.
    """
    if shutil.which("sbatch") is None:
        raise InputError(
            "sbatch not found: is this a login node of a Slurm cluster? --dry-run prints the script"
        )
    done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True)
    if done.returncode != 0:
        raise WorkerError(f"Slurm refuses {script}: {done.stderr.strip()}")
    return int(done.stdout.strip().split(";")[0])


def _seconds(time: str) -> int:
    """Of a time limit as sbatch reads it; with days the next number is hours, without, a lone one minutes."""
    days, dash, rest = time.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    if not dash and len(numbers) < 3:
        numbers.insert(0, 0)
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _element(task: Task) -> dict[str, Any]:
    run_dir = str(task.run_dir.resolve())
    # The value of a setting is YAML, in which a JSON string stands for itself whatever is in it.
    return {"run_dir": run_dir, "settings": [f"run_dir={json.dumps(run_dir)}", *task.settings]}


def _directives(
    job: Job, site: Site, request: Request, tasks: Sequence[Task], folder: Path
) -> dict[str, str | int | None]:
    log = str(folder).replace("%", "%%") + ("/%A_%a.log" if tasks else "/%j.log")
    directives: dict[str, str | int | None] = {
        "job-name": re.sub(r"[^A-Za-z0-9_.-]+", "-", job.run_dir.name) or "hpcdat",
        "nodes": request.nodes,
        "ntasks-per-node": request.workers_per_node,
        "cpus-per-task": site.cpus_per_worker,
        "gpus-per-node": request.gpus_per_node or None,
        "time": request.time,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "array": f"0-{len(tasks) - 1}" if tasks else None,
        "dependency": "afterok:" + ":".join(map(str, request.after)) if request.after else None,
        # Paths in a job are relative to where it was submitted.
        "chdir": str(Path.cwd()),
        "output": log,
        "signal": f"B:USR1@{SECONDS_OF_WARNING}",
        "open-mode": "append",
    }
    given = {name: value for name, value in directives.items() if value is not None}
    for name, value in given.items():
        # A quote does not keep a comment together: the next line of the value would be a command.
        if re.search(r"[\x00-\x1f\x7f]", str(value)):
            raise InputError(
                f"{str(value)!r} holds a line break or another control character, which sbatch cannot be "
                f"given (--{name}): rename that folder"
            )
    return given | {"requeue": None} | site.sbatch


def _render(**values: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hpcdat.slurm"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (a shell script; every value goes through q)
    )
    environment.filters["q"] = lambda value: shlex.quote(str(value))
    text = environment.get_template("job.sh.j2").render(values)
    return re.sub(r"\n{3,}", "\n\n", text)


def _beside_python(name: str) -> str:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name
