"""Certification as a measurement: samples around test images, divided among the workers."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.measurements import Certification
from hpcdat.evaluation.certification.certificates import Certified, Counts
from hpcdat.evaluation.certification.smoothed_classifier import SmoothedClassifier
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.sharded_runner import Execution, Measurement, open_store, run_sharded


class Sampling(Measurement[Counts]):
    """Samples around each image at one noise level; its batches hold one image.

    Args:
        sigma: standard deviation of the noise, [0, 1] units.
        settings: number and batch size of the samples.
        classes: number of logits.
        seed: the job's.
    """

    outcome = Counts
    batch_size_setting = "certification.batch_size"

    def __init__(self, sigma: float, settings: Certification, classes: int, seed: int) -> None:
        self.sigma, self.certification, self.classes, self.seed = sigma, settings, classes, seed
        self.name = f"counts-{sigma:g}"
        # Without alpha, on which the counts do not depend.
        self.settings = {"sigma": sigma, **settings.model_dump(include={"n0", "n", "batch_size"})}

    @property
    def task(self) -> str:  # noqa: D102
        return f"certify at sigma {self.sigma:g}"

    def measure(  # noqa: D102
        self, model: nn.Module, x: Tensor, y: Tensor, number: int, *, folded: nn.Module | None = None
    ) -> Counts:
        settings = self.certification
        smoothed = SmoothedClassifier(
            folded or model, self.sigma, classes=self.classes, batch_size=settings.batch_size, seed=self.seed
        )
        top, count = smoothed.certify(x[0], n0=settings.n0, n=settings.n, image=number)
        return Counts(number, int(y[0]), top, count)


def certify_images(
    sigma: float,
    images: ImageBatches,
    model: nn.Module,
    job: EvaluationJob,
    execution: Execution,
    folder: Path | None,
) -> Certified:
    """Certificates of a list of images; all workers call this together.

    Args:
        sigma: standard deviation of the noise, [0, 1] units.
        images: in batches of one image.
        model: f, the same on all workers, in evaluation mode.
        job: resolved.
        execution: workers, progress and stop; a stop takes effect between two batches of samples.
        folder: for stored counts; None: they are not stored, so that nothing can resume.

    Raises:
        Stopped, InputError, WorkerError: as :func:`~hpcdat.evaluation.sharded_runner.run_sharded`.
    """
    settings = job.certification
    sampling = Sampling(sigma, settings, len(images.images.classes), job.seed)
    store = open_store(folder, sampling, images, model, job, execution.workers) if folder else None
    counts = run_sharded(sampling, images, model, job, execution, store=store)
    return Certified(sigma, settings.n0, settings.n, settings.alpha, list(counts.values()))
