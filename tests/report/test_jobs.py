"""The jobs that are shipped for the papers' rows: one for each, with the settings that the paper states."""

import re
import subprocess
from collections import Counter
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

import pytest

from hpcdat.commands.train import check_workers
from hpcdat.config.job_file import read_job
from hpcdat.config.methods import METHODS
from hpcdat.config.sections import by_name
from hpcdat.report.certified import rows_beside
from hpcdat.report.papers import TABLES
from hpcdat.report.papers.dat import FIGURE_4_DATA, FIGURE_4_LINES
from hpcdat.training.roles import assign_roles
from tests.conftest import CHECKOUT

CONADV = CHECKOUT / "jobs" / "conadv"
DAT = [
    path
    for name in ("imagenet", "cifar10-smooth", "cifar10-unlabelled")
    for path in (CHECKOUT / "jobs").glob(f"{name}-*")
]
FIGURES = sorted((CHECKOUT / "jobs" / "figures").glob("*.yaml"))
JOBS = [*sorted(DAT), *sorted(CONADV.rglob("*.yaml"))]
FIGURE_4 = {f"dat-fig4/{data}-{line}" for data in FIGURE_4_DATA for line in FIGURE_4_LINES}


def name_of(path):
    return f"{path.parent.name}/{path.stem}"


def rows_of(job):
    """The rows that a job stands for, with their tables."""
    for table, name in (row.split("/") for row in job.reproduces):
        key = TABLES[table].key_of(name, job.attack.eps)
        yield TABLES[table], next(row for row in TABLES[table].rows if row.key == key)


def test_every_row_has_its_job_and_every_job_its_folder():
    jobs = [read_job(path) for path in (*JOBS, *FIGURES)]
    rows = {
        f"{table.name}/{table.name_of(row)}"
        for table in TABLES.values()
        for row in table.rows
        if not row.cited
    }
    assert Counter(row for job in jobs for row in job.reproduces) == Counter(rows | FIGURE_4)
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


def test_dat_and_only_dat_takes_its_best_weights_on_images_held_out():
    """Sec. 6.1: Rice et al.'s early stopping "in DAT", whose two variants stand apart from four baselines."""
    for path in JOBS + [path for path in FIGURES if "figure-4" not in path.name]:
        job = read_job(path)
        is_dat = job.method in ("dat-pgd", "dat-fgsm")
        assert job.early_stopping.best_weights == is_dat, path
        assert (job.early_stopping.held_out > 0) == is_dat and job.early_stopping.patience is None
    # Figure 4 is of the test images after every epoch.
    for path in FIGURES:
        if "figure-4" in path.name:
            job = read_job(path)
            assert job.evaluation.every == 1 and not job.early_stopping.chooses_weights


def test_no_job_of_a_paper_can_be_ended_by_the_guard():
    miniature = sorted((CHECKOUT / "jobs" / "miniature").glob("*.yaml"))
    guarded = [
        str(path)
        for path in (*JOBS, *FIGURES, *miniature)
        for job in [read_job(path)]
        if job.oracle == "fgsm" and not METHODS[job.method].split and job.early_stopping.fgsm_guard
    ]
    assert guarded == []
    assert read_job(CHECKOUT / "jobs" / "cifar10-dat-fgsm.yaml").early_stopping.fgsm_guard


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
    compared = ("epochs", "batch_size", "attack.eps", "evaluation.eps", "evaluation.steps", "data", "model")
    for key in (*compared, "objective"):
        assert attrgetter(key)(dat) == attrgetter(key)(lsgd), key
    assert dat.schedule.decay_epochs == lsgd.schedule.decay_epochs


@pytest.mark.parametrize("path", sorted((CONADV / "table-5").glob("*.yaml")), ids=name_of)
def test_a_sweep_is_over_the_papers_perturbations(path):
    sweep = re.search(r"--sweep attack\.eps=(\S+)", path.read_text())[1].split(",")
    rows = [row.key for eps in sweep for _, row in rows_of(read_job(path, [f"attack.eps={eps}"]))]
    (name,) = read_job(path).reproduces
    table = TABLES["conadv-5"]
    assert rows == [row.key for row in table.rows if f"conadv-5/{table.name_of(row)}" == name]


MINIATURE = CHECKOUT / "jobs" / "miniature"
SIZES = {
    *(f"data.{key}" for key in ("source", "root", "train_images", "image_size", "channels", "threads")),
    # Shifted or flipped, a digit is another one.
    "data.augmentation",
    *(f"model.{key}" for key in ("name", "width", "mean", "std")),
    *("evaluation.eps", "evaluation.step_size", "early_stopping.held_out"),
    "run_dir",
    "epochs",
    "batch_size",
    "attack.eps",
    "attack.step_size",
    "optimizer.lr",
    "schedule.decay_epochs",
    "exchange.bucket_mb",
}
"""What a row in miniature may have of its own: images, network, and what goes with their size."""


@pytest.mark.parametrize(
    "path",
    [*sorted(MINIATURE.glob("dat-*.yaml")), MINIATURE / "at.yaml", MINIATURE / "fast-at.yaml"],
    ids=name_of,
)
def test_a_row_in_miniature_is_the_full_size_row_but_for_sizes(path):
    full, small = (by_name(read_job(file)) for file in (CHECKOUT / "jobs" / f"imagenet-{path.name}", path))
    different = [key for key in full if full[key] != small[key]]
    assert [key for key in different if key not in SIZES] == []
    assert "data.source" in different


def test_every_row_of_tables_1_and_4_but_the_baselines_is_there_in_miniature():
    def rows(jobs):
        return Counter(row for job in jobs for row in job.reproduces if row.startswith(("dat-1/", "dat-4/")))

    small = [read_job(path) for path in MINIATURE.glob("*.yaml")]
    assert rows(small) == rows(map(read_job, JOBS))
    folders = [job.run_dir for job in small if job.reproduces or job.beside]
    assert len(set(folders)) == len(folders), "no two jobs share a run folder"


@pytest.mark.parametrize("method", ["dat-fgsm", "dat-pgd"])
def test_what_hpcdat_offers_stands_beside_the_row_with_its_bits_and_sides(method):
    beside = {
        row: job
        for job in map(read_job, (CHECKOUT / "jobs").glob(f"imagenet-{method}-*.yaml"))
        for row in job.beside
        if row.startswith("dat-4/")
    }
    ends = {f"{method}-32", f"{method}-16", f"{method}-8", f"{method}-8-two-sided"}
    assert {row.removeprefix("dat-4/") for row in beside} == ends
    for row, job in beside.items():
        work = next(row_.work for row_ in TABLES["dat-4"].rows if f"dat-4/{row_.key}" == row)
        assert job.exchange.bits == work["exchange.bits"] and not job.reproduces
        assert job.exchange.two_sided == work.get("exchange.two_sided", False)
        assert job.exchange.norm == "max" and job.exchange.between_nodes in ("ring", "sharded_server")


def submitted():
    """What the commands of docs/papers/index.md submit: job, settings, nodes and workers."""
    page = (CHECKOUT / "docs" / "papers" / "index.md").read_text()
    commands = re.findall(r"(?m)^    (.*hpcdat (?:submit|evaluate).*)$", page)
    script = "\n".join(["hpcdat() { echo $@; }", *commands])
    lines = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    for line in lines.splitlines():
        verb, job, *rest = line.split()
        if verb == "submit":
            options = dict(pairwise(rest))
            nodes, gpus = (int(options[name]) for name in ("--nodes", "--gpus-per-node"))
            settings = [word for word in rest if "=" in word and options.get("--sweep") != word]
            yield Path(job), settings, nodes, nodes * gpus, line


def test_every_job_of_the_papers_is_submitted_once_with_the_papers_workers():
    commands = list(submitted())
    jobs = [CHECKOUT / job for job, *_ in commands]
    # That one is Xie et al.'s own, not a row or figure.
    assert sorted(jobs) == sorted({*JOBS, *FIGURES} - {CHECKOUT / "jobs" / "imagenet-dat-lsgd.yaml"})
    for path, (_, settings, nodes, workers, line) in zip(jobs, commands, strict=True):
        job = read_job(path, settings)
        check_workers(job, nodes=nodes, size=workers)
        batches = len({number for role in assign_roles(job, workers) for number in role.trains})
        for table, row in rows_of(job) if job.reproduces and "dat-fig4" not in job.reproduces[0] else ():
            assert row.work.get("global batch") in (None, batches * job.batch_size), path
            assert ("--seeds 3" in line) == (table.seeds == 3), path
        assert ("--seeds 3" in line) == ("conadv" not in str(path)), path
