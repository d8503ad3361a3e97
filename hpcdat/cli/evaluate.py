"""``hpcdat evaluate``."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcdat.cli.options import SetOption, Settings, SourceArgument, WorkersOption, read_request
from hpcdat.cli.worker_process import as_worker, reported_once, start_locally
from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.evaluation.request import EvaluationRequest, SweepKind
from hpcdat.report.result_table import result_table
from hpcdat.slurm.preemption import connected_to_batch_script
from hpcdat.storage.evaluated import WeightsResult
from hpcdat.storage.evaluation_folder import open_for_evaluation
from hpcdat.storage.run_folder import Result

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator


def evaluate(
    run: SourceArgument,
    settings: Settings = None,
    set_: SetOption = None,
    workers: WorkersOption = 1,
    averaged: Annotated[
        bool,
        typer.Option(
            "--averaged", help="Evaluate the averaged weights (the job's `averaging`), not the last."
        ),
    ] = False,
    autoattack: Annotated[
        str | None,
        typer.Option(metavar="N|all", help="Measure AA on N test images, balanced over the classes."),
    ] = None,
    sweep_eps: Annotated[
        str | None, typer.Option(metavar="EPS,EPS,...", help="Measure RA over radii: 0,2/255,4/255,8/255.")
    ] = None,
    sweep_steps: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Measure RA over numbers of PGD steps: 1,10,20,50,100."),
    ] = None,
    sweep: Annotated[
        SweepKind,
        typer.Option(
            help="plain: at each value, one PGD attack from its own start. accumulating: an image counts "
            "as robust only if it withstands all smaller values too."
        ),
    ] = "plain",
    figure_3: Annotated[
        bool,
        typer.Option(
            "--figure-3", help="Both sweeps over the radii and steps of the DAT paper's Figure 3 (assumed)."
        ),
    ] = False,
    gallery: Annotated[
        int | None,
        typer.Option(
            min=1, max=200, metavar="N", help="Show N test images before and after the attack on a page."
        ),
    ] = None,
) -> None:
    """Measure TA and RA of a run or of given weights, and AA, the fast bound and sweeps if requested.

    \b
    Examples:
      hpcdat evaluate runs/demo -np 2
      hpcdat evaluate runs/demo evaluation.steps=100
      hpcdat evaluate runs/demo --autoattack 1000 --sweep-eps 0,4/255,8/255
      hpcdat evaluate runs/demo evaluation.fast_bound=true
      hpcdat evaluate runs/demo --averaged
      hpcdat evaluate runs/demo --gallery 24
      hpcdat evaluate JOB.yaml model.pretrained=weights.pth evaluation.eps=8/255

    A job file has the weights to evaluate in model.pretrained, and needs none of the settings of a training;
    results are written to its run_dir.

    What the run's own job measures stays the first row of its table; an evaluation with another attack, other
    images or other settings is a row of its own, and so is one of averaged weights.

    Of a run, which may be finished or interrupted, the latest checkpoint is evaluated. The outcomes of every
    batch are stored in the folder: after a stop or a kill the same command resumes, with any number of
    workers. Sanity checks warn of implausibly good results. `--gallery N` writes RUN/evaluation/gallery.html:
    images that the attack breaks and images that withstand it, perturbations, and what the network says.
    """
    replaced = [*(set_ or []), *(settings or [])]

    def read() -> tuple[Path, EvaluationJob, EvaluationRequest]:
        folder, job = open_for_evaluation(run, replaced, attacked=True)
        request = read_request(autoattack, sweep_eps, sweep_steps, job, sweep=sweep, figure_3=figure_3)
        return folder.path, job, replace(request, averaged=averaged, gallery=gallery)

    folder, resolved, request = reported_once(read)
    if workers > 1:
        start_locally(workers, resolved)

    def work(workers: Communicator, stop: StopRequest) -> dict[Path, Result | WeightsResult]:
        from hpcdat.commands.evaluate import evaluate

        with connected_to_batch_script(folder, stop) if workers.is_rank0 else nullcontext():
            return {folder: evaluate(run, replaced, request, workers, stop)}

    results = as_worker(work, resolved)
    if results is not None:
        print(result_table(results))
