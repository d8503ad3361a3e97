"""``hpcdat box``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from hpcdat.cli.worker_process import reported_once
from hpcdat.emulation import cluster as box
from hpcdat.emulation import slurm_daemons
from hpcdat.errors import Exit

boxes = typer.Typer(
    no_args_is_help=True,
    help="""A cluster in a box: nodes and rate-limited links on this machine (root).

    hpcdat box up six --nodes 6 --rate 1gbit
    hpcdat box run six -np 6 -- .venv/bin/hpcdat train jobs/demo.yaml
    hpcdat box down six

    With a Slurm of its own (--slurm; Debian's slurm-wlm and munge):

    hpcdat box login six -- .venv/bin/hpcdat submit jobs/demo.yaml --nodes 6
    """.replace("\n    ", "\n\n    "),
)
BoxName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the box.", show_default=False)]


@boxes.command("up")
def box_up(
    name: BoxName,
    nodes: Annotated[int, typer.Option(help="Nodes, named node1, node2, ...")] = 6,
    rate: Annotated[str, typer.Option(help="Rate of every link, each way.")] = "1gbit",
    delay: Annotated[str, typer.Option(help="Delay of every packet.")] = "0ms",
    loss: Annotated[str, typer.Option(help="Share of packets lost.")] = "0%",
    slurm: Annotated[bool, typer.Option("--slurm", help="With a Slurm of its own.")] = False,
) -> None:
    """Make a box."""
    made = reported_once(lambda: box.up(name, nodes=nodes, rate=rate, delay=delay, loss=loss, slurm=slurm))
    print(f"{name} is up: {nodes} nodes from {made.address(1)} on, {rate} links")
    if slurm:
        print(f"its Slurm: hpcdat box login {name} -- sinfo")


@boxes.command("login", context_settings={"ignore_unknown_options": True})
def box_login(
    name: BoxName,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", show_default=False)],
) -> None:
    """Run a command as on the login node of a box with Slurm: sbatch, squeue, hpcdat submit."""

    def find() -> Path:
        file = slurm_daemons.configuration_file(_found(name))
        if not file.exists():
            raise box.BoxError(f"the box {name} has no Slurm: hpcdat box up {name} --slurm makes one with it")
        return file

    environment = box.SHARED_CORES | dict(os.environ) | {"SLURM_CONF": str(reported_once(find))}
    try:
        raise typer.Exit(subprocess.run(command, env=environment).returncode)
    except FileNotFoundError:
        print(f"{command[0]}: no such command", file=sys.stderr)
        raise typer.Exit(Exit.WRONG_INPUT) from None


@boxes.command("run", context_settings={"ignore_unknown_options": True})
def box_run(
    name: BoxName,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", show_default=False)],
    workers: Annotated[int, typer.Option("-np", "--workers", min=1, help="Workers, dealt to the nodes.")] = 1,
    mpirun: Annotated[bool, typer.Option(help="Over MPI, by mpirun, rather than over Gloo.")] = False,
) -> None:
    """Run a command once for every worker, on the nodes of a box."""
    found = reported_once(lambda: _found(name))
    if mpirun:
        line = found.inside(1, box.mpirun_command(found, workers, command))
        raise typer.Exit(box.wait_for([subprocess.Popen(line, env=box.SHARED_CORES | dict(os.environ))]))
    raise typer.Exit(box.run_over_gloo(found, workers, command))


@boxes.command("down")
def box_down(name: BoxName) -> None:
    """End what runs in a box and remove it."""
    reported_once(lambda: box.down(name))


def _found(name: str) -> box.Box:
    found = box.find(name)
    if found is None:
        raise box.BoxError(f"there is no box {name}: hpcdat box up {name} makes it")
    return found
