"""``hpcdat certify``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from hpcdat.cli.options import SetOption, Settings, SourceArgument, WorkersOption
from hpcdat.cli.worker_process import as_worker, reported_once, start_locally
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.slurm.preemption import connected_to_batch_script
from hpcdat.storage.evaluation_folder import open_for_evaluation

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator


def certify(
    run: SourceArgument,
    settings: Settings = None,
    set_: SetOption = None,
    sigma: Annotated[
        str | None, typer.Option(metavar="SIGMA,...", help="Noise levels (standard deviations): 0.12,0.25.")
    ] = None,
    n0: Annotated[int | None, typer.Option(help="Samples for choosing the class.")] = None,
    n: Annotated[int | None, typer.Option(help="Samples for bounding its probability.")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Probability that a certificate is wrong, at most.")
    ] = None,
    every: Annotated[
        int | None, typer.Option(metavar="K", help="Certify every K-th test image only.")
    ] = None,
    workers: WorkersOption = 1,
) -> None:
    """Certify a run's model or given weights by randomised smoothing.

    \b
    Examples:
      hpcdat certify runs/demo --sigma 0.25
      hpcdat certify runs/demo --sigma 0.12,0.25 --every 20 -np 4

    A job file has the weights in model.pretrained; of a run the latest checkpoint is certified (Cohen et al.
    2019). The options override the job's `certification`
    settings. The counts of every finished image are stored: after a stop or a failure the same command
    resumes, with any number of workers, and gives the same result. Table, plot and data are written to
    RUN/certification, next to the certificates at other noise levels or with other settings.
    """
    given = certification_settings(sigma=sigma, n0=n0, n=n, alpha=alpha, every=every)
    replaced = [*given, *(set_ or []), *(settings or [])]
    folder, resolved = reported_once(lambda: open_for_evaluation(run, replaced))
    if workers > 1:
        start_locally(workers, resolved)

    def work(workers: Communicator, stop: StopRequest) -> str:
        from hpcdat.commands.certify import certify
        from hpcdat.report.certified import certified_table, rows_beside

        with connected_to_batch_script(folder.path, stop) if workers.is_rank0 else nullcontext():
            return certified_table(certify(run, replaced, workers, stop), rows_beside(resolved))

    table = as_worker(work, resolved)
    if table is not None:
        print(f"{table}\n\nwritten to {folder.certification_folder}")


def certification_settings(**options: str | float | None) -> list[str]:
    """The options of the command as ``key=value`` settings of a job."""
    return [
        f"certification.{key}={f'[{value}]' if key == 'sigma' else value}"
        for key, value in options.items()
        if value is not None
    ]
