"""The evaluations of a training run: on validation images, on test images, and on the guard's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from hpcdat.cluster.stopping import StopRequest
from hpcdat.data import open_loader
from hpcdat.data.images import DataError, Images
from hpcdat.evaluation.accuracy import Accuracy, Evaluator
from hpcdat.job import METHODS, Evaluation, Job
from hpcdat.progress import Progress
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


class Validation:
    """Evaluates a run's network between epochs and at its end.

    Args:
        job: resolved.
        state: of the training.
        images: of the run.
        device: of this worker.
        progress: for the user.
        stop: the user's wish to stop, heeded while evaluating.
    """

    def __init__(
        self,
        job: Job,
        state: TrainingState,
        images: ImageSplits,
        device: torch.device,
        progress: Progress,
        stop: StopRequest,
    ) -> None:
        self.job, self.state, self.progress = job, state, progress

        def evaluator(images: Images, settings: Evaluation, *how: StopRequest | str | None) -> Evaluator:
            loader = open_loader(
                images, job.data, training=False, batch_size=settings.batch_size, device=device
            )
            return Evaluator(loader, len(images), settings, job, state.workers, progress, *how)

        held_out = images.validation is not images.test
        self._test = evaluator(images.test, job.evaluation, stop)
        self._validation = evaluator(images.validation, job.evaluation, stop) if held_out else self._test
        self._guard = None
        if job.oracle == "fgsm" and job.early_stopping.fgsm_guard and not METHODS[job.method].split:
            watched = images.train.equal_part(min(GUARD_IMAGES, len(images.train)))
            settings = self._guard_settings(len(watched))
            # Short, and before the checkpoint of the epoch: a stop waits for its end.
            self._guard = evaluator(watched, settings, None, "guard against overfitting")

    @property
    def is_due(self) -> bool:
        """Whether the job asks for an evaluation on the validation images at this point of the training."""
        state, every = self.state, self.job.evaluation.every
        if not (every and state.epoch and state.step == 0):
            return False
        if state.epoch == self.job.epochs:
            # Without early stopping the last evaluation is the result.
            return bool(self.job.early_stopping.patience)
        return state.epoch % every == 0

    def measure(self) -> Accuracy:
        """TA and RA on the validation images, recorded in the metrics."""
        return self._measure(self._validation)

    def result(self) -> Accuracy:
        """TA and RA of the run on the test images; with early stopping, the best weights are restored."""
        history = self.state.history
        if not self.job.early_stopping.patience or not history.best_epoch:
            return self._measure(self._test)
        if history.since:
            self.progress.say(f"the weights of epoch {history.best_epoch} are the best: they are the result")
            self.state.restore_best()
        return history.best if self._validation is self._test else self._measure(self._test)

    def has_overfitted(self) -> bool:
        """Whether robust accuracy on training images has collapsed since an earlier epoch (FGSM's guard)."""
        if self._guard is None:
            return False
        accuracy, history, epoch = self._guard.measure(self.state.model), self.state.history, self.state.epoch
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

    def _measure(self, evaluator: Evaluator) -> Accuracy:
        accuracy, epoch = evaluator.measure(self.state.model), self.state.epoch
        held_out = evaluator is not self._test
        self.state.log(event="evaluation", epoch=epoch, ta=accuracy.ta, ra=accuracy.ra, held_out=held_out)
        self.progress.say(
            f"epoch {epoch:3d}  TA {100 * accuracy.ta:.1f}  RA {100 * accuracy.ra:.1f}"
            + (" (held out)" if held_out else "")
        )
        return accuracy

    def _guard_settings(self, images: int) -> Evaluation:
        # Every worker has a batch.
        batch = min(self.job.evaluation.batch_size, -(-images // self.state.workers.size))
        settings = self.job.evaluation.with_usual_step_size(eps=self.job.attack.eps, steps=GUARD_STEPS)
        return settings.model_copy(update={"batch_size": batch, "restarts": 1})


def hold_out(train: Images, test: Images, job: Job) -> ImageSplits:
    """Hold out as many training images for validation as the job says.

    Args:
        train, test: all images of the job's data.
        job: its ``early_stopping.held_out`` counts; without it, validation is on the test images.

    Raises:
        DataError: there are not so many.
    """
    count = job.early_stopping.held_out
    if not count:
        return ImageSplits(train, test, test)
    held_out = train.equal_part(count)
    taken = set(held_out.files)
    left = np.array([i for i, file in enumerate(train.files) if file not in taken], dtype=np.int64)
    if not len(left):
        raise DataError(f"early_stopping.held_out: {count} leaves none of the {len(train)} training images")
    return ImageSplits(train.subset(left), held_out, test)
