"""Theorem 2 of DAT, (A25), with its own constants.

    1/T sum E||grad Psi||^2 <= Delta / (eta c_l C T) + 2 (epsilon + (1 + lambda) sigma^2 / (M B)) + 4 delta^2
                               + kappa sqrt(3) / C ||chi||_1 + eta c_u kappa ||L||_1 / (2 C),
    C = sqrt(h (1 - beta_2) / (G^2 d)) / 4,  kappa = c_u / c_l,
    chi_ij = sqrt((1 + lambda) sigma_ij^2 / (M B) + epsilon_ij + delta_ij^2)

for LAMB with beta_1 = 0, as its proof has it, and lambda = 0. Where each constant comes from:

- Delta: Psi(theta_1) less the minimum, by Newton's method (Psi is convex here).
- L_i: ``Ball.smoothness`` for each layer, an upper bound for ||theta|| <= R. A run that leaves the ball
  does not count.
- G, sigma_ij, epsilon_ij, delta_ij: the largest of the run itself (``descent.Seen``), over all steps, seeds
  and workers. The theorem's hold for every possible run and are no smaller, so that the test is the
  stricter one.
- h, d, beta_2, c_l, c_u, eta, M, B: as set. eta = sqrt(2 Delta / (c_u^2 ||L||_1 T)) makes the two terms
  that depend on it least, and is O(1 / sqrt(T)), as Corollary 1 asks.

What is tested is (A25) as printed. Its factor 2 of epsilon + sigma^2 / (M B) is 4 in (A77), from which it
follows; the term in chi is larger than the difference. With lambda > 0, (A50) leaves out the covariance of
the two gradients; here lambda is 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convergence.comparison import Comparison, Point, compare
from convergence.descent import Seen, Setup, descend
from convergence.regression import Ball, Regression, on_the_sphere
from hpcdat.optim.lamb import LAMB

DIMENSIONS, LAYERS, SEEDS, ITERATIONS = 8, 4, 4, 3200


@dataclass(frozen=True)
class Lamb:
    """LAMB as the theorem has it.

    Attributes:
        eta: the rate.
        c_l, c_u: clip of a layer's norm.
        beta_2: decay of the second moment.
    """

    eta: float = 0.0
    c_l: float = 1.0
    c_u: float = 1.0
    beta_2: float = 0.1

    def __call__(self, parameters: list[Tensor]) -> LAMB:
        """The package's optimiser."""
        return LAMB(parameters, lr=self.eta, betas=(0.0, self.beta_2), c_l=self.c_l, c_u=self.c_u)


def problem_and_ball() -> tuple[Regression, Ball]:
    """Psi of DAT."""
    problem = on_the_sphere(samples=128, dimensions=DIMENSIONS, mu=6.0, noise=0.1)
    return problem, Ball(problem, radius=1.0)


def first_weights(seeds: int) -> Tensor:
    """theta_1 of norm 0.8, the same for all seeds: (S, d)."""
    theta = torch.randn(DIMENSIONS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (0.8 * theta / theta.norm()).expand(seeds, -1)


def best_rate(gap: float, smoothness: float, layers: int, iterations: int, c_u: float) -> float:
    """The rate that makes the sum of the bound's first and last term least.

    Args:
        gap: Delta.
        smoothness: L_i of each layer.
        layers: h.
        iterations: T.
        c_u: of LALR.
    """
    return float((2 * gap / (c_u**2 * layers * smoothness * iterations)) ** 0.5)


def factor(lamb: Lamb, setup: Setup, seen: Seen) -> float:
    """C of (A25). G includes LAMB's zeta, which the proof leaves out: sqrt(v + zeta) <= G."""
    g_squared, dimensions = seen.sent**2 + 1e-12, len(seen.variance)
    return float((setup.layers * (1 - lamb.beta_2) / (g_squared * dimensions)) ** 0.5 / 4)


def terms(
    lamb: Lamb, setup: Setup, seen: Seen, gap: float, smoothness: float, inner: Tensor | None = None
) -> dict[str, float]:
    """The five terms of (A25).

    Args:
        lamb, setup: the run.
        seen: what it showed.
        gap: Delta.
        smoothness: L_i of each layer.
        inner: epsilon_ij, (d,), if not what the run showed.
    """
    inner = seen.inner if inner is None else inner
    c = factor(lamb, setup, seen)
    kappa = lamb.c_u / lamb.c_l
    variance = seen.variance / setup.samples
    chi = (variance + inner + seen.rounding).sqrt().sum().item()
    return {
        "start": gap / (lamb.eta * lamb.c_l * c * setup.iterations),
        "epsilon, sigma": 2 * (inner.sum() + variance.sum()).item(),
        "delta": 4 * seen.rounding.sum().item(),
        "chi": kappa * 3**0.5 / c * chi,
        "L": lamb.eta * lamb.c_u * kappa * setup.layers * smoothness / (2 * c),
    }


def point(setup: Setup, lamb: Lamb) -> Point:
    """A run of Psi, and (A25) of it.

    Args:
        setup: the run; its optimiser does not count.
        lamb: the optimiser, but for eta, which ``best_rate`` sets.
    """
    problem, ball = problem_and_ball()
    gap = (problem.value(first_weights(1)) - problem.minimum()).item()
    lamb = replace(lamb, eta=best_rate(gap, ball.smoothness, setup.layers, setup.iterations, lamb.c_u))
    random = setup.batch or setup.bits < 32
    outcome = descend(problem, replace(setup, optimiser=lamb), first_weights(SEEDS if random else 1))
    bound = sum(terms(lamb, setup, outcome.seen, gap, ball.smoothness).values())
    return Point(outcome.gradient, bound, outcome.seen.weights <= ball.radius, outcome.start)


SQUARE = "mean of ||grad Psi||^2"


def measure() -> dict[str, Comparison]:
    """Every sweep."""
    base, lamb = Setup(torch.optim.SGD, ITERATIONS, LAYERS), Lamb()
    times = [50, 200, 800, 3200, 12800]

    def iterations(kappa: float) -> Comparison:
        """With all samples, exact maximisers and no quantisation: the first and the last term alone."""
        clipped = replace(lamb, c_l=lamb.c_u / kappa)
        return compare(
            SQUARE, "iterations T", times, lambda t: point(replace(base, iterations=int(t)), clipped)
        )

    return {
        "theorem_2_T": iterations(1),
        "theorem_2_T_kappa_4": iterations(4),
        "theorem_2_MB": compare(
            SQUARE,
            "samples of a step, M B",
            [base.workers * 16**k for k in range(1, 7)],
            lambda samples: point(replace(base, batch=int(samples) // base.workers), lamb),
        ),
        "theorem_2_b": compare(
            SQUARE, "bits b", [3, 4, 5, 6, 7, 8, 16], lambda b: point(replace(base, bits=int(b)), lamb)
        ),
        "theorem_2_K": compare(
            SQUARE,
            "steps of the inner ascent, K",
            [1, 2, 4, 6, 8, 12],
            lambda k: point(replace(base, ascent=int(k)), lamb),
        ),
        "theorem_2_beta_2": compare(
            SQUARE,
            "beta_2",
            [0.01, 0.1, 0.5, 0.9, 0.99, 0.999],
            lambda beta: point(base, replace(lamb, beta_2=beta)),
        ),
    }
