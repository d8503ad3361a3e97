"""The jobs that are shipped for the papers' rows: one for each, with the settings that the paper states."""

import re
from collections import Counter
from operator import attrgetter

import pytest

from hpcdat.config.job_file import read_job
from hpcdat.report.certified import rows_beside
from hpcdat.report.papers import TABLES
from tests.conftest import CHECKOUT

CONADV = CHECKOUT / "jobs" / "conadv"
DAT = [
    path
    for name in ("imagenet", "cifar10-smooth", "cifar10-unlabelled")
    for path in (CHECKOUT / "jobs").glob(f"{name}-*")
]
JOBS = [*sorted(DAT), *sorted(CONADV.rglob("*.yaml"))]


def name_of(path):
    return f"{path.parent.name}/{path.stem}"


def rows_of(job):
    """The rows that a job stands for, with their tables."""
    for table, name in (row.split("/") for row in job.reproduces):
        key = TABLES[table].key_of(name, job.attack.eps)
        yield TABLES[table], next(row for row in TABLES[table].rows if row.key == key)


def test_every_row_has_its_job_and_every_job_its_folder():
    jobs = [read_job(path) for path in JOBS]
    rows = [f"{table.name}/{table.name_of(row)}" for table in TABLES.values() for row in table.rows]
    assert Counter(row for job in jobs for row in job.reproduces) == Counter(set(rows))
    assert len({job.run_dir for job in jobs}) == len(jobs)


@pytest.mark.parametrize("path", JOBS, ids=name_of)
def test_a_job_has_what_the_paper_states_of_its_rows(path):
    job = read_job(path)
    for table, row in rows_of(job):
        work = {**table.work, **row.work}
        work.pop("data.images", None)
        batch = work.pop("global batch", None)
        assert {key: attrgetter(key)(job) for key in work} == work
        if batch:
            batches = re.match(r"# .*?([\d,]+) (?:workers|batches)", path.read_text())
            assert int(batches[1].replace(",", "")) * job.batch_size == batch


def test_jobs_of_table_2_are_certified_at_the_noise_of_their_training():
    for path in (CHECKOUT / "jobs").glob("cifar10-smooth-*.yaml"):
        job = read_job(path)
        (row,) = rows_beside(job)
        assert row.label.endswith(f"(N = {job.smoothing.copies})") and job.evaluation.steps == 20
        assert job.certification.sigma == [row.work["smoothing.sigma"]]


def test_the_sweeps_of_the_figures_can_be_submitted():
    swept = {}
    for path in (CHECKOUT / "jobs" / "figures").glob("*.yaml"):
        for key, values in re.findall(r"--sweep (\S+?)=(\S+)", path.read_text()):
            jobs = [read_job(path, [f"{key}={value}"]) for value in values.split(",")]
            assert len({job.virtual_workers for job in jobs}) == len(jobs) > 1
            swept[path.stem] = jobs[0]
    assert set(swept) == {"figure-1", "figure-2-dat-fgsm", "figure-2-dat-lsgd", "figure-a1"}
    # What is compared in Figure 2 differs in method, attack and rate alone.
    dat, lsgd = swept["figure-2-dat-fgsm"], swept["figure-2-dat-lsgd"]
    for key in ("epochs", "batch_size", "attack.eps", "evaluation", "data", "model", "objective"):
        assert attrgetter(key)(dat) == attrgetter(key)(lsgd), key
    assert dat.schedule.decay_epochs == lsgd.schedule.decay_epochs


@pytest.mark.parametrize("path", sorted((CONADV / "table-5").glob("*.yaml")), ids=name_of)
def test_a_sweep_is_over_the_papers_perturbations(path):
    sweep = re.search(r"--sweep attack\.eps=(\S+)", path.read_text())[1].split(",")
    rows = [row.key for eps in sweep for _, row in rows_of(read_job(path, [f"attack.eps={eps}"]))]
    (name,) = read_job(path).reproduces
    table = TABLES["conadv-5"]
    assert rows == [row.key for row in table.rows if f"conadv-5/{table.name_of(row)}" == name]
