"""ConAdv's Lemma 1 and Theorem 1 with their own constants, and what they become for LARS and LAMB.

Theorem 1, (11), is proved for gradient steps theta <- theta - eta g (A.3) at eta = min(1 / L,
sqrt(Delta / (L sigma^2 T))):

    1/T sum E||grad L_D||^2
        <= 2 sigma sqrt(L Delta / T) + L_tx^2 / 2 (tau M L_xt / (L mu) + sqrt(lambda / mu))^2

Its proof arrives, with (34) and (35) divided by T eta / 2, at

    2 Delta / (eta T) + 2 L eta sigma^2 + (1 + L eta) L_tx^2 / 4 (eta tau M L_xt / mu + sqrt(lambda / mu))^2

At eta = sqrt(Delta / (L sigma^2 T)) the first two terms are 4 sigma sqrt(L Delta / T), twice what (11) has.
At eta = 1 / L, the rate wherever sigma^2 T < L Delta, the first is 2 L Delta / T, of which (11) has
nothing: with sigma = tau = lambda = 0 it says that the gradient is zero from the start. Both are compared
with the measurement.

No theorem of either paper is about LARS, or about LAMB with stale examples, though the ConAdv paper trains
with LARS. The bounds tested for them are derived here:

- Lemma 1. Its first inequality is about weights only. Its second takes ||theta_t - theta_(t-1)|| <= eta M.
  LARS without momentum moves by at most eta c ||theta||, LAMB by eta c_u sqrt(h).
- LAMB. DAT's Theorem 2, with Lemma 3's bound of the stale gradient's error in place of epsilon.
- LARS without momentum. With the error e_i of the gradient of layer i, and c_l and c_u for the least and the
  largest c ||theta_i||: <grad_i, g_i / ||g_i||> >= ||grad_i|| - 2 ||e_i||, so that DAT's (A55) gives

      1/T sum E sum_i ||grad_i|| <= Delta / (eta c_l T) + 2 kappa E sum_i ||e_i|| + eta c_u kappa ||L||_1 / 2

  where sum_i ||e_i|| <= sqrt(h) (sigma / sqrt(M B) + Lemma 3's bound).

Constants: Delta by Newton's method. L_tt, L_tx = L_xt, mu and L for all weights in a ball and all
perturbations on the way to delta* (``regression.Ball``). M, sigma and lambda are the largest of the run
itself; the sigma that the rate needs beforehand is that of a run at 1 / L without noise, and the bound
takes the larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from convergence.comparison import Comparison, Point, compare
from convergence.descent import MakeOptimizer, Outcome, Seen, Setup, descend
from convergence.regression import Ball, on_the_sphere
from convergence.theorem_2 import DIMENSIONS, ITERATIONS, LAYERS, SEEDS, Lamb, best_rate, first_weights, terms
from hpcdat.optim.lars import LARS


@dataclass(frozen=True)
class Case:
    """The objective with what is known of it beforehand.

    Attributes:
        ball: the problem, and where its constants hold.
        gap: Delta.
        variance: sigma^2 of a single sample.
    """

    ball: Ball
    gap: float
    variance: float

    def rate(self, setup: Setup) -> float:
        """Eta of Theorem 1."""
        smooth, noise = self.ball.l_concurrent, self.variance / setup.samples
        decaying = (self.gap / (smooth * noise * setup.iterations)) ** 0.5 if noise else float("inf")
        return min(1 / smooth, decaying)

    def layerwise_rate(self, setup: Setup) -> float:
        """The eta for LARS and LAMB, whose layers move by eta or less."""
        return best_rate(self.gap, self.ball.smoothness, setup.layers, setup.iterations, c_u=1.0)

    def largest_variance(self, seen: Seen) -> float:
        """sigma^2 of a sample, known beforehand or seen, whichever is larger."""
        return max(self.variance, seen.variance.sum().item())

    def run(self, setup: Setup, optimiser: MakeOptimizer) -> Outcome:
        """With several seeds if there is noise."""
        start = first_weights(SEEDS if setup.batch else 1)
        return descend(self.ball.problem, replace(setup, optimiser=optimiser), start)

    def holds(self, seen: Seen) -> bool:
        """Whether the weights stayed in the ball."""
        return seen.weights <= self.ball.radius


def prepare() -> Case:
    """L_D of ConAdv, half clean and half adversarial."""
    problem = on_the_sphere(samples=128, dimensions=DIMENSIONS, mu=12.0, noise=0.1, clean=0.5)
    ball = Ball(problem, radius=1.0)
    gap = (problem.value(first_weights(1)) - problem.minimum()).item()
    quiet = Setup(gradient_steps(1 / ball.l_concurrent), 200, LAYERS)
    return Case(ball, gap, descend(problem, quiet, first_weights(1)).seen.variance.sum().item())


def gradient_steps(eta: float) -> MakeOptimizer:
    """Theta <- theta - eta g."""
    return partial(torch.optim.SGD, lr=eta)


def plain_lars(eta: float) -> MakeOptimizer:
    """LARS without momentum, and with c = 1: a layer moves by eta ||theta_i||."""
    return partial(LARS, lr=eta, momentum=0.0, trust_coefficient=1.0)


def stale_error(ball: Ball, moved: float, suboptimality: float) -> float:
    """Lemma 3: how far stale, inexact examples turn the gradient.

    Args:
        ball: constants.
        moved: a bound of ||theta_t - theta_(t-tau)||.
        suboptimality: lambda.
    """
    adversarial = 1 - ball.problem.clean  # the 1/2 of (23)
    inexact = (max(suboptimality, 0.0) / ball.concavity) ** 0.5
    return adversarial * ball.l_theta_x * (ball.l_theta_x / ball.concavity * moved + inexact)


def theorem_1(case: Case, setup: Setup, seen: Seen) -> float:
    """The right-hand side of (11)."""
    smooth = case.ball.l_concurrent
    sigma = (case.largest_variance(seen) / setup.samples) ** 0.5
    stale = stale_error(case.ball, setup.delay * seen.used / smooth, seen.suboptimality)
    return 2 * sigma * (smooth * case.gap / setup.iterations) ** 0.5 + 2 * stale**2


def proof_of_theorem_1(case: Case, setup: Setup, seen: Seen, eta: float) -> float:
    """(35) over T eta / 2."""
    smooth, variance = case.ball.l_concurrent, case.largest_variance(seen) / setup.samples
    stale = stale_error(case.ball, eta * setup.delay * seen.used, seen.suboptimality)
    start = 2 * case.gap / (eta * setup.iterations)
    return start + 2 * smooth * eta * variance + (1 + smooth * eta) * stale**2


def gradient_point(case: Case, setup: Setup) -> Point:
    """Gradient steps at the theorem's own rate; the setup's optimiser does not count, here and below."""
    eta = case.rate(setup)
    outcome = case.run(setup, gradient_steps(eta))
    seen = outcome.seen
    return Point(
        outcome.gradient,
        theorem_1(case, setup, seen),
        case.holds(seen),
        outcome.start,
        proof_of_theorem_1(case, setup, seen, eta),
    )


def lamb_point(case: Case, setup: Setup) -> Point:
    """DAT's Theorem 2 with Lemma 3 for epsilon, evenly over the coordinates: ||chi||_1 is largest so."""
    lamb = Lamb(case.layerwise_rate(setup))
    outcome = case.run(setup, lamb)
    moved = setup.delay * lamb.eta * lamb.c_u * setup.layers**0.5
    epsilon = stale_error(case.ball, moved, outcome.seen.suboptimality) ** 2
    inner = torch.full((DIMENSIONS,), epsilon / DIMENSIONS, dtype=torch.float64)
    bound = sum(terms(lamb, setup, outcome.seen, case.gap, case.ball.smoothness, inner).values())
    return Point(outcome.gradient, bound, case.holds(outcome.seen), outcome.start)


def lars_point(case: Case, setup: Setup) -> Point:
    """The bound of LARS."""
    eta = case.layerwise_rate(setup)
    outcome = case.run(setup, plain_lars(eta))
    bound = lars_bound(case, setup, outcome.seen, eta)
    return Point(outcome.layers, bound, case.holds(outcome.seen), outcome.start_layers)


def lars_bound(case: Case, setup: Setup, seen: Seen, eta: float) -> float:
    """The bound of 1/T sum E sum_i ||grad_i|| for LARS without momentum and with c = 1."""
    h, kappa = setup.layers, seen.longest / seen.shortest
    noise = (case.largest_variance(seen) / setup.samples) ** 0.5
    stale = stale_error(case.ball, setup.delay * eta * seen.weights, seen.suboptimality)
    start = case.gap / (eta * seen.shortest * setup.iterations)
    error = 2 * kappa * h**0.5 * (noise + stale)
    return start + error + eta * seen.longest * kappa * h * case.ball.smoothness / 2


def lemma_1(case: Case, delay: int, step: float) -> float:
    """(10), with a bound of the weights' steps: eta M for gradient steps."""
    return case.ball.l_theta_x / case.ball.concavity * delay * step


def lemma_point(name: str, case: Case, setup: Setup) -> Point:
    """The largest move of an optimal example, of any sample and step.

    Args:
        name: of the optimiser: ``gradient``, ``LARS`` or ``LAMB``.
        case: the objective.
        setup: of which tau counts.
    """
    eta = case.rate(setup) if name == "gradient" else case.layerwise_rate(setup)
    make: dict[str, MakeOptimizer] = {
        "gradient": gradient_steps(eta),
        "LARS": plain_lars(eta),
        "LAMB": Lamb(eta),
    }
    seen = case.run(setup, make[name]).seen
    steps = {"gradient": eta * seen.used, "LARS": eta * seen.weights, "LAMB": eta * setup.layers**0.5}
    moved = torch.tensor([seen.moved], dtype=torch.float64)
    return Point(moved, lemma_1(case, setup.delay, steps[name]), case.holds(seen))


At = Callable[[Case, Setup], Point]
"""A run with its bound."""


def measure() -> dict[str, Comparison]:
    """Every sweep."""
    case = prepare()
    stale = Setup(torch.optim.SGD, ITERATIONS, LAYERS, delay=1)
    noisy, short, few = replace(stale, batch=1), replace(stale, iterations=64, delay=0), [1, 2, 4, 8, 16]
    times, long = [1, 4, 16, 64, 256, 1024, 4096], [50, 200, 800, 3200, 12800]

    def along_iterations(point: At, of: str, values: Sequence[int], setup: Setup) -> Comparison:
        return compare(of, "iterations T", values, lambda t: point(case, replace(setup, iterations=int(t))))

    def along_delays(point: At, of: str, values: Sequence[int], setup: Setup) -> Comparison:
        return compare(of, "delay tau", values, lambda tau: point(case, replace(setup, delay=int(tau))))

    square, layers = "mean of ||grad L_D||^2", "mean of sum_i ||grad_i L_D||"
    moved, lemma = "largest ||x*(theta_t) - x*(theta_(t-tau))||", replace(stale, iterations=400, batch=64)
    return {
        "conadv_T": along_iterations(gradient_point, square, times, noisy),
        "conadv_T_without_noise": along_iterations(gradient_point, square, times, stale),
        "conadv_MB": compare(
            square,
            "samples of a step, M B",
            [stale.workers * 4**k for k in range(8)],
            lambda samples: gradient_point(case, replace(short, batch=int(samples) // short.workers)),
        ),
        "conadv_tau": along_delays(gradient_point, square, [0, 1, 2, 4, 8], replace(noisy, batch=64)),
        "conadv_K": compare(
            square,
            "steps of the inner ascent, K",
            [1, 2, 4, 6, 8, 12],
            lambda k: gradient_point(case, replace(noisy, batch=64, delay=0, ascent=int(k))),
        ),
        "conadv_LAMB_T": along_iterations(lamb_point, square, long, stale),
        "conadv_LAMB_tau": along_delays(lamb_point, square, few, stale),
        "conadv_LARS_T": along_iterations(lars_point, layers, long, stale),
        "conadv_LARS_tau": along_delays(lars_point, layers, few, stale),
        **{
            f"lemma_1_{name}": along_delays(partial(lemma_point, name), moved, few, lemma)
            for name in ("gradient", "LARS", "LAMB")
        },
    }
