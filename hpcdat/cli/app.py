"""The command line: parse, call, print.

Modules that only workers need are imported when the work begins: importing them takes seconds, which help, an
invalid setting and the process that only starts workers should not wait for.
"""

from __future__ import annotations

import atexit
import gc
from typing import Annotated

import typer

from hpcdat import __version__
from hpcdat.cli.box import boxes
from hpcdat.cli.certify import certify
from hpcdat.cli.demo import demo
from hpcdat.cli.doctor import doctor
from hpcdat.cli.evaluate import evaluate
from hpcdat.cli.export import export
from hpcdat.cli.help import help_
from hpcdat.cli.jobs import jobs
from hpcdat.cli.pack import pack
from hpcdat.cli.plan import plan
from hpcdat.cli.pseudo_label import pseudo_label
from hpcdat.cli.report import report
from hpcdat.cli.submit import submit
from hpcdat.cli.train import train

app = typer.Typer(
    name="hpcdat",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Distributed adversarial training (DAT) on one machine or many.

    \b
    Examples:
      hpcdat demo                             train and compare two small runs
      hpcdat doctor jobs/demo.yaml            check nodes and links before a run
      hpcdat train jobs/demo.yaml -np 2       train with two local workers
      mpirun -np 4 hpcdat train jobs/demo.yaml
                                              four workers; also srun, torchrun
      hpcdat evaluate runs/demo               measure TA, RA and more
      hpcdat report runs/demo runs/other      compare results in one table

    \b
    Topics, such as exchange, slurm and exit-codes: hpcdat help

    \b
    Exit codes:
      0    done
      1    failure
      2    invalid input
      75   stopped early; the same command resumes
      130  interrupted a second time
    """,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"hpcdat {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command()(demo)
app.command()(train)
app.command()(evaluate)
app.command("pseudo-label")(pseudo_label)
app.command()(certify)
app.command()(report)
app.command()(export)
app.command()(doctor)
app.command()(plan)
app.command()(pack)
app.command(context_settings={"ignore_unknown_options": True})(submit)
app.command("help")(help_)
app.add_typer(jobs, name="jobs")
app.add_typer(boxes, name="box")


def main() -> None:
    """Entry point of the command ``hpcdat``."""
    # Otherwise Python's last garbage collection scans all of torch's objects at exit, for most of a second.
    atexit.register(gc.freeze)
    app()
