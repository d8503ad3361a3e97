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
from hpcdat.emulation.cluster import bytes_per_second
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
    workers_per_node: Annotated[int, typer.Option(min=1, help="Workers per node (q).")] = 1,
    workers: WorkersOption = 1,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Use links measured before (see --save).")
    ] = None,
    link: Annotated[
        str | None, typer.Option(metavar="RATE", help="Assume links of this rate: 1gbit, 200gbit.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save the measured links to this file.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Training images, if they are not on this machine.")
    ] = None,
    bytes_: Annotated[
        bool,
        typer.Option("--bytes", help="Only compute the bytes of an iteration: no timing, links or images."),
    ] = False,
) -> None:
    """Predict C, T, bytes and speed-up of a job before it runs.

    \b
    Examples:
      hpcdat plan jobs/demo.yaml --link 1gbit --nodes 1,2,6
      hpcdat plan JOB.yaml --nodes 6 --workers-per-node 6 --bytes
      srun -N 2 hpcdat plan JOB.yaml --nodes 6,100 --save links.json
      hpcdat plan JOB.yaml --nodes 6,100 --calibration links.json

    Attack, gradient and update of the job's model are timed on this machine, on random images. Started on
    several nodes, like `hpcdat train`, the command measures the links between them; otherwise give
    `--calibration` or `--link`. With exchange.protocol auto it prints the protocol that a run would choose.
    `--bytes` prints only MiB per iteration, computed from the settings and the model's shapes.
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
        from hpcdat.performance.calibration import Calibration, assume_links

        resolved, node_counts = _job_and_nodes(job, replaced, nodes, workers_per_node)
        if calibration and link:
            raise InputError("--calibration: not allowed with --link")
        if save and (calibration or link or started == 1):
            raise InputError(
                "--save: no links are measured; start the command on several nodes, like hpcdat train"
            )
        if calibration:
            return resolved, node_counts, Calibration.read(calibration)
        if link:
            return resolved, node_counts, assume_links(bytes_per_second(link))
        if started == 1 and max(node_counts) * workers_per_node > 1:
            raise InputError(
                "the links are unknown: start the command on several nodes, like hpcdat train, to measure "
                "them, or give --calibration FILE or --link RATE"
            )
        return resolved, node_counts, None

    resolved, node_counts, known = reported_once(read)
    if workers > 1:
        start_locally(workers)

    def work(workers: Communicator, stop: StopRequest) -> str:
        from hpcdat.performance.forecast import predict_job

        return predict_job(resolved, node_counts, workers_per_node, images, known, save, workers)

    prediction = as_worker(work, resolved)
    if prediction is not None:
        print(prediction)


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
