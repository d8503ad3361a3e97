"""``hpcdat certify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hpcdat.cli.options import RunArgument, SetOption, Settings, WorkersOption
from hpcdat.cli.worker_process import as_worker, reported_once, start_locally
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator


def certify(
    run: RunArgument,
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
    """Certify a run's model by randomised smoothing.

    \b
    Examples:
      hpcdat certify runs/demo --sigma 0.25
      hpcdat certify runs/demo --sigma 0.12,0.25 --every 20 -np 4

    The latest checkpoint is certified (Cohen et al. 2019). The options override the job's `certification`
    settings. The counts of every finished image are stored: after a stop or a failure the same command
    resumes, with any number of workers, and gives the same result. Table, plot and data are written to
    RUN/certification, next to the certificates at other noise levels or with other settings.
    """
    named = {"sigma": f"[{sigma}]" if sigma else None, "n0": n0, "n": n, "alpha": alpha, "every": every}
    given = [f"certification.{key}={value}" for key, value in named.items() if value is not None]
    replaced = [*given, *(set_ or []), *(settings or [])]
    resolved = reported_once(lambda: RunFolder(run).read_job(replaced))
    if workers > 1:
        start_locally(workers)

    def work(workers: Communicator, stop: StopRequest) -> str:
        from hpcdat.commands.certify import certify
        from hpcdat.report.certified import certified_table, rows_beside

        return certified_table(certify(run, replaced, workers, stop), rows_beside(resolved))

    table = as_worker(work, resolved)
    if table is not None:
        print(f"{table}\n\nwritten to {RunFolder(run).certification_folder}")
