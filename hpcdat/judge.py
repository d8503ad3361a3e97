"""The evaluations of a training run: when they come, what they decide, and which weights they keep."""

from __future__ import annotations

import numpy as np
import torch

from hpcdat.cluster.stopping import StopRequest
from hpcdat.cluster.workers import Workers
from hpcdat.data import open_loader
from hpcdat.data.images import DataError, Images
from hpcdat.early_stopping import GUARD_IMAGES, GUARD_STEPS
from hpcdat.evaluation.accuracy import Accuracy, Evaluator
from hpcdat.job import METHODS, Evaluation, Job
from hpcdat.progress import Progress
from hpcdat.training_state import TrainingState


class Judge:
    """Measures a run's model, ends the run early where the job says so, and keeps the best weights.

    Args:
        job: resolved.
        workers: who trains.
        state: of the training.
        train: the images that are trained on.
        judged: the images to judge by.
        test: the images of the result.
        device: where this worker computes.
        progress: for the user.
        stop: looked at while evaluating.
    """

    def __init__(
        self,
        job: Job,
        workers: Workers,
        state: TrainingState,
        train: Images,
        judged: Images,
        test: Images,
        device: torch.device,
        progress: Progress,
        stop: StopRequest,
    ) -> None:
        self.job, self.workers, self.state, self.progress = job, workers, state, progress
        self.every, self.patience = job.evaluation.every, job.early_stopping.patience

        def evaluator(images: Images, settings: Evaluation, *how: StopRequest | str | None) -> Evaluator:
            loader = open_loader(
                images, job.data, training=False, batch_size=settings.batch_size, device=device
            )
            return Evaluator(loader, len(images), settings, job, workers, progress, *how)

        self.on_test = evaluator(test, job.evaluation, stop)
        self.on_judged = self.on_test if judged is test else evaluator(judged, job.evaluation, stop)
        self.guard = None
        if job.oracle == "fgsm" and job.early_stopping.fgsm_guard and not METHODS[job.method].split:
            watched = train.equal_part(min(GUARD_IMAGES, len(train)))
            settings = self._guard_settings(len(watched))
            # It is short, and comes before the epoch is written: a stop has to wait for its end.
            self.guard = evaluator(watched, settings, None, "guard against overfitting")

    def look(self) -> bool:
        """Evaluate if the job asks for it here, between two epochs; whether training goes on."""
        epoch = self.state.epoch
        last = epoch == self.job.epochs
        if self.every and epoch and self.state.step == 0:
            # Without early stopping the last evaluation is the result.
            due = bool(self.patience) if last else epoch % self.every == 0
            if due and self.state.judgement.judge(epoch, self._measure(self.on_judged)):
                self.state.save(best=True)
        return not last and not (self.patience and self.state.judgement.since >= self.patience)

    def has_overfitted(self) -> bool:
        """Look for catastrophic overfitting; where it is found, go back to the end of the epoch before."""
        if self.guard is None:
            return False
        accuracy = self.guard.measure(self.state.model)
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
            return self._measure(self.on_test)
        if judgement.since:
            self.progress.say(
                f"the weights of epoch {judgement.best_epoch} are the best: they are the result"
            )
            self.state.go_back_to_best()
        return judgement.best if self.on_judged is self.on_test else self._measure(self.on_test)

    def _measure(self, evaluator: Evaluator) -> Accuracy:
        accuracy, epoch = evaluator.measure(self.state.model), self.state.epoch
        held_out = " (held out)" if evaluator is not self.on_test else ""
        self.state.log(
            event="evaluation", epoch=epoch, ta=accuracy.ta, ra=accuracy.ra, held_out=bool(held_out)
        )
        self.progress.say(
            f"epoch {epoch:3d}  TA {100 * accuracy.ta:.1f}  RA {100 * accuracy.ra:.1f}{held_out}"
        )
        return accuracy

    def _guard_settings(self, images: int) -> Evaluation:
        # Every worker has a batch.
        batch = min(self.job.evaluation.batch_size, -(-images // self.workers.size))
        settings = self.job.evaluation.with_usual_step_size(eps=self.job.attack.eps, steps=GUARD_STEPS)
        return settings.model_copy(update={"batch_size": batch, "restarts": 1})


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
