"""The learning rate of every update, in closed form from the first to the last."""

import numpy as np
import pytest

from hpcdat.config.job_file import read_job
from hpcdat.optim.lr_schedule import learning_rate
from tests.conftest import DEMO

STEPS = 4
"""Updates in an epoch."""


def job_with(epochs, lr, *settings, method="dat-pgd"):
    clear = ["schedule={}", "attack.steps=null", f"method={method}", f"epochs={epochs}", f"optimizer.lr={lr}"]
    return read_job(DEMO, [*clear, *(f"schedule.{setting}" for setting in settings)])


def rates(job, global_batch=100):
    """Of all updates."""
    places = [(epoch, step) for epoch in range(job.total_epochs) for step in range(STEPS)]
    return np.array([learning_rate(job, *place, STEPS, global_batch) for place in places])


def test_the_papers_extra_warm_up_is_in_front_of_30_epochs_and_shifts_the_decays():
    """DAT, supplement 4.1: epoch k = 1..5 at (k/5) eta, then decays after 20, 25 and 28 epochs."""
    job = job_with(30, 0.4, "decay_epochs=[20,25,28]")
    assert (job.epochs, job.extra_warmup_epochs, job.total_epochs) == (30, 5, 35)
    by_epoch = [0.08, 0.16, 0.24, 0.32, 0.4] + [0.4] * 20 + [0.04] * 5 + [0.004] * 3 + [0.0004] * 2
    np.testing.assert_allclose(rates(job), np.repeat(by_epoch, STEPS), rtol=1e-12)


@pytest.mark.parametrize(
    "method, lr, settings, extra",
    [
        ("dat-fgsm", 0.4, [], 5),
        ("dat-pgd", 0.2, [], 0),
        ("dat-pgd", 0.4, ["warmup_epochs=3"], 0),
        ("dat-pgd", 0.4, ["name=cyclic"], 0),
        ("dat-pgd", 0.4, ["extra_warmup_epochs=0"], 0),
        ("dat-pgd", 0.1, ["extra_warmup_epochs=2"], 2),
        ("at", 0.4, [], 0),
        ("conadv", 35, [], 0),
    ],
)
def test_the_extra_warm_up_is_for_lalr_at_rates_above_the_papers_bound(method, lr, settings, extra):
    job = job_with(10, lr, *settings, method=method)
    assert job.schedule.extra_warmup_epochs == job.extra_warmup_epochs == extra
    assert job.total_epochs == 10 + extra


def test_no_warm_up_and_no_decay_is_constant():
    assert set(rates(job_with(7, 0.1))) == {0.1}


def test_warm_up_by_epoch_inside_the_epochs():
    job = job_with(5, 0.1, "warmup_epochs=2", "decay_epochs=[3]")
    expected = np.repeat([0.05, 0.1, 0.1, 0.01, 0.01], STEPS)
    np.testing.assert_allclose(rates(job), expected, rtol=1e-12)


@pytest.mark.parametrize("place", ["warmup_epochs", "extra_warmup_epochs"])
def test_warm_up_by_step_from_zero_wastes_no_update(place):
    """Update i = 1..n has (i/n) eta: the first is not 0, the last is eta."""
    job = job_with(10, 0.2, f"{place}=3", "warmup_by=step")
    found = rates(job)
    np.testing.assert_allclose(found[:12], 0.2 * np.arange(1, 13) / 12, rtol=1e-12)
    assert set(found[12:]) == {0.2} and len(found) == STEPS * job.total_epochs


def test_warm_up_by_step_from_a_share_starts_at_it():
    found = rates(job_with(10, 0.2, "warmup_epochs=3", "warmup_by=step", "warmup_start=0.25"))
    np.testing.assert_allclose(found[:12], 0.2 * np.linspace(0.25, 1, 13)[:-1], rtol=1e-12)
    assert set(found[12:]) == {0.2}


@pytest.mark.parametrize("settings, peak", [([], 40), (["peak_epoch=7"], 28), (["peak_epoch=6.6"], 26.4)])
def test_cyclic_is_fast_ats_triangle_without_its_zeros(settings, peak):
    """The Fast AT code has it as numpy.interp over [0, peak, end] and [0, eta, 0]."""
    found = rates(job_with(25, 0.2, "name=cyclic", *settings))
    n = 25 * STEPS
    place = np.arange(n)
    up, down = (np.interp(at, [0, peak, n], [0, 0.2, 0]) for at in (place + 1, place))
    rising = place + 1 <= peak
    falling = place >= peak
    np.testing.assert_allclose(found[rising], up[rising], rtol=1e-12)
    np.testing.assert_allclose(found[falling], down[falling], rtol=1e-12)
    # The update in which a peak between two updates falls.
    assert set(found[~rising & ~falling]) <= {0.2}
    assert found[0] == pytest.approx(0.2 / peak) and found[-1] == pytest.approx(0.2 / (n - peak))
    assert found.max() == 0.2


def test_polynomial_falls_from_the_end_of_the_warm_up_and_wastes_no_update():
    job = job_with(9, 2.0, "name=polynomial", "warmup_epochs=2", "warmup_by=step", "power=1.5")
    found, n = rates(job), 7 * STEPS
    np.testing.assert_allclose(found[:8], 2.0 * np.arange(1, 9) / 8, rtol=1e-12)
    np.testing.assert_allclose(found[8:], 2.0 * (np.arange(n, 0, -1) / n) ** 1.5, rtol=1e-12)


@pytest.mark.parametrize("workers", [1, 3, 4, 6, 36, 128])
def test_lsgd_starts_at_the_base_rate_for_any_number_of_workers(workers):
    """0.1 for 256 images; eta is that of the global batch, and where that is less there is no warm-up."""
    job = job_with(6, 0.1, "warmup_epochs=5", "warmup_by=step", method="dat-lsgd")
    eta = 0.1 * workers * 85 / 256
    expected = np.linspace(min(0.1, eta), eta, 5 * STEPS + 1)
    expected = np.concatenate([expected[:-1], [eta] * STEPS])
    np.testing.assert_allclose(rates(job, workers * 85), expected, rtol=1e-12)


def test_lsgd_scales_the_rate_with_the_global_batch():
    job = read_job(DEMO, ["method=dat-lsgd", "optimizer.lr=0.1"])
    assert learning_rate(job, 0, 0, STEPS, 3072) == pytest.approx(1.2)
    assert learning_rate(job, 0, 0, STEPS, 256) == pytest.approx(0.1)
