"""The learning rate of every epoch and step."""

import numpy as np
import pytest

from hpcdat.config.job_file import read_job
from hpcdat.optim.lr_schedule import learning_rate
from tests.conftest import DEMO


def job_with(epochs, lr, *settings):
    clear = ["schedule={}", f"epochs={epochs}", f"optimizer.lr={lr}"]
    return read_job(DEMO, [*clear, *(f"schedule.{setting}" for setting in settings)])


def rates(job, places):
    return [learning_rate(job, place, 100) for place in places]


def test_imagenet_schedule_of_the_paper_with_its_extra_warm_up():
    """5 warm-up epochs at (k/5) eta in front of 30, decay after 20, 25 and 28 of those."""
    job = job_with(35, 0.4, "warmup_epochs=5", "decay_epochs=[25,30,33]")
    expected = [0.08, 0.16, 0.24, 0.32, 0.4] + [0.4] * 20 + [0.04] * 5 + [0.004] * 3 + [0.0004] * 2
    for within in (0.0, 0.5, 0.99):
        np.testing.assert_allclose(rates(job, np.arange(35) + within), expected, rtol=1e-12)


def test_no_warm_up_and_no_decay_is_constant():
    assert set(rates(job_with(7, 0.1), np.linspace(0, 7, 50))) == {0.1}


def test_warm_up_by_step_is_linear():
    job = job_with(10, 0.2, "warmup_epochs=4", "warmup_by=step", "warmup_start=0.25")
    places = np.linspace(0, 4, 41)[:-1]
    np.testing.assert_allclose(rates(job, places), 0.2 * np.interp(places, [0, 4], [0.25, 1]), rtol=1e-12)
    assert learning_rate(job, 4.0, 100) == 0.2


@pytest.mark.parametrize("settings, peak", [([], 12), (["peak_epoch=5"], 5)])
def test_cyclic_is_fast_ats_triangle(settings, peak):
    """The Fast AT code has it as numpy.interp over [0, peak, end] and [0, eta, 0]."""
    places = np.linspace(0, 30, 301)
    expected = np.interp(places, [0, peak, 30], [0, 0.2, 0])
    job = job_with(30, 0.2, "name=cyclic", *settings)
    np.testing.assert_allclose(rates(job, places), expected, rtol=1e-12, atol=1e-15)


def test_polynomial_runs_from_the_end_of_the_warm_up_to_zero():
    job = job_with(90, 2.0, "name=polynomial", "warmup_epochs=10", "power=1.5")
    places = np.linspace(10, 90, 161)
    np.testing.assert_allclose(rates(job, places), 2.0 * ((90 - places) / 80) ** 1.5, rtol=1e-12, atol=1e-15)
    assert learning_rate(job, 0.0, 100) == 0.2


def test_lsgd_scales_the_rate_with_the_global_batch():
    job = read_job(DEMO, ["method=dat-lsgd", "optimizer.lr=0.1"])
    assert learning_rate(job, 0.0, 3072) == pytest.approx(1.2)
    assert learning_rate(job, 0.0, 256) == pytest.approx(0.1)
