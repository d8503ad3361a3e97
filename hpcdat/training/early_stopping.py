"""When to stop, and which weights to take: robust overfitting and catastrophic overfitting.

Robust accuracy on images that are not trained on may fall long before training ends (robust
overfitting, Rice et al. 2020), and FGSM training may lose it within an epoch while its own attack still
seems strong (catastrophic overfitting, Wong et al. 2020). Decisions depend only on counts summed over the
workers, so all workers make the same ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpcdat.evaluation.accuracy import Accuracy

GUARD_IMAGES = 256
"""Training images that the guard against catastrophic overfitting evaluates, of all workers together."""

GUARD_STEPS = 5
"""Steps of the guard's PGD, as in Fast AT's own early stopping."""


@dataclass
class History:
    """The best evaluation of a run so far, and how many came after it.

    Attributes:
        best_epoch: epochs done when robust accuracy was highest; 0 before the first evaluation.
        images, correct, robust: the counts of that evaluation.
        since: evaluations after it.
        guarded: highest number of the guard's images that were robust at the end of an epoch.
    """

    best_epoch: int = 0
    images: int = 0
    correct: int = 0
    robust: int = 0
    since: int = 0
    guarded: int = 0

    def add(self, epoch: int, accuracy: Accuracy) -> bool:
        """Add an evaluation; returns whether its RA is the highest so far.

        Args:
            epoch: epochs done.
            accuracy: on the validation images.
        """
        if self.images and accuracy.ra <= self.robust / self.images:
            self.since += 1
            return False
        self.best_epoch, self.since = epoch, 0
        self.images, self.correct, self.robust = accuracy.images, accuracy.correct, accuracy.robust
        return True

    @property
    def best(self) -> Accuracy:
        """TA and RA of the best evaluation."""
        return Accuracy(self.images, self.correct, self.robust)

    def add_guarded(self, accuracy: Accuracy) -> bool:
        """Add an evaluation of the guard, unless RA has collapsed; returns whether it has.

        It has if it is below half of its highest value, by more than three standard errors of the
        difference of two such counts.

        Args:
            accuracy: on the guard's images.
        """
        n = accuracy.images
        if n == 0:
            return False
        error = math.sqrt(sum(robust * (1 - robust / n) for robust in (self.guarded, accuracy.robust)))
        if accuracy.robust < self.guarded / 2 and self.guarded - accuracy.robust > 3 * error:
            return True
        self.guarded = max(self.guarded, accuracy.robust)
        return False
