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
from typing import Any

import jinja2

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job import Job
from hpcdat.config.job_file import write_job
from hpcdat.config.paths import escape
from hpcdat.errors import InputError, WorkerError, shorten
from hpcdat.slurm.gpus import Gpus, parse_gpus
from hpcdat.slurm.shell import quote_expanding
from hpcdat.slurm.site import OPTIONS, OWN, Site
from hpcdat.slurm.time_limit import SECONDS_OF_WARNING, seconds
from hpcdat.storage.atomic_files import write_text
from hpcdat.storage.run_folder import RunFolder

ENVIRONMENT_OF = {"time": "SBATCH_TIMELIMIT", "array": "SBATCH_ARRAY_INX"}
"""Variables that override an option of a script and do not have its name."""


@dataclass(frozen=True)
class Resources:
    """What a job requests from Slurm.

    Attributes:
        nodes: number of nodes (p).
        workers_per_node: workers per node (q).
        gpus: GPUs per node; None for none.
        time: time limit in sbatch's notation: ``30``, ``12:00:00``, ``1-06:00``; ``0`` for none.
        after: ids of jobs that must have succeeded before.
        at_once: elements of an array that may run at the same time; None for all.

    Raises:
        InputError: the time limit is not one, or too short.
    """

    nodes: int
    workers_per_node: int
    gpus: Gpus | None
    time: str
    after: Sequence[int] = ()
    at_once: int | None = None

    def __post_init__(self) -> None:
        try:
            seconds(self.time)
        except ValueError as error:
            raise InputError(str(error)) from None


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
    text = _render(
        title=f"{what}, {resources.nodes} x {resources.workers_per_node} workers",
        directives=_directives(job, site, resources, tasks, folder),
        site=site,
        environment=_connections(site) | site.environment,
        container="".join(f"{quote_expanding(word)} " for word in site.container),
        python=quote_expanding(site.python) if site.python else shlex.quote(sys.executable),
        mpirun=_next_to_python("mpirun"),
        horovodrun=_next_to_python("horovodrun"),
        as_root=os.geteuid() == 0,
        command=command.name,
        job=escape(command.run.resolve() if command.run else job_file),
        options=command.options,
        array=bool(tasks),
        tasks=[_element(task) for task in tasks or [Task(job.run_dir, ())]]
        if command.run is None
        else [{"run_dir": str(command.run.resolve()), "settings": command.settings}],
        nodes=resources.nodes,
        workers_per_node=resources.workers_per_node,
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


def _connections(site: Site) -> dict[str, str]:
    """Variables that say what the workers of srun and torchrun connect over, and by which network card."""
    variables = {}
    if site.mpi == "pmix":
        variables = {"HOROVOD_CONTROLLER": "mpi", "HOROVOD_CPU_OPERATIONS": "mpi"}
        if site.interface:
            tcp = {"pml": "ob1", "btl": "tcp,self", "btl_tcp_if_include": site.interface}
            variables |= {f"OMPI_MCA_{name}": value for name, value in tcp.items()}
    if site.interface and site.launcher in ("srun", "torchrun"):
        cards = ("HOROVOD_GLOO_IFACE", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        variables |= dict.fromkeys(cards, site.interface)
    return variables


def _element(task: Task) -> dict[str, Any]:
    run_dir = str(task.run_dir.resolve())
    # Settings are YAML, of which JSON strings are a subset.
    return {"run_dir": run_dir, "settings": [f"run_dir={json.dumps(escape(run_dir))}", *task.settings]}


def _directives(
    job: EvaluationJob, site: Site, resources: Resources, tasks: Sequence[Task], folder: Path
) -> dict[str, str | int | None]:
    log = str(folder).replace("%", "%%") + ("/%A_%a.log" if tasks else "/%j.log")
    gpus, limit = resources.gpus, f"%{resources.at_once}" if resources.at_once else ""
    directives: dict[str, str | int | None] = {
        "job-name": re.sub(r"[^A-Za-z0-9_.-]+", "-", job.run_dir.name) or "hpcdat",
        "nodes": resources.nodes,
        "ntasks-per-node": resources.workers_per_node,
        "cpus-per-task": site.cpus_per_worker,
        "gpus-per-node": gpus.value if gpus and gpus.option == "gpus-per-node" else None,
        "time": resources.time,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "array": f"0-{len(tasks) - 1}{limit}" if tasks else None,
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
    return given | {"requeue": None} | {name: value for name, value in site.sbatch.items() if name != "time"}


def _render(**values: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hpcdat.slurm"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (a shell script; every value passes through q or expanding)
    )
    environment.filters["q"] = lambda value: shlex.quote(str(value))
    environment.filters["expanding"] = quote_expanding
    text = environment.get_template("job.sh.j2").render(values)
    return re.sub(r"\n{3,}", "\n\n", text)


def _next_to_python(name: str) -> str:
    path = Path(sys.executable).parent / name
    return str(path) if path.exists() else name
