"""Theorem 1 of DAT, (4), of which only slopes can be tested: it is O(...), without constants.

    1/T sum E||grad Psi||^2 = O(1 / sqrt(T) + sigma / sqrt(M B) + min(d / 4^b, sqrt(d) / 2^b) + epsilon)

Two layers of 32 weights, eq. (3) with the gradient itself as u, c_l = 0 and a rate of 1 / sqrt(T), as the
paper trains; kappa is then infinite, and Theorem 2 does not apply. Every panel varies one term and shows
what it adds to the runs without it. Some constant puts the bound above any finite number of values: nothing
measured here can contradict the theorem; only slopes are compared.

ConAdv's Theorem 1 has constants and is tested with them (``conadv``); the slope of what delay adds is here,
too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convergence.descent import Outcome, Setup, descend
from convergence.regression import gaussian
from hpcdat.optim.lars import LARS

D, SAMPLES, MU, NOISE, SEEDS = 64, 512, 3.0, 1.0, 6
LAYERS = 2

Panel = dict[str, list[float]]
"""``x``: what was varied; ``y``: what came out, with its standard ``error``."""

BOUNDS: dict[str, tuple[str, str, Callable[[NDArray[np.float64]], NDArray[np.float64]]]] = {
    "T": ("iterations T", "mean ||grad Psi||^2", lambda x: x**-0.5),
    "M B": ("samples of a step, M B", "added", lambda x: x**-0.5),
    "b": ("bits b", "added", lambda x: np.minimum(D / 4.0**x, D**0.5 / 2.0**x)),
    "epsilon": ("inner gradient, epsilon", "added", lambda x: x),
    "tau": ("delay tau (ConAdv)", "added", lambda x: x**2),
}
"""Of each panel both axes, and how the bound depends on what was varied."""


def run(setup: Setup) -> Outcome:
    """Algorithm 1, each seed with data of its own. LARS with c = 1 and no momentum is eq. (3) with u = g."""
    problem = gaussian(SEEDS, SAMPLES, D, MU, NOISE)
    start = torch.randn(SEEDS, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    optimiser = partial(LARS, lr=setup.iterations**-0.5, momentum=0.0, trust_coefficient=1.0)
    return descend(problem, replace(setup, optimiser=optimiser), 0.5 * start / D**0.5)


def vary(values: Sequence[int], change: Callable[[int], Setup]) -> list[Outcome]:
    """One outcome a value."""
    return [run(change(value)) for value in values]


def panel(x: Sequence[float], y: Sequence[Tensor]) -> Panel:
    """Mean and standard error over the seeds of what came out."""
    errors = [(of.std() / SEEDS**0.5).item() for of in y]
    return {"x": list(x), "y": [of.mean().item() for of in y], "error": errors}


def measure() -> dict[str, Panel]:
    """Every panel: what was varied and what came out.

    Except in the first, it is what a term adds to the runs without it, with the same seeds. The exact
    gradient of all samples has no noise; bits and delays are measured with batch noise, without which the
    quantised gradient soon vanishes and the weights oscillate with a period of two steps.
    """
    exact = Setup(torch.optim.SGD, 400, LAYERS)
    noisy = replace(exact, batch=64)
    without, without_but_noise = run(exact).gradient, run(noisy).gradient
    times, batches = [25, 50, 100, 200, 400, 800], [1, 2, 4, 8, 16, 32, 64]
    bits, steps, delays = [2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6], [1, 2, 4, 8, 16]
    inexact = vary(steps, lambda k: replace(exact, ascent=k))
    stale = vary(delays, lambda tau: replace(noisy, delay=tau))
    return {
        "T": panel(times, [o.gradient for o in vary(times, lambda t: replace(exact, iterations=t))]),
        "M B": panel(
            [exact.workers * b for b in batches],
            [o.gradient - without for o in vary(batches, lambda b: replace(exact, batch=b))],
        ),
        "b": panel(
            bits, [o.gradient - without_but_noise for o in vary(bits, lambda b: replace(noisy, bits=b))]
        ),
        "epsilon": panel([o.slack.mean().item() for o in inexact], [o.gradient - without for o in inexact]),
        "tau": panel(delays, [o.gradient - without_but_noise for o in stale]),
    }


def certain(panel: Panel) -> NDArray[np.bool_]:
    """Which values are twice their standard error or more above zero; the others lie in the noise."""
    return np.array(panel["y"]) > 2 * np.array(panel["error"])


def slopes(panels: dict[str, Panel]) -> dict[str, float]:
    """What was fitted to the values that are certain: of log y over log x, of b of log2 y over b."""
    found = {}
    for name, panel in panels.items():
        x, y = (np.array(panel[key])[certain(panel)] for key in ("x", "y"))
        if len(x) > 1:
            slope = np.polyfit(x if name == "b" else np.log2(x), np.log2(y), 1)[0]
            found[f"slope_{name.replace(' ', '')}"] = float(slope)
    return found
