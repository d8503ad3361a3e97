"""Certificates of a list of images, computed from counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from typing_extensions import Self

from hpcdat.evaluation.certification.clopper_pearson import Floats, certified_radius


@dataclass(frozen=True)
class Counts:
    """The counts of the samples around one image.

    Attributes:
        image: its position among the test images.
        label: its class.
        top: class A, the most frequent one of the n0 samples.
        count: how many of the n samples are of class A.
    """

    image: int
    label: int
    top: int
    count: int

    def to_json(self) -> dict[str, int]:
        """As a JSON value."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, int]) -> Self:
        """The inverse of :meth:`to_json`."""
        return cls(**value)


@dataclass(frozen=True)
class Certified:
    """The certificates of a list of images at one noise level.

    Attributes:
        sigma: standard deviation of the noise, [0, 1] units.
        n0, n: samples of the selection and of the estimate.
        alpha: upper bound of the probability that a certificate is wrong.
        counts: of the images, in order; those that cannot be read are not among them.
        changed: settings in which the certification differs from that of the run's own job, such as
            ``certification.every: 20``; none if it is the job's.
        weights: hash of the model's weights; None if unknown.
    """

    sigma: float
    n0: int
    n: int
    alpha: float
    counts: Sequence[Counts]
    changed: tuple[str, ...] = ()
    weights: str | None = None

    @property
    def label(self) -> str:
        """The noise level, and the settings that differ from the job's."""
        return "; ".join([f"sigma {self.sigma:g}", *self.changed])

    @property
    def radii(self) -> Floats:
        """Certified l2 radius of each image, (N,); NaN where the classifier abstains."""
        return certified_radius([c.count for c in self.counts], self.n, self.alpha, self.sigma)

    @property
    def correct_radii(self) -> Floats:
        """Certified radii, (N,); -1 where the classifier abstains or is wrong."""
        correct = np.array([c.top == c.label for c in self.counts])
        return np.where(correct & ~np.isnan(self.radii), self.radii, -1.0)

    @property
    def abstained(self) -> int:
        """Number of images for which the classifier abstains."""
        return int(np.isnan(self.radii).sum())

    @property
    def average_radius(self) -> float:
        """Mean certified radius, counting 0 where it abstains or is wrong (ACR; Zhai et al. 2020)."""
        return float(self.correct_radii.clip(min=0).mean())

    def accuracy(self, radius: float) -> float:
        """CA of Table 2, in [0, 1]: images classified correctly and certified to this radius or beyond."""
        return float((self.correct_radii >= radius).mean())
