"""``hpcdat box``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from hpcdat.cli.worker_process import reported_once
from hpcdat.emulation.cluster import (
    SHARED_CORES,
    Box,
    BoxError,
    box_mpirun_command,
    create_box,
    find_box,
    remove_box,
    run_over_gloo,
    wait_for,
)
from hpcdat.emulation.slurm_daemons import configuration_file
from hpcdat.errors import Exit, shorten

boxes = typer.Typer(
    no_args_is_help=True,
    help="""Emulate a cluster on this machine (needs root).

    A box is a set of nodes with rate-limited links between them.

    \b
    Examples:
      hpcdat box up six --nodes 6 --rate 1gbit
      hpcdat box run six -np 6 -- .venv/bin/hpcdat train jobs/demo.yaml
      hpcdat box down six

    \b
    With its own Slurm (needs Debian's slurm-wlm and munge):
      hpcdat box up six --nodes 6 --slurm
      hpcdat box login six -- .venv/bin/hpcdat submit jobs/demo.yaml --nodes 6
    """,
)
BoxName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the box.", show_default=False)]
Command = Annotated[
    list[str], typer.Argument(metavar="-- COMMAND...", help="The command to run.", show_default=False)
]


@boxes.command("up")
def box_up(
    name: BoxName,
    nodes: Annotated[int, typer.Option(help="Number of nodes, named node1, node2, ...")] = 6,
    rate: Annotated[str, typer.Option(help="Rate of every link in each direction.")] = "1gbit",
    delay: Annotated[str, typer.Option(help="Delay of every packet.")] = "0ms",
    loss: Annotated[str, typer.Option(help="Share of packets lost.")] = "0%",
    slurm: Annotated[bool, typer.Option("--slurm", help="Start Slurm on the nodes.")] = False,
    bind_cores: Annotated[
        bool,
        typer.Option("--bind-cores", help="Let Slurm bind tasks to cores, which all nodes share."),
    ] = False,
) -> None:
    """Create a box.

    \b
    Examples:
      hpcdat box up six --rate 100mbit
      hpcdat box up six --nodes 6 --delay 1ms --slurm
    """

    def create() -> Box:
        if bind_cores and not slurm:
            raise BoxError("--bind-cores: not allowed without --slurm")
        return create_box(
            name, nodes=nodes, rate=rate, delay=delay, loss=loss, slurm=slurm, bind_cores=bind_cores
        )

    created = reported_once(create)
    number = f"{nodes} nodes from {created.address(1)} on" if nodes > 1 else f"1 node, {created.address(1)}"
    print(f"created box {name}: {number}, {rate} links")
    if slurm:
        print(f"to use its Slurm: hpcdat box login {name} -- sinfo")


@boxes.command("login", context_settings={"ignore_unknown_options": True})
def box_login(name: BoxName, command: Command) -> None:
    """Run a command as on the login node of a box with Slurm.

    \b
    Examples:
      hpcdat box login six -- squeue
      hpcdat box login six -- .venv/bin/hpcdat submit jobs/demo.yaml --nodes 6
    """

    def find_configuration() -> Path:
        file = configuration_file(_existing_box(name))
        if not file.exists():
            raise BoxError(f"box {name} has no Slurm: create it with `hpcdat box up {name} --slurm`")
        return file

    configuration = reported_once(find_configuration)
    environment = SHARED_CORES | dict(os.environ) | {"SLURM_CONF": str(configuration)}
    try:
        raise typer.Exit(subprocess.run(command, env=environment).returncode)
    except FileNotFoundError:
        print(f"{shorten(command[0])}: no such command", file=sys.stderr)
        raise typer.Exit(Exit.WRONG_INPUT) from None


@boxes.command("run", context_settings={"ignore_unknown_options": True})
def box_run(
    name: BoxName,
    command: Command,
    workers: Annotated[
        int, typer.Option("-np", "--workers", min=1, help="Number of workers, spread over the nodes.")
    ] = 1,
    mpirun: Annotated[bool, typer.Option(help="Use MPI and mpirun instead of Gloo.")] = False,
) -> None:
    """Run a command once for every worker, on the nodes of a box.

    \b
    Examples:
      hpcdat box run six -np 6 -- .venv/bin/hpcdat train jobs/demo.yaml
      hpcdat box run six -np 6 --mpirun -- .venv/bin/hpcdat doctor
    """
    box = reported_once(lambda: _existing_box(name))
    if mpirun:
        line = box.inside(1, box_mpirun_command(box, workers, command))
        raise typer.Exit(wait_for([subprocess.Popen(line, env=SHARED_CORES | dict(os.environ))]))
    raise typer.Exit(run_over_gloo(box, workers, command))


@boxes.command("down")
def box_down(name: BoxName) -> None:
    """Kill the processes in a box and remove it.

    \b
    Example:
      hpcdat box down six
    """
    reported_once(lambda: remove_box(name))


def _existing_box(name: str) -> Box:
    box = find_box(name)
    if box is None:
        raise BoxError(f"no box {shorten(name)}: create it with `hpcdat box up {shorten(name)}`")
    return box
