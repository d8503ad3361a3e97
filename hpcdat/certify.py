"""The certification of a run, as every one of its workers lives it."""

from __future__ import annotations

from pathlib import Path

from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.data import open_loader
from hpcdat.evaluation.alone import alone_in
from hpcdat.evaluation.certification import Certified, Certifier, counts_file
from hpcdat.progress import Progress
from hpcdat.record import RunFolder
from hpcdat.report.certified import rows_beside, write_certified
from hpcdat.run import find_test_images, load_trained


def certify(run_dir: Path, settings: list[str], workers: Workers, stop: StopRequest) -> list[Certified]:
    """Certify the smoothed classifiers of the latest checkpoint of a finished or interrupted run.

    What an earlier call has sampled, whole or not, is not sampled again.

    Args:
        run_dir, settings, workers, stop: as for :func:`hpcdat.run.evaluate`.

    Returns:
        The certificates, one list for each noise level; worker 0 has written table, plot and both as data
        to the run folder.

    Raises:
        InputError, WorkerError, Stopped: as there.
    """
    folder = RunFolder(run_dir)
    job = workers.together("read the job", lambda: folder.read_job(settings))
    paper = workers.together("find the paper's rows", lambda: rows_beside(job))
    trained = load_trained(folder, job, workers)
    images, wanted = find_test_images(job, trained, workers), job.certification
    certifier = Certifier(
        open_loader(images, job.data, training=False, batch_size=1, device=trained.device),
        range(0, len(images), wanted.every),
        len(images.classes),
        job,
        workers,
        Progress(shown=workers.is_first),
        stop,
    )
    with alone_in(folder.certification_folder, workers):
        certified = [
            certifier.measure(
                trained.model,
                sigma,
                counts_file(folder.certification_folder, job, trained.model, images, sigma, workers),
            )
            for sigma in wanted.sigma
        ]

    def write() -> None:
        if workers.is_first:
            write_certified(certified, paper, folder.certification_folder)

    workers.together("write the certificates", write)
    return certified
