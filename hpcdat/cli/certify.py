"""``hpcdat certify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcdat.cli.options import SetOption, Settings, WorkersOption
from hpcdat.cli.worker_process import as_worker, reported_once, start_locally
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator


def certify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)],
    settings: Settings = None,
    set_: SetOption = None,
    sigma: Annotated[
        str | None, typer.Option(metavar="SIGMA,...", help="Standard deviations of the noise: 0.12,0.25.")
    ] = None,
    n0: Annotated[int | None, typer.Option(help="Samples that choose the class.")] = None,
    n: Annotated[int | None, typer.Option(help="Samples that bound its probability.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Of a certificate's being wrong, at most.")] = None,
    every: Annotated[int | None, typer.Option(metavar="K", help="Each K-th test image.")] = None,
    workers: WorkersOption = 1,
) -> None:
    """Certify a run's latest checkpoint by randomised smoothing (Cohen et al. 2019).

    The options stand for the job's `certification` settings. Every image that is done is kept: after a
    stop or a failure the same command goes on, with any number of workers, to the same result. Table, plot
    and data are written to RUN/certification.
    """
    named = {"sigma": f"[{sigma}]" if sigma else None, "n0": n0, "n": n, "alpha": alpha, "every": every}
    given = [f"certification.{key}={value}" for key, value in named.items() if value is not None]
    replaced = [*given, *(set_ or []), *(settings or [])]
    resolved = reported_once(lambda: RunFolder(run).read_job(replaced))
    if workers > 1:
        start_locally(workers)

    def work(team: Communicator, stop: StopRequest) -> str:
        from hpcdat.commands.certify import certify
        from hpcdat.report.certified import certified_table, rows_beside

        return certified_table(certify(run, replaced, team, stop), rows_beside(resolved))

    table = as_worker(work, resolved)
    if table is not None:
        print(f"{table}\n\nwritten to {RunFolder(run).certification_folder}")
