"""The terms of the papers' convergence bounds, on a problem where they can be computed.

``python benchmarks/theory.py [--out FOLDER] [--json PATH]``: a few minutes on one core, with a plot.

The problem is a robust regression whose regulariser is strongly concave in the perturbation, as both papers
assume (DAT, (A2); ConAdv, Assumption 2):

    phi(theta, delta; x, y) = (theta^T (x + delta) - y)^2 / 2 - mu / 2 ||delta||^2,  mu > ||theta||^2

With r = theta^T x - y the best perturbation is delta* = r theta / (mu - ||theta||^2), and grad Psi is exact.
M workers take B samples each, ascend in delta for K steps, quantise to b bits by (A5) and (A6), and update
two layers by eq. (3) with a rate of 1 / sqrt(T).

DAT, Theorem 1: the mean of ||grad Psi||^2 over T iterations is O(1/sqrt(T) + sigma/sqrt(MB) +
min(d/4^b, sqrt(d)/2^b) + epsilon). Every panel varies one term and keeps the others small; the bound's slope
is drawn beside. It is an upper bound: what falls faster does not contradict it.

ConAdv, Lemma 1: ||x*(theta_t) - x*(theta_(t - tau))|| <= L/mu ||theta_t - theta_(t - tau)||, and the latter
grows with the rate times tau; and the extra ||grad||^2 that stale examples cost.

Ratios: ``slope_T``, ``slope_MB``, ``slope_b`` (of log2 of the excess, a bit), ``slope_epsilon``,
``slope_tau``: fitted to what was measured; the bound's are -0.5, -0.5, -1 to -2, 1, 1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor

from hpcdat.cluster.workers import Workers
from hpcdat.environment import describe_environment
from hpcdat.exchange.protocols import Draw
from hpcdat.exchange.quantizer import Quantizer
from hpcdat.optim.lamb import trust_ratios

D, SAMPLES, MU, NOISE, SEEDS = 64, 4096, 16.0, 0.5, 5
LAYERS = 2


@dataclass(frozen=True)
class Setup:
    """What a run varies.

    Attributes:
        iterations: T.
        workers, batch: M and B; batch 0 takes all samples, whose gradient has no noise.
        bits: b; 32 does not quantise.
        ascent: K, steps of the inner maximisation; 0 takes the exact one.
        delay: tau of the weights that the perturbations are made with.
        rate: eta is this over sqrt(T).
    """

    iterations: int = 400
    workers: int = 4
    batch: int = 0
    bits: int = 32
    ascent: int = 0
    delay: int = 0
    rate: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """Means over the iterations.

    Attributes:
        gradient: ||grad Psi(theta_t)||^2.
        inner: norm of the inner gradient at the perturbations used: epsilon.
        moved: ||x*(theta_t) - x*(theta_(t - tau))||.
        lemma: L/mu ||theta_t - theta_(t - tau)||, with L estimated along the way.
    """

    gradient: float
    inner: float
    moved: float
    lemma: float


def residual(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """R of each sample."""
    return x @ theta - y


def best_perturbation(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """delta* of each sample."""
    return residual(theta, x, y)[:, None] * theta / (MU - theta @ theta)


def inner_gradient(theta: Tensor, delta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of phi with respect to delta."""
    return residual(theta, x + delta, y)[:, None] * theta - MU * delta


def outer_gradient(theta: Tensor, delta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the mean of phi with respect to theta, by Danskin's theorem exact at delta*."""
    return (residual(theta, x + delta, y)[:, None] * (x + delta)).mean(0)


def quantised(g: Tensor, bits: int, draw: Draw, rank: int) -> Tensor:
    """A worker's gradient as the others receive it."""
    quantizer = Quantizer(bits, "l2", None)
    norms = quantizer.norms(g[None])
    return quantizer.decode(quantizer.encode(g[None], norms, draw.key("worker", rank)), norms)[0]


def run(setup: Setup, seed: int) -> Outcome:
    """Algorithm 1 on the problem."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(D, generator=generator)
    truth /= truth.norm()
    x = torch.randn(SAMPLES, D, generator=generator)
    y = x @ truth + NOISE * torch.randn(SAMPLES, generator=generator)
    theta = 0.5 * torch.randn(D, generator=generator) / D**0.5
    eta = setup.rate / setup.iterations**0.5
    history, sums = [theta], np.zeros(4)
    for t in range(setup.iterations):
        old = history[max(0, len(history) - 1 - setup.delay)]
        exact = outer_gradient(theta, best_perturbation(theta, x, y), x, y)
        moved = (best_perturbation(theta, x, y) - best_perturbation(old, x, y)).norm(dim=1).mean()
        # The mixed derivative of phi at delta*, whose norm is L of the lemma, of the mean sample.
        slope = ((x.norm(dim=1) + residual(theta, x, y).abs()).mean() * MU / (MU - theta @ theta)).item()
        total, inner = torch.zeros(D), 0.0
        for worker in range(setup.workers):
            some = torch.arange(SAMPLES)
            if setup.batch:
                some = torch.randint(SAMPLES, (setup.batch,), generator=generator)
            delta = best_perturbation(old, x[some], y[some])
            if setup.ascent:
                delta = torch.zeros_like(delta)
                for _ in range(setup.ascent):
                    delta = delta + inner_gradient(old, delta, x[some], y[some]) / (2 * MU)
            inner += inner_gradient(old, delta, x[some], y[some]).norm(dim=1).mean().item()
            g = outer_gradient(theta, delta, x[some], y[some])
            if setup.bits < 32:
                g = quantised(g, setup.bits, Draw(seed, 0, t, 0, g.device), worker)
            total += g / setup.workers
        sums += [
            exact.square().sum().item(),
            inner / setup.workers,
            moved.item(),
            slope / MU * (theta - old).norm().item(),
        ]
        layers, u = list(theta.chunk(LAYERS)), list(total.chunk(LAYERS))
        ratios = trust_ratios(layers, u, 0.0, 10.0)
        theta = torch.cat([w - eta * r * v for w, r, v in zip(layers, ratios, u, strict=True)])
        history = [*history[-setup.delay :], theta] if setup.delay else [theta]
    return Outcome(*(sums / setup.iterations))


def mean(setup: Setup) -> Outcome:
    """Over the seeds."""
    outcomes = [run(setup, seed) for seed in range(SEEDS)]
    return Outcome(
        *(float(np.mean([getattr(o, name) for o in outcomes])) for name in Outcome.__annotations__)
    )


def vary(values: Sequence[int], change: Callable[[int], Setup]) -> list[Outcome]:
    """One outcome a value."""
    return [mean(change(value)) for value in values]


def fitted(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of log y over log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def measure() -> dict[str, dict[str, list[float]]]:
    """Every panel: what was varied, what came out, and what the bound's slope makes of the first value."""
    base, panels = Setup(), {}
    times = [25, 50, 100, 200, 400, 800]
    panels["T"] = {"x": times, "y": [o.gradient for o in vary(times, lambda t: replace(base, iterations=t))]}
    floor = mean(base).gradient
    # All that follows is what a term adds to the run without it.
    batches = [1, 2, 4, 8, 16, 32, 64]
    added = [o.gradient - floor for o in vary(batches, lambda b: replace(base, batch=b))]
    panels["M B"] = {"x": [base.workers * b for b in batches], "y": added}
    bits = [2, 3, 4, 5, 6, 7, 8]
    panels["b"] = {
        "x": bits,
        "y": [o.gradient - floor for o in vary(bits, lambda b: replace(base, bits=b))],
    }
    steps = [1, 2, 3, 4, 5, 6]
    outcomes = vary(steps, lambda k: replace(base, ascent=k))
    panels["epsilon"] = {
        "x": [o.inner for o in outcomes],
        "y": [abs(o.gradient - floor) for o in outcomes],
    }
    delays = [1, 2, 4, 8, 16]
    stale = vary(delays, lambda tau: replace(base, delay=tau))
    panels["tau"] = {
        "x": delays,
        "y": [o.moved for o in stale],
        "lemma": [o.lemma for o in stale],
        "gradient": [o.gradient - floor for o in stale],
    }
    return panels


def slopes(panels: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """What was fitted."""
    positive = {
        name: [(x, y) for x, y in zip(panel["x"], panel["y"], strict=True) if y > 0]
        for name, panel in panels.items()
    }
    found = {
        f"slope_{key}": fitted(*zip(*positive[name], strict=True))
        for key, name in {"T": "T", "MB": "M B", "epsilon": "epsilon", "tau": "tau"}.items()
    }
    x, y = zip(*positive["b"], strict=True)
    return found | {"slope_b": float(np.polyfit(x, np.log2(y), 1)[0])}


BOUNDS = {
    "T": ("iterations T", "mean ||grad Psi||^2", lambda x: x**-0.5),
    "M B": ("samples of a step, M B", "added", lambda x: x**-0.5),
    "b": ("bits b", "added", lambda x: np.minimum(D / 4.0**x, D**0.5 / 2.0**x)),
    "epsilon": ("inner gradient, epsilon", "added", lambda x: x),
    "tau": ("delay tau", "||x*(theta_t) - x*(theta_(t-tau))||", lambda x: x),
}


def draw(panels: dict[str, dict[str, list[float]]], file: Path) -> None:
    """A panel for each term, with the bound's slope through the first point."""
    figure = Figure(figsize=(17, 3.6), layout="constrained")
    for number, (name, (label, what, bound)) in enumerate(BOUNDS.items(), start=1):
        axes = figure.add_subplot(1, len(BOUNDS), number)
        x, y = np.array(panels[name]["x"], float), np.array(panels[name]["y"])
        axes.plot(x, y, "o-", color="#1f6fb2", label="measured")
        axes.plot(x, y[0] * bound(x) / bound(x[0]), "--", color="#c9a15a", label="slope of the bound")
        if "lemma" in panels[name]:
            axes.plot(x, panels[name]["lemma"], ":", color="#777777", label="Lemma 1")
        axes.set_yscale("log")
        if name != "b":
            axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel(what)
        axes.legend(fontsize=8)
    figure.savefig(file)


def main() -> None:
    """Measure, print the tables, draw, write the JSON."""
    parser = argparse.ArgumentParser(description="the terms of the convergence bounds, one by one")
    parser.add_argument("--out", type=Path, default=Path("runs/theory"), help="folder of the plot")
    parser.add_argument("--json", type=Path, help="write environment, values and ratios here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    panels = measure()
    for name, panel in panels.items():
        label, what, _ = BOUNDS[name]
        columns = {label: panel["x"], what: panel["y"]}
        columns |= {key: panel[key] for key in ("lemma", "gradient") if key in panel}
        print(tabulate(columns, headers="keys", tablefmt="github", floatfmt=".4g") + "\n")
    ratios = slopes(panels)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(panels, arguments.out / "bounds.svg")
    draw(panels, arguments.out / "bounds.png")
    print(f"plot: {arguments.out / 'bounds.svg'}")
    if arguments.json:
        environment = describe_environment(Workers(), torch.device("cpu"))
        report = {"environment": environment, "panels": panels, "ratios": ratios}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
