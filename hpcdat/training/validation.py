"""The evaluations of a training run: on validation images, on test images, and on the guard's."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from hpcdat.config.job import Job
from hpcdat.config.methods import METHODS
from hpcdat.data.images import DataError, Images
from hpcdat.evaluation.accuracy import Accuracy, PgdAccuracy, measure_accuracy
from hpcdat.evaluation.attack_text import describe_evaluation
from hpcdat.evaluation.image_batches import ImageBatches
from hpcdat.evaluation.intervals import with_interval
from hpcdat.evaluation.sharded_runner import Execution
from hpcdat.models.fingerprint import fingerprint
from hpcdat.training.early_stopping import GUARD_IMAGES, GUARD_STEPS
from hpcdat.training.state import TrainingState


class ImageSplits(NamedTuple):
    """The images of a run.

    Attributes:
        train: to train on.
        validation: to evaluate on between epochs; the test images if none are held out.
        test: of the result.
    """

    train: Images
    validation: Images
    test: Images


class Measured(NamedTuple):
    """The accuracy of some weights.

    Attributes:
        accuracy: TA and RA on the test images.
        weights: hash of the weights.
    """

    accuracy: Accuracy
    weights: str


class Evaluations(NamedTuple):
    """The evaluations at the end of a training.

    Attributes:
        trained: of the trained weights, which are the result of the run.
        averaged: of the averaged weights; None if there are none.
    """

    trained: Measured
    averaged: Measured | None


class Validation:
    """Evaluates a run's model between epochs and at its end.

    Args:
        job: resolved.
        state: of the training.
        images: of the run.
        device: of this worker.
        execution: workers, progress, and the stop that interrupts an evaluation.
    """

    def __init__(
        self,
        job: Job,
        state: TrainingState,
        images: ImageSplits,
        device: torch.device,
        execution: Execution,
    ) -> None:
        self.job, self.state, self.execution, self.progress = job, state, execution, execution.progress
        self.pgd = PgdAccuracy(job.evaluation, job.evaluation.resolved_norm, job.seed)

        def batches(images: Images, batch_size: int) -> ImageBatches:
            made = ImageBatches(images, job.data, batch_size, device)
            # Opened before training, so that unreadable images are reported at once.
            _ = made.loader
            return made

        held_out = images.validation is not images.test
        self._test = batches(images.test, job.evaluation.batch_size)
        self._validation = batches(images.validation, job.evaluation.batch_size) if held_out else self._test
        self._guard: tuple[PgdAccuracy, ImageBatches] | None = None
        if job.oracle == "fgsm" and job.early_stopping.fgsm_guard and not METHODS[job.method].split:
            watched = images.train.equal_part(min(GUARD_IMAGES, len(images.train)))
            settings = job.evaluation.with_usual_step_size(eps=job.attack.eps, steps=GUARD_STEPS)
            settings = settings.model_copy(update={"restarts": 1})
            pgd = PgdAccuracy(settings, job.attack.norm, job.seed, "accuracy on training images")
            # Every worker has a batch.
            batch_size = min(settings.batch_size, -(-len(watched) // execution.workers.size))
            self._guard = pgd, batches(watched, batch_size)

    def close(self) -> None:
        """Close the loaders."""
        for images in (self._test, self._validation, *([self._guard[1]] if self._guard else [])):
            images.close()

    @property
    def is_due(self) -> bool:
        """Whether the job asks for an evaluation on the validation images at this point of the training."""
        state, every = self.state, self.job.evaluation.every
        if not (every and state.epoch and state.step == 0):
            return False
        if state.epoch == self.job.total_epochs:
            # Without early stopping the last evaluation is the result.
            return self.job.early_stopping.chooses_weights
        return state.epoch % every == 0

    def measure(self) -> Accuracy:
        """TA and RA on the validation images, recorded in the metrics."""
        return self._measure(self._validation)

    def result(self) -> Measured:
        """TA and RA of the run on the test images; the best weights are restored if the job asks for them."""
        accuracy = self._result()
        return Measured(accuracy, fingerprint(self.state.model))

    def averaged(self) -> Measured | None:
        """TA and RA of the averaged weights that belong to the result; None if there are none."""
        averages = self.state.algorithm.averages
        if not averages.updates:
            if self.job.averaging.is_on:
                self.progress.say(f"no weights were averaged up to epoch {self.state.epoch}")
            return None
        with averages.in_model():
            return Measured(self._measure(self._test, averaged=True), fingerprint(self.state.model))

    def _result(self) -> Accuracy:
        history = self.state.history
        if not self.job.early_stopping.chooses_weights or not history.best_epoch:
            return self._measure(self._test)
        # The guard against catastrophic overfitting may have restored the end of a later epoch.
        if history.best_epoch != self.state.epoch:
            self.progress.say(f"the weights of epoch {history.best_epoch} are the best: they are the result")
            self.state.restore_best()
        return history.best if self._validation is self._test else self._measure(self._test)

    def has_overfitted(self) -> bool:
        """Whether robust accuracy on training images has collapsed since an earlier epoch (FGSM's guard)."""
        if self._guard is None:
            return False
        history, epoch = self.state.history, self.state.epoch
        # It is short and comes before the epoch's checkpoint, so a stop waits for its end.
        execution = replace(self.execution, stop=None)
        accuracy = measure_accuracy(*self._guard, self.state.model, self.job, execution)
        if not history.add_guarded(accuracy):
            return False
        best = history.guarded / accuracy.images
        self.state.log(event="overfitting", epoch=epoch, ra=accuracy.ra, best_ra=best)
        self.progress.say(
            f"epoch {epoch:3d}: catastrophic overfitting: on {accuracy.images} training images robust "
            f"accuracy (PGD-{GUARD_STEPS}) fell from {100 * best:.1f} to {100 * accuracy.ra:.1f} %. Training "
            f"ends with the weights of epoch {epoch - 1}; a smaller attack.step_size or dat-pgd avoids it"
        )
        return True

    def _measure(self, images: ImageBatches, *, averaged: bool = False) -> Accuracy:
        accuracy = measure_accuracy(self.pgd, images, self.state.model, self.job, self.execution)
        epoch, held_out = self.state.epoch, images is not self._test
        event = "averaged-evaluation" if averaged else "evaluation"
        self.state.log(event=event, epoch=epoch, ta=accuracy.ta, ra=accuracy.ra, held_out=held_out)
        self.progress.say(
            f"epoch {epoch:3d}  TA {with_interval(accuracy.ta, accuracy.images, 1)}  "
            f"RA {with_interval(accuracy.ra, accuracy.images, 1)}  "
            f"({describe_evaluation(self.job)}; {accuracy.images:,} "
            f"{'held-out' if held_out else 'test'} images{'; averaged weights' if averaged else ''})"
        )
        return accuracy


def hold_out(train: Images, test: Images, job: Job) -> ImageSplits:
    """Split validation images off the training images, as ``early_stopping.held_out`` asks.

    Args:
        train, test: all images of the job's data.
        job: without ``early_stopping.held_out``, its validation images are the test images.

    Raises:
        DataError: too few training images.
    """
    count = job.early_stopping.held_out
    if not count:
        return ImageSplits(train, test, test)
    held_out = train.balanced(count)
    is_left = np.ones(len(train), dtype=bool)
    is_left[held_out] = False
    left = np.flatnonzero(is_left)
    if not len(left):
        raise DataError(f"early_stopping.held_out: {count} leaves none of the {len(train)} training images")
    return ImageSplits(train.subset(left), train.subset(held_out), test)
