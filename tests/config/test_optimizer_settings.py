"""The optimiser and the rates of jobs: what the papers' methods mean, and what does not go together."""

import pytest

from hpcdat.config.job_file import JobError, parse_job, read_job, write_job
from hpcdat.config.methods import METHODS
from tests.conftest import CHECKOUT, DEMO

JOBS = sorted((CHECKOUT / "jobs").rglob("*.yaml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: str(path.relative_to(CHECKOUT / "jobs")))
def test_no_row_of_dat_leaves_tensors_out_and_every_lars_row_does_as_conadvs_code(path):
    job = read_job(path)
    assert job.optimizer.exclude == ("vectors" if job.optimizer.name == "lars" else "none")
    assert (job.optimizer.c_l, job.optimizer.c_u) == (0, 10)


@pytest.mark.parametrize("method", ["dat-pgd", "dat-fgsm"])
def test_lalr_is_lamb_and_may_be_over_momentum(method):
    assert METHODS[method].optimizers == ("lamb", "lalr-momentum")
    settings = [f"method={method}", "attack.steps=1"]
    job = read_job(DEMO, [*settings, "optimizer.name=lalr-momentum"])
    assert (job.optimizer.name, job.optimizer.exclude) == ("lalr-momentum", "none")
    with pytest.raises(JobError, match=r"optimizer\.name: expected lamb or lalr-momentum: method"):
        read_job(DEMO, [*settings, "optimizer.name=sgd"])


@pytest.mark.parametrize("method, start", [("dat-pgd", 0), ("dat-lsgd", None)])
def test_the_start_of_lsgds_warm_up_stays_open_until_the_workers_are_counted(method, start):
    job = read_job(DEMO, [f"method={method}"])
    assert job.schedule.warmup_start == start
    assert parse_job(write_job(job), "copy") == job


def test_lsgds_jobs_hold_no_share_of_the_rate():
    for name in ("imagenet-dat-lsgd", "figures/figure-2-dat-lsgd"):
        job = read_job(CHECKOUT / "jobs" / f"{name}.yaml")
        assert job.schedule.warmup_start is None and job.schedule.warmup_by == "step"


@pytest.mark.parametrize("rate, epochs", [(0.01, 30), (0.05, 30), (0.1, 30), (0.2, 30), (0.4, 35)])
@pytest.mark.parametrize("name", ["imagenet-dat-pgd", "imagenet-dat-fgsm"])
def test_the_papers_grid_of_rates_has_its_extra_epochs(name, rate, epochs):
    job = read_job(CHECKOUT / "jobs" / f"{name}.yaml", [f"optimizer.lr={rate}"])
    assert job.epochs == 30 and job.total_epochs == epochs
    assert job.schedule.decay_epochs == [20, 25, 28]
    assert parse_job(write_job(job), "copy") == job


@pytest.mark.parametrize("other", ["name=cyclic", "warmup_epochs=1"])
def test_there_is_one_warm_up(other):
    settings = ["schedule={}", "schedule.extra_warmup_epochs=5", f"schedule.{other}"]
    with pytest.raises(
        JobError, match=r"schedule\.extra_warmup_epochs: expected 0: the schedule has another"
    ):
        read_job(DEMO, settings)
