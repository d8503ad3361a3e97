"""What all batch scripts for ``sbatch`` share: resources, directives and the start of the workers."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from hpcdat.errors import InputError, shorten
from hpcdat.slurm.gpus import Gpus
from hpcdat.slurm.shell import quote_expanding
from hpcdat.slurm.site import Site
from hpcdat.slurm.time_limit import seconds


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


def render(
    template: str,
    site: Site,
    resources: Resources,
    *,
    title: str,
    name: str,
    log: str,
    directives: Mapping[str, str | int | None],
    **values: object,
) -> str:
    """Render a template of this package that extends ``script.sh.j2``.

    Args:
        template: name of its file.
        site: the cluster's profile.
        resources: what to request from Slurm.
        title: first line of the script, after what the workers are.
        name: of the job; characters that Slurm's names do not have become ``-``.
        log: path of the log, with sbatch's patterns.
        directives: further ones; None for those without a value.
        values: for the template.

    Raises:
        InputError: a value of a directive holds a control character.
    """
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
    text = environment.get_template(template).render(
        title=f"{title}, {resources.nodes} x {resources.workers_per_node} workers",
        directives=_directives(site, resources, name, log, directives),
        site=site,
        environment=_connections(site) | site.environment,
        container="".join(f"{quote_expanding(word)} " for word in site.container),
        python=quote_expanding(site.python) if site.python else shlex.quote(sys.executable),
        mpirun=_next_to_python("mpirun"),
        horovodrun=_next_to_python("horovodrun"),
        as_root=os.geteuid() == 0,
        nodes=resources.nodes,
        workers_per_node=resources.workers_per_node,
        **values,
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def log_in(folder: Path, pattern: str) -> str:
    """Path of a log in a folder, whose own name may have sbatch's ``%``."""
    return f"{folder}/".replace("%", "%%") + pattern


def _directives(
    site: Site,
    resources: Resources,
    name: str,
    log: str,
    more: Mapping[str, str | int | None],
) -> dict[str, str | int | None]:
    gpus = resources.gpus
    directives: dict[str, str | int | None] = {
        "job-name": re.sub(r"[^A-Za-z0-9_.-]+", "-", name) or "hpcdat",
        "nodes": resources.nodes,
        "ntasks-per-node": resources.workers_per_node,
        "cpus-per-task": site.cpus_per_worker,
        "gpus-per-node": gpus.value if gpus and gpus.option == "gpus-per-node" else None,
        "time": resources.time,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "dependency": "afterok:" + ":".join(map(str, resources.after)) if resources.after else None,
        # Relative paths in a job start at the folder it was submitted from.
        "chdir": str(Path.cwd()),
        "output": log,
    }
    given = {name: value for name, value in directives.items() if value is not None} | dict(more)
    for option, value in given.items():
        # Directives are comments, which quotes do not extend: the next line of a value would be a command.
        if re.search(r"[\x00-\x1f\x7f]", str(value)):
            raise InputError(
                f"{shorten(repr(str(value)))}: line breaks and other control characters are not allowed in "
                f"sbatch --{option}; rename the folder"
            )
    return given | {option: value for option, value in site.sbatch.items() if option != "time"}


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


def _next_to_python(name: str) -> str:
    path = Path(sys.executable).parent / name
    return str(path) if path.exists() else name
