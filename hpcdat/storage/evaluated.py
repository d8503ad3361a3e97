"""The accuracies of one evaluation of a run, as its result records them."""

from __future__ import annotations

from dataclasses import dataclass

ATTACK_SETTINGS = (
    "attack.norm",
    "evaluation.preset",
    "evaluation.norm",
    "evaluation.eps",
    "evaluation.steps",
    "evaluation.step_size",
    "evaluation.random_start",
    "evaluation.restarts",
)
"""Settings that the description of an attack shows."""
AVERAGED = "weights: averaged"
"""Stands among the changed settings of an evaluation of averaged weights."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The accuracies of one evaluation.

    Attributes:
        images: number of test images.
        ta, ra: standard and robust test accuracy on them, in [0, 1].
        attack: description of the attack that RA was measured with.
        epoch: number of epochs trained; None for given weights.
        changed: settings in which the evaluation differs from the run's own, such as ``data.test: val``; none
            if this is what the run's own job measures.
        weights: hash of the weights; None if unknown.
        aa, aa_images: robust accuracy under AutoAttack, in [0, 1], and its number of images; None if not
            measured.
        aa_ta, aa_ra: TA and RA on the same images as AA, in [0, 1]; None if not measured.
        aa_version: how AutoAttack differed from its standard version; None if it did not.
        fast_bound: upper bound of ``evaluation.fast_bound`` on all images, in [0, 1]; None if not measured.
    """

    images: int
    ta: float
    ra: float
    attack: str
    epoch: int | None
    changed: tuple[str, ...] = ()
    weights: str | None = None
    aa: float | None = None
    aa_images: int | None = None
    aa_ta: float | None = None
    aa_ra: float | None = None
    aa_version: str | None = None
    fast_bound: float | None = None

    @property
    def conditions(self) -> str:
        """The attack, and the changed settings that its description does not show."""
        others = [text for text in self.changed if text.partition(":")[0] not in ATTACK_SETTINGS]
        return "; ".join([self.attack, *others])

    @property
    def counts(self) -> tuple[int, int, int]:
        """Number of images, and how many of them are correct, and robust under PGD."""
        return self.images, round(self.ta * self.images), round(self.ra * self.images)


@dataclass(frozen=True, kw_only=True)
class Concluded(Evaluated):
    """What the job of a folder has measured, and further evaluations in it.

    Attributes:
        others: evaluations with other attacks, images or settings.
    """

    others: tuple[Evaluated, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WeightsResult(Concluded):
    """The result of an evaluation of given weights, which no training of this package belongs to.

    Attributes:
        file: name of the file of the weights.
        data: the test images, such as ``cifar10`` or ``imagenet/val``.
    """

    file: str
    data: str
