"""A real Slurm on the nodes of a box: munged, slurmctld on the bridge, a slurmd in every node."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpcdat.errors import InputError

if TYPE_CHECKING:
    from hpcdat.emulation.cluster import Box

FOLDERS = Path("/run/hpcdat")
"""Holds a folder for the Slurm of each box: configuration, state, logs and key."""
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo")
"""Programs that must be installed."""
CONTROLLER = 254
"""Last byte of the bridge's own address, where slurmctld listens."""
SECONDS_TO_START = 30.0
"""How long Slurm may take until all nodes are idle."""


@dataclass(frozen=True)
class Timeouts:
    """How long Slurm waits, in seconds.

    Attributes:
        node: for a node that does not answer, before it is declared down (SlurmdTimeout).
        kill: between SIGTERM and SIGKILL at the end of a job (KillWait).
        message: for the answer to a message, such as a ping of a node (MessageTimeout).
    """

    node: int = 30
    kill: int = 10
    message: int = 10


TIMEOUTS = Timeouts()
"""Slurm's timeouts unless a caller sets others."""

CONFIGURATION = """\
ClusterName={name}
SlurmctldHost=ctl({controller})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
TmpFS={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
{tasks}
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdTimeout={timeouts.node}
KillWait={timeouts.kill}
MessageTimeout={timeouts.message}
SchedulerParameters=batch_sched_delay=0
NodeName=node[1-{nodes}] NodeHostname=node[1-{nodes}] NodeAddr={first}[1-{nodes}] CPUs={cpus} State=UNKNOWN
PartitionName=box Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
"""The slurm.conf of a box, as a template.

TmpFS is a folder of each node: the plugin for PMIx keeps files there, which it names by the step alone.
"""


BOUND = """\
TaskPlugin=task/affinity
TaskPluginParam=autobind=cores"""
"""The lines of slurm.conf that bind tasks to cores."""


class SlurmError(InputError):
    """Slurm cannot be started; the message says what is missing."""


def configuration_file(box: Box) -> Path:
    """The slurm.conf of a box, for the variable SLURM_CONF of sbatch and Slurm's other commands."""
    return FOLDERS / box.name / "slurm.conf"


def start_slurm(box: Box, timeouts: Timeouts, *, bind_cores: bool = False) -> None:
    """Start Slurm on the nodes of a box.

    Args:
        box: it.
        timeouts: Slurm's.
        bind_cores: whether tasks are bound to the cores that they are given.

    Raises:
        SlurmError: a program is missing, or Slurm does not start.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool, path=_path()) is None]
    if missing:
        raise SlurmError(f"{', '.join(missing)} not found: install slurm-wlm and munge")
    folder = FOLDERS / box.name
    folder.mkdir(parents=True, exist_ok=True)
    # munged refuses a socket in a folder that others may write to.
    for each in (FOLDERS, folder):
        each.chmod(0o755)
    (folder / "state").mkdir(exist_ok=True)
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    configuration_file(box).write_text(
        CONFIGURATION.format(
            name=box.name.lower(),
            controller=box.address(CONTROLLER),
            port=17000 + box.subnet,
            folder=folder,
            nodes=box.nodes,
            first=box.address(0).removesuffix("0"),
            cpus=os.cpu_count(),
            timeouts=timeouts,
            tasks=BOUND if bind_cores else "TaskPlugin=task/none",
        )
    )
    # A node's own /sys has no control groups; they are not needed.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    _run("ip", "addr", "add", f"{box.address(CONTROLLER)}/24", "dev", box.bridge)
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    _run("munged", "--force", *(f"--{option}={folder}/munge.{ending}" for option, ending in files.items()))
    named = ["unshare", "--uts", "sh", "-c", 'hostname ctl && exec slurmctld -c -f "$0"']
    _run(*named, str(configuration_file(box)))
    for node in range(1, box.nodes + 1):
        start_node(box, node)
    _wait_until_idle(box)


def start_node(box: Box, node: int) -> None:
    """Start slurmd in a node, counted from 1; also to bring back a node that was down.

    Raises:
        SlurmError: it does not start.
    """
    (FOLDERS / box.name / f"node{node}").mkdir(exist_ok=True)
    _run(*box.inside(node, ["slurmd", "-N", f"node{node}", "-f", str(configuration_file(box))]))


def stop_slurm(box: Box) -> None:
    """Stop slurmctld and munged, if they run; removing the box kills what runs in its nodes."""
    folder = FOLDERS / box.name
    for name in ("slurmctld", "munge"):
        with contextlib.suppress(OSError, ValueError):
            _terminate(int((folder / f"{name}.pid").read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        FOLDERS.rmdir()


def _terminate(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    for _ in range(50):
        time.sleep(0.1)
        os.kill(pid, 0)
    os.kill(pid, signal.SIGKILL)


def _wait_until_idle(box: Box) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    environment = {**os.environ, "SLURM_CONF": str(configuration_file(box)), "PATH": _path()}
    states = ""
    while time.monotonic() < deadline:
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%N %T"],
            capture_output=True,
            text=True,
            env=environment,
        )
        states = done.stdout.strip() or done.stderr.strip()
        if states.count(" idle") == box.nodes and done.returncode == 0:
            return
        time.sleep(0.2)
    raise SlurmError(
        f"Slurm is not ready after {SECONDS_TO_START:.0f} s ({' '.join(states.split())}); its logs are in "
        f"{FOLDERS / box.name} until the box is removed"
    )


def _path() -> str:
    """PATH with the folders of the daemons, which a user's PATH may lack."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _run(*command: str) -> None:
    # Not pipes: a daemon keeps its output open, so that reading a pipe to its end would block.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PATH": _path()},
        )
        output.seek(0)
        lines = output.read().strip().splitlines()
    if done.returncode != 0:
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise SlurmError(f"{' '.join(command)}: {reason}")
