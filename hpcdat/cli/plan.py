"""``hpcdat plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcdat.cli.options import JobArgument, SetOption, Settings, WorkersOption, path
from hpcdat.cli.worker_process import as_worker, reported_once, start_locally
from hpcdat.config.job import Job
from hpcdat.config.job_file import read_job
from hpcdat.distributed.launcher import launched
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.emulation.cluster import bytes_per_second
from hpcdat.errors import InputError, shorten

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator
    from hpcdat.performance.calibration import Calibration


def plan(
    job: JobArgument,
    settings: Settings = None,
    set_: SetOption = None,
    nodes: Annotated[
        str, typer.Option(metavar="P,P,...", help="Numbers of nodes (p) to predict for.")
    ] = "1,2,6",
    workers_per_node: Annotated[int, typer.Option(min=1, help="Workers per node (q).")] = 1,
    workers: WorkersOption = 1,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Use links from a file (see --save).", parser=path)
    ] = None,
    link: Annotated[
        str | None, typer.Option(metavar="RATE", help="Assume links of this rate: 1gbit, 200gbit.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save the measured links to this file.", parser=path)
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

    Attack, gradient and update of the job's model are timed on this machine, on random images: on a CPU next
    to processes that compute what the other workers of a node would, again and again until the samples agree.
    How far they differ is printed; a machine that other processes use is refused. Started on several nodes,
    like `hpcdat train`, the command measures the links between them; otherwise give `--calibration` or
    `--link`. With exchange.protocol auto it prints the protocol that a run would choose. `--bytes` prints
    only MiB per iteration, computed from the settings and the model's shapes.
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
    links = {"--calibration": calibration, "--link": link, "--save": save}
    given = [name for name, value in links.items() if value is not None]

    def read() -> tuple[Job, list[int], Calibration | None]:
        # What can be checked without torch comes first, since its import takes seconds.
        resolved, counts = read_job(job, replaced), read_nodes(nodes)
        _check_links(given, counts, workers_per_node, started)
        if link:
            _check_rate(link)
        check_shapes(resolved, counts, workers_per_node)
        from hpcdat.performance.calibration import Calibration, assume_links

        if calibration:
            return resolved, counts, Calibration.read(calibration)
        return resolved, counts, assume_links(link) if link else None

    resolved, node_counts, known = reported_once(read)
    if workers > 1:
        start_locally(workers, resolved)

    def work(workers: Communicator, stop: StopRequest) -> str:
        from hpcdat.performance.forecast import predict_job

        return predict_job(resolved, node_counts, workers_per_node, images, known, save, workers, stop)

    prediction = as_worker(work, resolved)
    if prediction is not None:
        print(prediction)


def read_nodes(text: str) -> list[int]:
    """Parse numbers of nodes such as ``1,6,100``.

    Raises:
        InputError: the text is not a list of positive numbers.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(
            f"--nodes {shorten(text)}: expected numbers of nodes, as in --nodes 6 or --nodes 1,6,100"
        )
    return [int(part) for part in parts]


def check_shapes(job: Job, nodes: list[int], workers_per_node: int) -> None:
    """Check that each number of nodes can train the job.

    Raises:
        InputError: one cannot.
    """
    from hpcdat.commands.train import check_workers

    for number in nodes:
        check_workers(job, nodes=number, size=number * workers_per_node)


def _check_rate(link: str) -> None:
    """Check the rate of ``--link``.

    Raises:
        InputError: it is not one.
    """
    try:
        bytes_per_second(link)
    except InputError as error:
        raise InputError(f"--link {error}") from None


def _check_links(given: list[str], nodes: list[int], workers_per_node: int, started: int) -> None:
    """Check that the links are known, or can be measured.

    Args:
        given: the options for links that were used.
        nodes: numbers of nodes to predict for.
        workers_per_node: workers per node.
        started: workers of this command.

    Raises:
        InputError: they are unknown, or the options contradict each other.
    """
    if "--calibration" in given and "--link" in given:
        raise InputError("--calibration: not allowed with --link")
    if "--save" in given and (len(given) > 1 or started == 1):
        raise InputError(
            "--save: no links are measured; start the command on several nodes, like hpcdat train"
        )
    if started > 1 or given or max(nodes) * workers_per_node == 1:
        return
    alone = "; --nodes 1 needs no links" if workers_per_node == 1 else ""
    raise InputError(
        f"--nodes {','.join(map(str, nodes))}: the links between {max(nodes) * workers_per_node} workers are "
        "unknown: assume some by --link RATE, as in --link 10gbit, read measured ones by --calibration FILE, "
        f"or start several workers, here by -np or on several nodes like hpcdat train, to measure them{alone}"
    )


def _bytes(job: Path, replaced: list[str], nodes: str, workers_per_node: int, unused: list[str]) -> str:
    """The output with ``--bytes``; of other options given, the first one is refused."""
    from hpcdat.performance.network_bytes import describe_bytes

    if unused:
        raise InputError(f"{unused[0]}: not allowed with --bytes, which measures nothing")
    resolved, numbers = read_job(job, replaced), read_nodes(nodes)
    check_shapes(resolved, numbers, workers_per_node)
    return describe_bytes(resolved, numbers, workers_per_node)
