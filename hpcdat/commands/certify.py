"""Certify the checkpoint of a run, or given weights, on every worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hpcdat.commands.run_result import CERTIFICATION_SETTINGS, changed_settings
from hpcdat.commands.trained_model import images_for, load_model, prepare_folder
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import InputError
from hpcdat.evaluation.certification.certificates import Certified
from hpcdat.evaluation.certification.certifier import certify_images
from hpcdat.evaluation.determinism import deterministic
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.sharded_runner import Execution
from hpcdat.models.fingerprint import fingerprint
from hpcdat.progress import Progress
from hpcdat.report.certificates import read_certificates
from hpcdat.report.certified import rows_beside, with_certified, write_certified
from hpcdat.storage.evaluation_folder import open_for_evaluation
from hpcdat.storage.folder_lock import locked
from hpcdat.storage.run_folder import RunFolder


def certify(source: Path, settings: list[str], workers: Communicator, stop: StopRequest) -> list[Certified]:
    """Certify the smoothed classifiers of a run's latest checkpoint, or of given weights.

    Images that an earlier, possibly interrupted call has sampled are not sampled again.

    Args:
        source, settings, workers, stop: as for :func:`hpcdat.commands.evaluate.evaluate`.

    Returns:
        The certificates, one list per noise level; worker 0 has written table, plot and data files to the
        run folder, with those of earlier calls at other noise levels or with other settings.

    Raises:
        InputError, WorkerError, Stopped: as there.
    """
    folder, job = workers.on_all_ranks("read the job", lambda: open_for_evaluation(source, settings))
    paper = workers.on_all_ranks("find the paper's rows", lambda: rows_beside(job))
    trained = load_model(folder, job, workers)
    test_images = images_for(trained, job, workers)
    prepare_folder(folder, job, trained, workers)
    images = ImageBatches(test_images, job.data, 1, trained.device, every=job.certification.every)
    execution = Execution(workers, Progress(shown=workers.is_rank0), stop)
    counts_folder = folder.certification_folder
    assert job.certification.sigma is not None  # the job is resolved
    with deterministic(trained.device, execution.progress.say), locked(counts_folder, workers):
        certified = [
            certify_images(sigma, images, trained.model, job, execution, counts_folder)
            for sigma in job.certification.sigma
        ]
    weights = fingerprint(trained.model)

    def write() -> list[str]:
        changed = changed_settings(folder, job, CERTIFICATION_SETTINGS)
        described = [replace(one, changed=changed, weights=weights) for one in certified]
        write_certified(with_certified(_stored(folder), described), paper, counts_folder)
        return list(changed)

    changed = tuple(workers.on_rank0("write the certificates", write))
    return [replace(one, changed=changed, weights=weights) for one in certified]


def _stored(folder: RunFolder) -> list[Certified]:
    """The certificates so far; none if they cannot be read: the counts behind them are in other files."""
    try:
        return read_certificates(folder.certification_folder)
    except InputError:
        return []
