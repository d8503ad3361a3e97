"""The command line: parse, call, print.

What a worker needs is imported where the work begins: it takes seconds, for which neither help, a wrong
setting nor the process that only starts workers should wait.
"""

from __future__ import annotations

import atexit
import gc

import typer

from hpcdat.cli.box import boxes
from hpcdat.cli.certify import certify
from hpcdat.cli.doctor import doctor
from hpcdat.cli.evaluate import evaluate
from hpcdat.cli.plan import plan
from hpcdat.cli.pseudo_label import pseudo_label
from hpcdat.cli.report import report
from hpcdat.cli.submit import submit
from hpcdat.cli.train import train

app = typer.Typer(
    name="hpcdat",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Distributed adversarial training (DAT) on one machine or many.

    hpcdat train jobs/demo.yaml -np 2       trains with two local workers
    mpirun -np 4 hpcdat train JOB.yaml      the same under a launcher: mpirun, horovodrun, srun
    hpcdat evaluate runs/demo               measures TA, RA and more of a finished or stopped run
    hpcdat pseudo-label runs/demo DIR X.npz labels images that have none
    hpcdat certify runs/demo                certifies its smoothed classifiers, image by image
    hpcdat report runs/demo runs/other      puts results side by side
    hpcdat doctor JOB.yaml                  checks all nodes and links before a run, started like train
    hpcdat plan JOB.yaml --nodes 6,100      predicts C, T, bytes and speed-up
    hpcdat submit JOB.yaml --nodes 6        hands a job to Slurm
    hpcdat box up six --rate 100mbit        makes a cluster in a box, to try it on

    Exit codes: 0 done, 1 failure, 2 wrong input, 75 stopped early (the same command goes on),
    130 interrupted a second time.
    """.replace("\n    ", "\n\n    "),
)
app.command()(train)
app.command()(evaluate)
app.command("pseudo-label")(pseudo_label)
app.command()(certify)
app.command()(report)
app.command()(doctor)
app.command()(plan)
app.command()(submit)
app.add_typer(boxes, name="box")


def main() -> None:
    """Entry point of the command ``hpcdat``."""
    # Else Python looks once more for garbage among all of torch's objects, for most of a second, as it ends.
    atexit.register(gc.freeze)
    app()
