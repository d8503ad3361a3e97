"""``hpcdat jobs``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpcdat.cli.options import path
from hpcdat.cli.worker_process import reported_once
from hpcdat.commands.shipped_jobs import copy_shipped, shipped_jobs

jobs = typer.Typer(
    invoke_without_command=True,
    help="""List and copy the jobs that come with hpcdat.

    \b
    Examples:
      hpcdat jobs
      hpcdat jobs copy demo
      hpcdat jobs copy conadv/32k/conadv my-jobs
    """,
)


@jobs.callback()
def list_jobs(context: typer.Context) -> None:  # noqa: D103  (its help is that of the group)
    if context.invoked_subcommand is None:
        for name, sentence in shipped_jobs().items():
            print(f"{name}\n    {sentence}")


def complete_job(incomplete: str) -> list[str]:
    """The jobs whose names begin with what has been typed."""
    return [name for name in shipped_jobs() if name.startswith(incomplete)]


@jobs.command("copy")
def copy(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name of the job.", show_default=False, autocompletion=complete_job
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="Where to copy it (default: here).", parser=path),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that differ.")] = False,
) -> None:
    """Copy a job, with the jobs that it takes settings from by `like`.

    \b
    Examples:
      hpcdat jobs copy demo
      hpcdat jobs copy conadv/32k/conadv my-jobs

    The second one writes my-jobs/conadv/32k/conadv.yaml.
    """
    for file in reported_once(lambda: copy_shipped(name, folder or Path(), overwrite=overwrite)):
        print(f"written: {file}")
