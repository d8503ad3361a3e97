"""The measurements requested of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EvaluationRequest:
    """Measurements in addition to TA and RA.

    Attributes:
        autoattack: number of images for AutoAttack, the same number of each class; None: no AutoAttack.
        radii: of a sweep over eps, [0, 1] units, increasing.
        steps: of a sweep over numbers of steps, increasing.
    """

    autoattack: int | Literal["all"] | None = None
    radii: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()
