"""The jobs that come with hpcdat: their list, and copies that are jobs by themselves."""

import pytest

from hpcdat.commands.shipped_jobs import FOLDER, copy_shipped, find_shipped, shipped_jobs
from hpcdat.config.job_file import read_job
from hpcdat.errors import InputError
from tests.conftest import CHECKOUT, run_here


def test_all_jobs_of_the_checkout_are_listed_each_with_what_it_is():
    jobs = shipped_jobs()
    files = (CHECKOUT / "jobs").rglob("*.yaml")
    assert sorted(jobs) == sorted(str(file.relative_to(CHECKOUT / "jobs"))[:-5] for file in files)
    assert jobs["demo"].startswith("DAT-PGD on scikit-learn's handwritten digits")
    assert jobs["conadv/16k/conadv"] == "ConAdv at batch 16k, 256 workers."
    assert all(jobs.values()) and max(map(len, jobs.values())) <= 100
    done = run_here("jobs")
    assert done.returncode == 0 and done.stdout.startswith("cifar10-dat-fgsm\n    DAT-FGSM on CIFAR-10")
    assert done.stdout.count("\n") == 2 * len(jobs)


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "figures/figure-1", "conadv/table-5/conadv-aa-96k"])
def test_a_copy_is_the_same_job(name, tmp_path):
    first, *_ = copy_shipped(name, tmp_path)
    copy, original = (read_job(file, ["module_path=[]"]) for file in (first, find_shipped(name)))
    assert first.is_relative_to(tmp_path) and copy == original


def test_every_job_that_one_is_like_is_copied_and_no_other(tmp_path):
    files = copy_shipped("conadv/96k/conadv-aa", tmp_path)
    names = ["96k/conadv-aa.yaml", "96k/conadv.yaml", "32k/conadv.yaml"]
    assert files == [tmp_path / "conadv" / name for name in names]
    assert sorted(file for file in tmp_path.rglob("*.yaml")) == sorted(files)


def test_a_file_that_differs_is_kept_without_overwrite(tmp_path):
    (file,) = copy_shipped("demo", tmp_path)
    assert run_here("jobs", "copy", "demo", tmp_path).returncode == 0, "the same file"
    file.write_text("mine")
    done = run_here("jobs", "copy", "demo", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{file} exists and differs" in done.stderr and file.read_text() == "mine"
    assert run_here("jobs", "copy", "demo", tmp_path, "--overwrite").stdout == f"written: {file}\n"
    assert file.read_bytes() == (FOLDER / "demo.yaml").read_bytes()


@pytest.mark.parametrize(
    "name, message",
    [
        ("demmo", "demmo: no such job comes with hpcdat; did you mean demo?"),
        ("../setup", "../setup: no such job comes with hpcdat; `hpcdat jobs` lists them"),
    ],
)
def test_an_unknown_name_is_refused_with_names_like_it(name, message, tmp_path):
    with pytest.raises(InputError) as raised:
        copy_shipped(name, tmp_path)
    assert str(raised.value) == message and not list(tmp_path.iterdir())
