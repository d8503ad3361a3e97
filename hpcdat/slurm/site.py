"""Profiles of clusters."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from hpcdat.config.job_file import JobError, read_settings
from hpcdat.config.paths import expand
from hpcdat.config.settings import Settings, not_allowed, refusal
from hpcdat.errors import InputError, shorten
from hpcdat.slurm.gpus import Gpus, parse_gpus, parse_gres
from hpcdat.slurm.time_limit import seconds

SITES = Path(__file__).with_name("sites")
"""Folder of the profiles that come with hpcdat."""
PROFILE_KEYS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "cpus-per-task": "cpus_per_worker",
}
"""Options of sbatch that a profile sets by a key of its own."""
OPTIONS = {
    "array": "--seeds, --sweep and --at-once",
    "dependency": "--after",
    "nodes": "--nodes",
    "ntasks": "--nodes and --workers-per-node",
    "ntasks-per-node": "--workers-per-node",
    "gpus": "--gpus-per-node",
    "time-min": "--time",
}
"""Options of sbatch that follow from those of hpcdat submit."""
OWN = {
    "signal": "a run writes a checkpoint at the signal that hpcdat submit asks for",
    "requeue": "hpcdat submit sets it; a run decides itself whether it is requeued",
    "no-requeue": "a run is requeued before its time limit, and resumes",
    "open-mode": "a requeued run appends to its log",
    "output": "the log is in the run folder",
    "error": "the log is in the run folder",
    "chdir": "relative paths start at the folder that the job is submitted from",
    "job-name": "a job is named after its run folder",
    "wait": "hpcdat submit does not wait",
    "wrap": "hpcdat submit writes the script",
    "test-only": "use --dry-run",
    "parsable": "hpcdat submit sets it",
    "ntasks-per-core": "workers are placed by nodes",
    "ntasks-per-gpu": "workers are placed by nodes",
    "ntasks-per-socket": "workers are placed by nodes",
    "gpus-per-task": "each worker sees all GPUs of its node and takes one",
    "gpus-per-socket": "GPUs are counted by nodes",
    "cpus-per-gpu": "cores are counted by workers: cpus_per_worker",
}
"""Options of sbatch that a profile may not set, and why."""
READ = ("gres", "gpus-per-node", "time")
"""Options of sbatch that hpcdat submit reads itself."""


def check_name(value: str) -> str:
    """Check a name for Slurm or a module system.

    Raises:
        ValueError: it has other characters than such names have.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.,:+&|@/-]+", value):
        raise ValueError("expected a name of letters, digits and _ . , : + & | @ / -")
    return value


def _check_variable(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("expected the name of an environment variable")
    return value


def _check_option(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z-]+", value):
        raise ValueError("expected the long name of an option of sbatch, without --, as in mem-per-cpu")
    return value


def _check_line(value: str) -> str:
    if re.search(r"[\n\r\x00]", value):
        raise ValueError("expected a single line")
    return value


def _check_command(line: str) -> str:
    """Check that a line of a shell is complete by itself, so that it takes nothing of the script after it."""
    done = subprocess.run(["bash", "-n"], input=f"{line}\n", capture_output=True, text=True)
    if done.returncode or done.stderr:
        reason = re.sub(r"^bash: line \d+: ", "", (done.stderr.splitlines() or [""])[0])
        raise ValueError(f"expected a complete command of bash ({shorten(reason)})")
    if (len(line) - len(line.rstrip("\\"))) % 2:
        raise ValueError("expected a complete command of bash: it ends with a backslash")
    return line


def _check_time(time: str) -> str:
    try:
        seconds(time)
    except ValueError as error:
        raise ValueError(f"expected {_expected(error)}") from None
    return time


def _expected(error: ValueError) -> str:
    return str(error).partition("expected ")[2]


Name = Annotated[str, AfterValidator(check_name)]
Variable = Annotated[str, AfterValidator(_check_variable)]
Option = Annotated[str, AfterValidator(_check_option)]
OneLine = Annotated[str, AfterValidator(_check_line)]
Command = Annotated[OneLine, AfterValidator(_check_command)]
Time = Annotated[str, AfterValidator(_check_time)]


class Site(Settings):
    """The profile of a cluster: what its jobs need."""

    launcher: Literal["srun", "mpirun", "horovodrun", "torchrun"] = "srun"
    """what starts the workers; `torchrun` is started by srun, once on each node"""
    mpi: Literal["none", "pmix"] = "none"
    """option --mpi of `srun`: with `pmix` Horovod's workers connect over MPI, with `none` over Gloo"""
    partition: Name | None = None
    """partition, or several separated by commas; `--partition` chooses another one"""
    account: Name | None = None
    """account that is charged"""
    qos: Name | None = None
    """quality of service"""
    constraint: Name | None = None
    """features of the nodes"""
    time: Time | dict[Name, Time] | None = None
    """time limit in sbatch's notation, or one for each partition; `--time` overrides it; default: one day"""
    cpus_per_worker: int | None = Field(None, ge=1)
    """cores per worker"""
    at_once: int | None = Field(None, ge=1)
    """elements of an array that may run at the same time; `--at-once` sets another number"""
    setup: list[Command] = []
    """commands of bash that set up the environment, before `modules` are loaded: `module purge`,
    `source env.sh`, `conda activate hpcdat`; the job ends if one fails"""
    modules: list[Name] = []
    """environment modules to load"""
    container: list[OneLine] = []
    """command that Python runs under, such as `[apptainer, exec, --nv, image.sif]`; nodes expand $NAME"""
    python: OneLine | None = None
    """the Python that has hpcdat on the nodes, or in the container; left out: the one of hpcdat submit"""
    interface: Name | None = None
    """network card for the workers' traffic; with `mpirun` also a subnet"""
    environment: dict[Variable, OneLine] = {}
    """variables of the workers, such as NCCL's; nodes expand $NAME and ${NAME} in them"""
    sbatch: dict[Option, OneLine | None] = {}
    """other options of sbatch, without --; empty for those without a value"""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Site:
        if self.launcher != "mpirun" and "/" in (self.interface or ""):
            raise refusal("interface", f"a network card, such as ib0; {self.launcher} accepts no subnet")
        if self.launcher != "srun" and self.mpi != "none":
            raise not_allowed("mpi", f"with launcher {self.launcher}, only with srun")
        if self.container and self.python is None:
            raise refusal("python", "the path of Python in the container, such as python3")
        for option, value in self.sbatch.items():
            self._check_sbatch(option, value)
        if self.time and "time" in self.sbatch:
            raise not_allowed("sbatch.time", "with time")
        if {"gres", "gpus-per-node"} <= set(self.sbatch) and parse_gres(self.sbatch["gres"] or ""):
            raise not_allowed("sbatch.gpus-per-node", "with GPUs in sbatch.gres")
        return self

    def _check_sbatch(self, option: str, value: str | None) -> None:
        key = f"sbatch.{option}"
        if option in PROFILE_KEYS:
            raise not_allowed(key, f"in sbatch: set {PROFILE_KEYS[option]} of the profile")
        if option in OPTIONS:
            raise not_allowed(key, f"in a profile: use {OPTIONS[option]} of hpcdat submit")
        if option in OWN:
            raise not_allowed(key, f"in a profile: {OWN[option]}")
        # sbatch takes any unambiguous beginning of an option for it.
        for name in (*PROFILE_KEYS, *OPTIONS, *OWN, *READ):
            if name.startswith(option) and option != name and option not in READ:
                raise refusal(key, f"an option of sbatch in full; is it {name}?")
        if (value or "").lower() in ("true", "false"):
            raise refusal(key, "no value, as in `exclusive:`, or the value that sbatch takes")
        try:
            if option == "time":
                seconds(value or "")
            if option in ("gres", "gpus-per-node"):
                (parse_gres if option == "gres" else parse_gpus)(value or "")
        except ValueError as error:
            raise refusal(key, _expected(error)) from None

    @property
    def gpus(self) -> Gpus | None:
        """The GPUs per node that the profile requests; None if it leaves them to ``--gpus-per-node``."""
        if (text := self.sbatch.get("gpus-per-node")) is not None:
            return parse_gpus(text)
        return parse_gres(self.sbatch.get("gres") or "")

    def time_limit(self) -> str | None:
        """The profile's time limit for its partition, of several partitions the shortest; None without one.

        Raises:
            InputError: the profile has limits by partition, but none for this one.
        """
        if not isinstance(self.time, dict):
            return self.time or self.sbatch.get("time")
        partitions = (self.partition or "").split(",")
        if missing := [name for name in partitions if name not in self.time]:
            raise InputError(
                f"time: the profile has no limit for partition {shorten(repr(missing[0]))}, only for "
                f"{shorten(', '.join(self.time))}; choose one of them with --partition, or set --time"
            )
        return min((self.time[name] for name in partitions), key=seconds)


def read_site(name: str) -> Site:
    """Read the profile of a cluster.

    Args:
        name: path of a YAML file, or the name of a profile that comes with hpcdat.

    Raises:
        InputError: there is no such profile, or it is invalid.
    """
    names = sorted(file.stem for file in SITES.glob("*.yaml"))
    if name in names:
        return read_settings(SITES / f"{name}.yaml", Site)
    if name.endswith((".yaml", ".yml")) or "/" in name:
        try:
            path = Path(expand(name))
        except ValueError as error:
            raise JobError(f"--site {shorten(name)}: {error}") from None
        if path.is_file():
            return read_settings(path, Site)
    raise InputError(
        f"--site {shorten(name)}: no such profile; expected a YAML file or one of: {', '.join(names)}"
    )
