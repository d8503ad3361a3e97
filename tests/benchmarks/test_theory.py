"""What benchmarks/theory.py takes for exact, its constants, and that a violation would be seen."""

from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tests.conftest import CHECKOUT

MODULES = ("comparison", "conadv", "descent", "faults", "figures", "regression", "slopes", "theorem_2")


@pytest.fixture(scope="module")
def theory():
    """The modules of benchmarks/convergence."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CHECKOUT / "benchmarks")
        yield SimpleNamespace(**{name: import_module(f"convergence.{name}") for name in MODULES})


@pytest.fixture(params=[0.0, 0.5])
def problem(theory, request):
    """Two data sets of six samples, for DAT and for ConAdv."""
    return replace(theory.regression.gaussian(2, 6, 5, mu=3.0, noise=1.0), clean=request.param)


@pytest.fixture
def theta():
    theta = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return theta / theta.norm(dim=1, keepdim=True)


def phi(problem, theta, delta):
    """Of each sample, as the module's docstring defines it."""
    shifted = (theta[:, None] * (problem.x + delta)).sum(2) - problem.y
    return shifted.square() / 2 - problem.mu / 2 * delta.square().sum(2)


def objective(problem, theta, delta):
    """Of each sample."""
    clean = phi(problem, theta, torch.zeros_like(delta))
    return problem.clean * clean + (1 - problem.clean) * phi(problem, theta, delta)


def test_the_best_perturbation_is_the_maximum(problem, theta):
    best = problem.best(theta).requires_grad_()
    (slope,) = torch.autograd.grad(phi(problem, theta, best).sum(), best)
    assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)
    other = best + 0.1 * torch.randn_like(best)
    assert (phi(problem, theta, other) < phi(problem, theta, best)).all()
    (slope,) = torch.autograd.grad(phi(problem, theta, other).sum(), other)
    assert_close(problem.inner_gradient(theta, other), slope)


def test_ascent_reaches_the_maximum_from_below(problem, theta):
    best = problem.best(theta)
    norms = [problem.ascended(theta, steps).norm(dim=2) for steps in (0, 1, 5, 200)]
    assert all((lower <= higher).all() for lower, higher in pairwise(norms))
    assert_close(problem.ascended(theta, 200), best)


def test_gradients_are_those_of_the_value_through_the_maximum(problem, theta):
    """The maximum's own derivative, which Danskin's theorem leaves out, is part of what autograd takes."""
    theta.requires_grad_()
    values = objective(problem, theta, problem.best(theta))
    assert_close(problem.value(theta), values.mean(1))
    per_sample = [torch.autograd.grad(v.sum(), theta, retain_graph=True)[0] for v in values.T]
    assert_close(problem.sample_gradients(theta, problem.best(theta)), torch.stack(per_sample, 1))
    (expected,) = torch.autograd.grad(problem.value(theta).sum(), theta)
    assert_close(problem.gradient(theta), expected)


def test_sample_gradients_leave_the_perturbation_fixed(problem, theta):
    theta.requires_grad_()
    delta = torch.randn(2, 6, 5, dtype=torch.float64)
    (expected,) = torch.autograd.grad(objective(problem, theta, delta).mean(1).sum(), theta)
    assert_close(problem.sample_gradients(theta, delta).mean(1), expected)


@pytest.fixture(scope="module", params=[0.0, 0.5])
def ball(theory, request):
    problem = theory.regression.on_the_sphere(16, 4, mu=6.0, noise=0.1, clean=request.param)
    return theory.regression.Ball(problem, radius=1.0)


def test_the_hessian_is_the_gradients_derivative(ball):
    theta = torch.tensor([0.5, -0.3, 0.2, 0.4], dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda at: ball.problem.gradient(at[None])[0], theta)
    assert_close(ball.problem.hessian(theta), expected)


def test_nothing_lies_below_the_minimum(ball):
    least = ball.problem.minimum()
    theta = torch.zeros(1, 4, dtype=torch.float64)
    for _ in range(3000):
        theta = theta - ball.problem.gradient(theta) / ball.smoothness
    assert ball.problem.value(theta).item() == pytest.approx(least, rel=1e-12)
    assert ball.problem.gradient(theta).norm() < 1e-8


def inside(radius, numbers, share):
    """Weights in the ball, on its surface for a share of one: (1, d)."""
    direction = torch.tensor([numbers], dtype=torch.float64)
    return radius * share * direction / direction.norm().clamp(min=1e-9)


WEIGHTS = st.lists(st.floats(-1, 1), min_size=4, max_size=4)
SHARE = st.one_of(st.just(1.0), st.floats(0, 1))
POINT = st.tuples(WEIGHTS, SHARE)


@given(POINT, POINT)
def test_smoothness_bounds_the_hessian_and_the_descent_of_all_layers_at_once(ball, one, other):
    """(A54), with the same L_i for every layer."""
    problem, theta, moved = ball.problem, inside(ball.radius, *one), inside(ball.radius, *other)
    assert torch.linalg.eigvalsh(problem.hessian(theta[0]))[-1] <= ball.smoothness
    step = moved - theta
    most = (
        problem.value(theta)
        + (problem.gradient(theta) * step).sum()
        + ball.smoothness / 2 * step.square().sum()
    )
    assert problem.value(moved) <= most + 1e-12


@given(POINT, POINT, POINT)
def test_assumption_1_of_conadv_holds_with_the_constants(ball, one, other, third):
    """Each of its inequalities, over perturbations that maximise at some weights of the ball, or none."""
    problem = ball.problem
    theta, moved, elsewhere = (inside(ball.radius, *point) for point in (one, other, third))
    by_weights, floor = (theta - moved).norm(), 1e-12
    robust = replace(problem, clean=0.0)
    for delta in (problem.best(elsewhere), torch.zeros_like(problem.x)):
        assert (problem.x + delta).norm(dim=2).max() <= ball.reach.max() + floor
        inner = problem.inner_gradient(theta, delta) - problem.inner_gradient(moved, delta)
        assert inner.norm(dim=2).max() <= ball.l_theta_x * by_weights + floor
        outer = robust.sample_gradients(theta, delta) - robust.sample_gradients(moved, delta)
        assert outer.norm(dim=2).max() <= ball.l_theta_theta * by_weights + floor
        turned = robust.sample_gradients(theta, delta) - robust.sample_gradients(theta, problem.best(moved))
        apart = (delta - problem.best(moved)).norm(dim=2)
        assert (turned.norm(dim=2) <= ball.l_theta_x * apart + floor).all()


@given(POINT, POINT)
def test_lemmas_1_and_2_of_conadv_hold_with_the_constants(ball, one, other):
    problem, theta, moved = ball.problem, inside(ball.radius, *one), inside(ball.radius, *other)
    far = (theta - moved).norm()
    apart = (problem.best(theta) - problem.best(moved)).norm(dim=2).max()
    assert apart <= ball.l_theta_x / ball.concavity * far + 1e-12
    if problem.clean:
        turned = (problem.gradient(theta) - problem.gradient(moved)).norm()
        assert turned <= ball.l_concurrent * far + 1e-12


@given(POINT, POINT, st.integers(0, 8))
def test_lemma_3_of_conadv_bounds_what_stale_and_inexact_examples_do(theory, ball, one, other, steps):
    problem, theta, old = ball.problem, inside(ball.radius, *one), inside(ball.radius, *other)
    used = problem.ascended(old, steps)
    off = (problem.best(old) - used) * problem.inner_gradient(old, used)
    exact = problem.sample_gradients(theta, problem.best(theta)).mean(1)
    turned = (problem.sample_gradients(theta, used).mean(1) - exact).norm()
    bound = theory.conadv.stale_error(ball, (theta - old).norm().item(), off.sum(2).max().item())
    assert turned <= bound + 1e-12


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_variance_of_rounding_is_that_of_the_quantizer(theory, bits):
    g = torch.randn(1, 1, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    many = theory.descent.quantised(g.expand(-1, 20000, -1), bits, step=0)[0]
    expected = theory.descent.rounding_variance(g, bits)[0, 0]
    assert_close(many.mean(0), g[0, 0], rtol=0, atol=4 * float(expected.max() / 20000) ** 0.5)
    assert_close(many.var(0), expected, rtol=0.1, atol=1e-9)
    assert not theory.descent.rounding_variance(g, 32).any()
    assert not theory.descent.rounding_variance(0 * g, bits).any()


def lamb_run(theory, **changes):
    """A short run of the problem of Theorem 2; the problem, its setup and outcome."""
    problem, _ = theory.theorem_2.problem_and_ball()
    setup = theory.descent.Setup(theory.theorem_2.Lamb(0.01), 20, theory.theorem_2.LAYERS, **changes)
    return problem, setup, theory.descent.descend(problem, setup, theory.theorem_2.first_weights(2))


def test_a_run_is_eq_3_step_by_step(theory):
    """LAMB with beta_1 = 0 by hand, c_l = c_u = 1, on stale perturbations."""
    problem, _, outcome = lamb_run(theory, delay=2)
    thetas, squares, v = [theory.theorem_2.first_weights(1)], [], 0.0
    for t in range(1, 21):
        theta, old = thetas[-1], thetas[max(0, len(thetas) - 3)]
        squares.append(problem.gradient(theta).square().sum())
        g = problem.sample_gradients(theta, problem.best(old)).mean(1)
        v = 0.1 * v + 0.9 * g.square()
        u = (g / (v / (1 - 0.1**t)).sqrt()).view(4, 2)
        thetas.append(theta - 0.01 * (u / u.norm(dim=1, keepdim=True)).view(1, 8))
    assert_close(outcome.gradient, torch.stack(squares).mean().expand(2))
    assert outcome.start == pytest.approx(squares[0].item())
    assert outcome.seen.weights == pytest.approx(max(theta.norm().item() for theta in thetas[:-1]))


def test_a_run_keeps_the_constants_of_every_source_of_error(theory):
    _, _, exact = lamb_run(theory)
    assert not exact.seen.inner.any() and not exact.seen.rounding.any()
    assert exact.seen.moved == 0 and exact.seen.suboptimality == pytest.approx(0, abs=1e-12)
    _, _, noisy = lamb_run(theory, batch=2)
    assert (noisy.gradient[0] != noisy.gradient[1]) and noisy.seen.sent > exact.seen.sent
    _, _, coarse = lamb_run(theory, bits=4)
    assert coarse.seen.rounding.all()
    _, _, inexact = lamb_run(theory, ascent=1)
    assert inexact.seen.inner.all() and inexact.seen.suboptimality > 0
    _, _, stale = lamb_run(theory, delay=3)
    assert stale.seen.inner.all() and stale.seen.moved > 0 and stale.seen.suboptimality < 1e-12


def test_batches_are_unbiased_and_of_the_stated_variance(theory):
    gradients = torch.randn(1, 10, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    setup = theory.descent.Setup(torch.optim.SGD, 1, 1, workers=20000, batch=5)
    g = theory.descent.drawn(gradients, setup, theory.descent.np.random.default_rng(0))[0]
    assert_close(g.mean(0), gradients[0].mean(0), rtol=0, atol=0.02)
    assert_close(g.var(0), gradients[0].var(0, correction=0) / 5, rtol=0.05, atol=0)


def seen(theory, **values):
    zeros = torch.zeros(8, dtype=torch.float64)
    numbers = dict.fromkeys(("weights", "shortest", "longest", "sent", "used"), 1.0)
    vectors = {"variance": zeros, "inner": zeros, "rounding": zeros, "suboptimality": 0.0, "moved": 0.0}
    return theory.descent.Seen(**{**numbers, **vectors, **values})


def test_the_terms_of_theorem_2_are_those_of_a25(theory):
    """d = 8, h = 2, G = 2, beta_2 = 3/4: C = sqrt(2 / 4 / 32) / 4 = 1/32; kappa = 4."""
    vectors = {"variance": 16.0, "inner": 0.25, "rounding": 0.5}
    full = {name: torch.full((8,), value, dtype=torch.float64) for name, value in vectors.items()}
    setup = theory.descent.Setup(torch.optim.SGD, 100, 2, workers=4, batch=16)
    lamb = theory.theorem_2.Lamb(eta=0.1, c_l=0.5, c_u=2.0, beta_2=0.75)
    shown = seen(theory, sent=2.0, **full)
    terms = theory.theorem_2.terms(lamb, setup, shown, gap=3.0, smoothness=1.5)
    assert terms == pytest.approx(
        {
            "start": 3.0 / (0.1 * 0.5 / 32 * 100),
            "epsilon, sigma": 2 * (2.0 + 128 / 64),
            "delta": 4 * 4.0,
            "chi": 4 * 3**0.5 * 32 * 8 * 1.0,
            "L": 0.1 * 2 * 4 * 3.0 * 32 / 2,
        }
    )
    other = theory.theorem_2.best_rate(3.0, 1.5, 2, 100, 2.0) * torch.tensor([0.8, 1.0, 1.25])
    sums = [
        sum(theory.theorem_2.terms(replace(lamb, eta=eta), setup, shown, 3.0, 1.5).values())
        for eta in other.tolist()
    ]
    assert sums[1] == min(sums)


@pytest.fixture(scope="module")
def case(theory):
    return theory.conadv.prepare()


def test_theorem_1_of_conadv_is_11_and_its_proof_35(theory, case):
    """With eta = sqrt(Delta / (L sigma^2 T)), 4 sigma sqrt(L Delta / T) is proved; else 2 L Delta / T."""
    conadv, smooth = theory.conadv, case.ball.l_concurrent
    setup = theory.descent.Setup(torch.optim.SGD, 10**8, 4, workers=4, batch=1, delay=2)
    term = (case.variance / 4 * smooth * case.gap / 10**8) ** 0.5
    mixed, mu = case.ball.l_theta_x, case.ball.concavity
    stale = mixed**2 / 2 * (2 * 0.3 * mixed / (smooth * mu) + (0.01 / mu) ** 0.5) ** 2
    shown = seen(theory, used=0.3, suboptimality=0.01)
    assert conadv.theorem_1(case, setup, shown) == pytest.approx(2 * term + stale)
    fresh, quiet = replace(setup, delay=0), seen(theory)
    assert case.rate(setup) < 1 / smooth
    assert conadv.proof_of_theorem_1(case, fresh, quiet, case.rate(setup)) == pytest.approx(4 * term)
    exact = theory.descent.Setup(torch.optim.SGD, 10, 4)
    assert case.rate(exact) == 1 / smooth and conadv.theorem_1(case, exact, quiet) == 0
    proved = conadv.proof_of_theorem_1(case, exact, quiet, 1 / smooth)
    assert proved == pytest.approx(2 * smooth * case.gap / 10)
    moving = replace(exact, delay=2)
    assert conadv.proof_of_theorem_1(case, moving, shown, 1 / smooth) == pytest.approx(proved + stale)


def test_conadvs_theorem_1_is_broken_without_noise_and_what_its_proof_gives_is_kept(theory, case):
    base = theory.descent.Setup(torch.optim.SGD, 64, theory.theorem_2.LAYERS, delay=1)
    found = theory.comparison.compare(
        "", "", [1, 16, 64], lambda t: theory.conadv.gradient_point(case, replace(base, iterations=t))
    )
    assert all(found.violated) and all(found.inside) and not any(found.above(found.proved))
    assert all(proved < 20 * measured for proved, measured in zip(found.proved, found.measured, strict=True))


def test_the_bound_of_lars_is_the_one_derived(theory, case):
    """Layers of norm 1 to 2: kappa = 2; steps of eta times weights of norm 3, two steps old."""
    shown = seen(theory, shortest=1.0, longest=2.0, weights=3.0)
    setup = theory.descent.Setup(torch.optim.SGD, 100, 4, workers=4, batch=16, delay=2)
    noise, ball = (case.variance / 64) ** 0.5, case.ball
    stale = ball.l_theta_x / 2 * ball.l_theta_x / ball.concavity * 2 * 0.1 * 3.0
    expected = case.gap / (0.1 * 100) + 2 * 2 * 2 * (noise + stale) + 0.1 * 2 * 2 * 4 * ball.smoothness / 2
    assert theory.conadv.lars_bound(case, setup, shown, 0.1) == pytest.approx(expected)


def test_lars_and_lamb_keep_the_bounds_derived_for_them(theory, case):
    setup = theory.descent.Setup(torch.optim.SGD, 400, theory.theorem_2.LAYERS, batch=64, delay=2)
    for point in (theory.conadv.lamb_point, theory.conadv.lars_point):
        found = theory.comparison.compare("", "", [0], lambda _, point=point: point(case, setup))
        assert found.inside[0] and found.ratios[0] > 1, point


@pytest.mark.parametrize("name", ["gradient", "LARS", "LAMB"])
def test_lemma_1_is_kept_and_broken_by_examples_older_than_stated(theory, case, name):
    setup = theory.descent.Setup(torch.optim.SGD, 60, theory.theorem_2.LAYERS, delay=20)
    found = theory.comparison.Comparison("", "")
    found.add(20, point := theory.conadv.lemma_point(name, case, setup))
    found.add(1, replace(point, bound=point.bound / 20))
    assert found.violated == [False, True] and all(found.inside) and not found.telling


def test_programs_keep_the_bounds_and_one_that_does_not_descend_breaks_them(theory):
    for name, program in theory.faults.programs(iterations=800).items():
        assert theory.faults.verdict(program(None)) == "below the bound", name
        still = program(theory.faults.FAULTS["no gradient arrives"])
        assert theory.faults.verdict(still) == "above the bound", name
        assert still.measured.mean().item() == pytest.approx(still.still, rel=1e-9)


def test_a_lost_layer_breaks_a_bound_and_a_program_that_climbs_leaves_the_ball(theory):
    program = theory.faults.programs(iterations=400)["ConAdv, Theorem 1, tau = 0, M B = 256"]
    assert theory.faults.verdict(program(theory.faults.without_a_layer)) == "above the bound"
    assert (
        theory.faults.verdict(program(theory.faults.FAULTS["the sign is wrong"]))
        == "the weights leave the ball"
    )


def test_a_violation_is_more_than_the_spread_and_needs_the_assumptions(theory):
    values = torch.tensor([3.0, 5.0], dtype=torch.float64)
    found = theory.comparison.Comparison("y", "x")
    for bound, holds in ((1.9, True), (2.1, True), (1.9, False), (5.0, True)):
        found.add(1, theory.comparison.Point(values, bound, holds, still=3.5, proved=bound / 2))
    assert found.measured == [4.0] * 4 and found.error == pytest.approx([1.0] * 4)
    assert found.violated == [True, False, False, False]
    assert found.telling == [True, True, True, False]
    summary = found.summary("name")
    assert summary["name_violated"] == 1 and summary["name_outside"] == 1 and summary["name_telling"] == 3
    assert summary["name_least_ratio"] == pytest.approx(1.9 / 4)
    assert summary["name_violated_proved"] == 2
    assert theory.faults.verdict(theory.comparison.Point(values, 5.0, False)) == "the weights leave the ball"


def test_slopes_are_fitted_to_what_is_certain(theory):
    exact = {"x": [1.0, 2.0, 4.0, 8.0], "y": [8.0, 4.0, 2.0, 0.5], "error": [0.1, 0.1, 0.1, 0.4]}
    assert theory.slopes.slopes({"M B": exact}) == pytest.approx({"slope_MB": -1.0})


def test_figures_are_drawn(theory, tmp_path):
    comparison, values = theory.comparison.Comparison("y", "x"), torch.tensor([3.0])
    comparison.add(1, theory.comparison.Point(values, 0.0, True, still=3.5, proved=4.0))
    comparison.add(2, theory.comparison.Point(values, 5.0, True, still=3.5, proved=4.0))
    names = list(theory.figures.TITLES)[:2]
    theory.figures.draw_bounds(dict.fromkeys(names, comparison), tmp_path / "bounds.svg")
    panel = {"x": [1.0, 2.0], "y": [2.0, 0.1], "error": [0.1, 0.4]}
    theory.figures.draw_slopes(dict.fromkeys(theory.slopes.BOUNDS, panel), tmp_path / "slopes.svg")
    assert (tmp_path / "bounds.svg").stat().st_size and (tmp_path / "slopes.svg").stat().st_size
