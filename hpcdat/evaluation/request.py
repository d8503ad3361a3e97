"""The measurements requested of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SweepKind = Literal["plain", "accumulating"]
"""See :class:`~hpcdat.evaluation.sweep.Sweep`."""

FIGURE_3_RADII = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Radii of ``--figure-3``, in multiples of ``evaluation.eps``: 0 to 8 over 255 on ImageNet. The DAT paper's
text does not list those of its Figure 3 (a); these are assumed."""
FIGURE_3_STEPS = (1, 2, 5, 10, 20, 50, 100)
"""Numbers of PGD steps of ``--figure-3``. Those of Figure 3 (b) are not listed either; these are assumed."""


@dataclass(frozen=True)
class EvaluationRequest:
    """Measurements in addition to TA and RA.

    Attributes:
        autoattack: number of images for AutoAttack, the same number of each class; None: no AutoAttack.
        fast_bound: whether to measure the fast bound on all images.
        radii: of a sweep over eps, [0, 1] units, increasing.
        steps: of a sweep over numbers of steps, increasing.
        sweep: kind of both sweeps.
        averaged: measure the averaged weights in place of those that the training ended with.
        gallery: number of images on a page that shows them before and after the attack; None: no page.
    """

    autoattack: int | Literal["all"] | None = None
    fast_bound: bool = False
    radii: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()
    sweep: SweepKind = "plain"
    averaged: bool = False
    gallery: int | None = None
