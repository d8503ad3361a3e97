"""The threat models of leaderboards, by name.

RobustBench (Croce et al. 2021) measures AutoAttack's standard version on all 10,000 test images of CIFAR-10
(linf with eps 8/255, l2 with eps 0.5) and CIFAR-100 (linf with eps 8/255), and on a fixed list of 5,000
validation images of ImageNet (linf with eps 4/255).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hpcdat.config.sections import Norm

Preset = Literal["none", "robustbench-linf", "robustbench-l2", "robustbench-imagenet-linf"]


@dataclass(frozen=True)
class ThreatModel:
    """The threat model of a leaderboard.

    Attributes:
        norm, eps: of the ball; eps in [0, 1] units.
        images: number of images that the leaderboard evaluates.
        sources: values of ``data.source`` whose test images, in their own order, are the leaderboard's.
        name: of the data set, for messages.
    """

    norm: Norm
    eps: float
    images: int
    sources: tuple[str, ...]
    name: str


PRESETS: dict[str, ThreatModel] = {
    "robustbench-linf": ThreatModel("linf", 8 / 255, 10_000, ("cifar10", "cifar100"), "CIFAR"),
    "robustbench-l2": ThreatModel("l2", 0.5, 10_000, ("cifar10",), "CIFAR-10"),
    "robustbench-imagenet-linf": ThreatModel("linf", 4 / 255, 5_000, (), "ImageNet"),
}
"""By the values of ``evaluation.preset``, except ``none``."""

OTHER_SOURCES = ("digits", "cifar10", "cifar100")
"""Data sets of which it is known whether they are a leaderboard's; others may be."""
