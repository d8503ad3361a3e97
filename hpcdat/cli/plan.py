"""``hpcdat plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcdat.cli.options import SetOption, Settings, WorkersOption
from hpcdat.cli.worker_process import as_worker, reported_once, start_locally
from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.distributed.launcher import launched
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.emulation import cluster as box
from hpcdat.errors import InputError

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator
    from hpcdat.performance.calibration import Calibration


def plan(
    job: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job.", show_default=False)],
    settings: Settings = None,
    set_: SetOption = None,
    nodes: Annotated[
        str, typer.Option(metavar="P,P,...", help="Numbers of nodes (p) to predict for.")
    ] = "1,2,6",
    workers_per_node: Annotated[int, typer.Option(min=1, help="Workers a node (q).")] = 1,
    workers: WorkersOption = 1,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Links measured before (--save).")
    ] = None,
    link: Annotated[
        str | None, typer.Option(metavar="RATE", help="Assume links of this rate: 1gbit, 200gbit.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the links that were measured.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Training images, where they are not here to be counted.")
    ] = None,
    bytes_: Annotated[
        bool,
        typer.Option("--bytes", help="Only compute the bytes of an iteration: no timing, links or images."),
    ] = False,
) -> None:
    """Predict what a job costs on so many nodes: C, T, bytes and speed-up, before it runs.

    Attack, gradient and update of the job's network are timed here, on random images. Links are measured
    where this is started on several nodes, as `hpcdat train` is; else they are those of `--calibration`,
    or of a rate that is assumed (`--link`). With exchange.protocol auto it says which protocol it would
    choose. `--bytes` prints MB per iteration alone, computed from the settings and the model's shapes.
    """
    replaced = [*(set_ or []), *(settings or [])]
    if bytes_:
        unused = {"--calibration": calibration, "--link": link, "--save": save, "--images": images}
        given = [name for name, value in unused.items() if value is not None]
        given += ["-np"] if workers > 1 else []
        text = reported_once(lambda: _bytes(job, replaced, nodes, workers_per_node, given))
        if launched().rank == 0:
            print(text)
        return
    started = workers if workers > 1 else launched().size

    def read() -> tuple[Job, list[int], Calibration | None]:
        from hpcdat.performance import calibration as links

        resolved, wanted = _job_and_nodes(job, replaced, nodes, workers_per_node)
        if calibration and link:
            raise InputError("--calibration and --link: one of them says what the links are")
        if save and (calibration or link or started == 1):
            raise InputError(
                "--save: nothing is measured here; start it on several nodes, as hpcdat train is"
            )
        if calibration:
            return resolved, wanted, links.Calibration.read(calibration)
        if link:
            return resolved, wanted, links.assume_links(box.bytes_per_second(link))
        if started == 1 and max(wanted) * workers_per_node > 1:
            raise InputError(
                "nothing is known of the links: start it on several nodes, as hpcdat train is, to measure "
                "them, or give --calibration FILE or --link RATE"
            )
        return resolved, wanted, None

    resolved, wanted, known = reported_once(read)
    if workers > 1:
        start_locally(workers)

    def work(team: Communicator, stop: StopRequest) -> str:
        from hpcdat.performance.forecast import predict_job

        return predict_job(resolved, wanted, workers_per_node, images, known, save, team)

    told = as_worker(work, resolved)
    if told is not None:
        print(told)


def _job_and_nodes(
    job: Path, replaced: list[str], nodes: str, workers_per_node: int
) -> tuple[Job, list[int]]:
    """The resolved job and the numbers of nodes, each of which can train it."""
    from hpcdat.commands.train import check_workers
    from hpcdat.performance.forecast import read_nodes

    resolved, numbers = read_job(job, replaced), read_nodes(nodes)
    for number in numbers:
        check_workers(resolved, nodes=number, size=number * workers_per_node)
    return resolved, numbers


def _bytes(job: Path, replaced: list[str], nodes: str, workers_per_node: int, unused: list[str]) -> str:
    """The output with ``--bytes``; of other options given, the first one is refused."""
    from hpcdat.performance.network_bytes import describe_bytes

    if unused:
        raise InputError(f"{unused[0]}: not allowed with --bytes, which measures nothing")
    resolved, numbers = _job_and_nodes(job, replaced, nodes, workers_per_node)
    return describe_bytes(resolved, numbers, workers_per_node)
