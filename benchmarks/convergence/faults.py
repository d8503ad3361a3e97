"""Deliberate faults, to check that the bounds detect them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from convergence import conadv, theorem_2
from convergence.comparison import Point
from convergence.descent import Setup
from convergence.theorem_2 import ITERATIONS, LAYERS, Lamb


def without_a_layer(g: Tensor) -> Tensor:
    """The gradient (S, d) with nothing for the first layer."""
    g = g.clone()
    g[:, : g.shape[1] // LAYERS] = 0
    return g


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "no gradient arrives": torch.zeros_like,
    "the gradient of one layer of four is lost": without_a_layer,
    "the sign is wrong": torch.neg,
}
"""What a broken program would do to the gradient before the optimiser gets it."""

Program = Callable[[Callable[[Tensor], Tensor] | None], Point]
"""A run with a fault, or with none, and its bound."""


def programs(iterations: int = ITERATIONS) -> dict[str, Program]:
    """One for each kind of bound."""
    case, exact = conadv.prepare(), Setup(torch.optim.SGD, iterations, LAYERS)
    noisy, stale = replace(exact, batch=64), replace(exact, delay=1)
    return {
        "DAT, Theorem 2 (LAMB)": lambda fault: theorem_2.point(replace(exact, fault=fault), Lamb()),
        "ConAdv, Theorem 1, tau = 0, M B = 256": lambda fault: conadv.gradient_point(
            case, replace(noisy, fault=fault)
        ),
        "LARS, tau = 1 (derived here)": lambda fault: conadv.lars_point(case, replace(stale, fault=fault)),
    }


def verdict(point: Point) -> str:
    """What the comparison says of one run, as a Comparison does."""
    if not point.inside:
        return "the weights leave the ball"
    return "above the bound" if point.measured.mean() > point.bound else "below the bound"


def measure() -> list[dict[str, str | float]]:
    """Every program with every fault."""
    return [
        {
            "bound of": name,
            "fault": fault,
            "measured": (point := program(change)).measured.mean().item(),
            "bound": point.bound,
            "verdict": verdict(point),
        }
        for name, program in programs().items()
        for fault, change in FAULTS.items()
    ]
