"""The evaluations of a training run: when they come, what they decide, and which weights they keep."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from hpcdat.data.images import DataError, Images
from hpcdat.early_stopping import GUARD_IMAGES, GUARD_STEPS
from hpcdat.evaluation.accuracy import Accuracy, PgdAccuracy, measure_accuracy
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.sharded_runner import Execution
from hpcdat.job import METHODS, Job
from hpcdat.training_state import TrainingState


class RunImages(NamedTuple):
    """The images of a run."""

    train: Images
    """trained on"""
    judged: Images
    """measured between epochs, for early stopping"""
    test: Images
    """measured for the result"""


class Judge:
    """Measures a run's model, ends the run early where the job says so, and keeps the best weights.

    Args:
        job: resolved.
        state: of the training.
        images: of this run.
        device: where this worker computes.
        execution: workers, progress, and the stop that interrupts evaluations.
    """

    def __init__(
        self, job: Job, state: TrainingState, images: RunImages, device: torch.device, execution: Execution
    ) -> None:
        self.job, self.state, self.execution, self.progress = job, state, execution, execution.progress
        self.every, self.patience = job.evaluation.every, job.early_stopping.patience
        self.pgd = PgdAccuracy(job.evaluation, job.attack.norm, job.seed)

        def opened(images: Images, batch_size: int) -> ImageBatches:
            batches = ImageBatches(images, job.data, batch_size, device)
            # Before training, so that images that cannot be read are reported at once.
            _ = batches.loader
            return batches

        self.test = opened(images.test, job.evaluation.batch_size)
        self.judged = self.test
        if images.judged is not images.test:
            self.judged = opened(images.judged, job.evaluation.batch_size)
        self.guard: tuple[PgdAccuracy, ImageBatches] | None = None
        if job.oracle == "fgsm" and job.early_stopping.fgsm_guard and not METHODS[job.method].split:
            watched = images.train.equal_part(min(GUARD_IMAGES, len(images.train)))
            settings = job.evaluation.with_usual_step_size(eps=job.attack.eps, steps=GUARD_STEPS)
            settings = settings.model_copy(update={"restarts": 1})
            name = "accuracy on training images"
            # Every worker has a batch.
            batch_size = min(settings.batch_size, -(-len(watched) // execution.workers.size))
            self.guard = (
                PgdAccuracy(settings, job.attack.norm, job.seed, name),
                opened(watched, batch_size),
            )

    def look(self) -> bool:
        """Evaluate if the job asks for it here, between two epochs; whether training goes on."""
        epoch = self.state.epoch
        last = epoch == self.job.epochs
        if self.every and epoch and self.state.step == 0:
            # Without early stopping the last evaluation is the result.
            due = bool(self.patience) if last else epoch % self.every == 0
            if due and self.state.judgement.judge(epoch, self._measure(self.judged)):
                self.state.save(best=True)
        return not last and not (self.patience and self.state.judgement.since >= self.patience)

    def has_overfitted(self) -> bool:
        """Look for catastrophic overfitting; where it is found, go back to the end of the epoch before."""
        if self.guard is None:
            return False
        # It is short, and comes before the epoch is written: a stop waits for its end.
        execution = replace(self.execution, stop=None)
        accuracy = measure_accuracy(*self.guard, self.state.model, self.job, execution)
        if not self.state.judgement.overfitted(accuracy):
            return False
        epoch, best = self.state.epoch, self.state.judgement.guarded / accuracy.images
        self.state.log(event="overfitting", epoch=epoch, ra=accuracy.ra, best_ra=best)
        self.progress.say(
            f"epoch {epoch:3d}: catastrophic overfitting: on {accuracy.images} training images robust "
            f"accuracy (PGD-{GUARD_STEPS}) fell from {100 * best:.1f} to {100 * accuracy.ra:.1f} %. Training "
            f"ends with the weights of epoch {epoch - 1}; a smaller attack.step_size or dat-pgd avoids it"
        )
        self.state.go_back_an_epoch()
        return True

    def result(self) -> Accuracy:
        """TA and RA on the test images: of the weights at hand, with early stopping of the best."""
        judgement = self.state.judgement
        if not self.patience or not judgement.best_epoch:
            return self._measure(self.test)
        if judgement.since:
            self.progress.say(
                f"the weights of epoch {judgement.best_epoch} are the best: they are the result"
            )
            self.state.go_back_to_best()
        return judgement.best if self.judged is self.test else self._measure(self.test)

    def _measure(self, images: ImageBatches) -> Accuracy:
        accuracy = measure_accuracy(self.pgd, images, self.state.model, self.job, self.execution)
        epoch, held_out = self.state.epoch, images is not self.test
        self.state.log(event="evaluation", epoch=epoch, ta=accuracy.ta, ra=accuracy.ra, held_out=held_out)
        self.progress.say(
            f"epoch {epoch:3d}  TA {100 * accuracy.ta:.1f}  RA {100 * accuracy.ra:.1f}"
            + (" (held out)" if held_out else "")
        )
        return accuracy


def set_aside(train: Images, test: Images, job: Job) -> tuple[Images, Images]:
    """The images to train on, and those to judge by: held-out ones where the job wants it.

    Raises:
        DataError: there are not so many.
    """
    count = job.early_stopping.held_out
    if not count:
        return train, test
    held_out = train.equal_part(count)
    taken = set(held_out.files)
    left = np.array([i for i, file in enumerate(train.files) if file not in taken], dtype=np.int64)
    if not len(left):
        raise DataError(f"early_stopping.held_out: {count} leaves none of the {len(train)} training images")
    return train.subset(left), held_out
