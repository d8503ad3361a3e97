"""A job file that lies in the folder of a run that was moved or copied."""

import shutil

import pytest

from hpcdat.config.job_file import read_job
from hpcdat.storage.moved_run import folder_of
from hpcdat.storage.run_folder import RunError, RunFolder
from tests.conftest import DEMO, run_here


def rename(folder, run_dir):
    """Write another run_dir into the settings of a run; its file."""
    file = RunFolder(folder).job_file
    file.write_text(file.read_text().replace(f"run_dir: {read_job(file).run_dir}", f"run_dir: {run_dir}"))
    assert str(read_job(file).run_dir) == str(run_dir)
    return file


@pytest.fixture
def moved(run_dir, tmp_path):
    """The settings of a finished run that was moved from ``one`` to ``two``."""
    return rename(run_dir.rename(tmp_path / "two"), tmp_path / "one")


def test_a_moved_run_is_continued_where_it_lies(moved, tmp_path):
    done = run_here("train", moved)
    assert done.returncode == 0, done.stderr
    old = read_job(moved).run_dir
    assert f"the run has moved from {old}: continuing in {moved.parent}" in done.stdout
    assert f"the run in {moved.parent} is finished" in done.stdout and str(moved.parent) in done.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["two"]


def test_an_unfinished_run_is_continued_after_a_move_and_its_settings_follow(moved):
    """The run_dir in its job.yaml becomes the new one, so that nothing is said the next time."""
    folder = RunFolder(moved.parent)
    lines = folder.metrics_file.read_text().splitlines(keepends=True)
    folder.metrics_file.write_text("".join(line for line in lines if '"finished"' not in line))
    done = run_here("train", moved)
    assert done.returncode == 0, done.stderr
    assert "the run has moved" in done.stdout
    assert read_job(moved).run_dir == moved.parent
    assert "has moved" not in run_here("train", moved).stdout


def test_a_relative_run_dir_from_another_folder_is_the_same_run(run_dir, monkeypatch):
    rename(run_dir, "runs/run")
    monkeypatch.chdir(run_dir)
    done = run_here("train", "job.yaml")
    assert done.returncode == 0 and f"the run in {run_dir} is finished" in done.stdout
    assert not (run_dir / "runs").exists()


def test_of_a_copy_and_its_original_one_has_to_be_named(run_dir, tmp_path):
    original = RunFolder(rename(run_dir, run_dir).parent)
    copy = RunFolder(shutil.copytree(run_dir, tmp_path / "two"))
    done = run_here("train", copy.job_file)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    for folder in (copy, original):
        assert f"--set run_dir={folder.path}" in done.stderr
    done = run_here("train", copy.job_file, "--set", f"run_dir={copy.path}")
    assert done.returncode == 0 and f"the run in {copy.path} is finished" in done.stdout
    # The original's own file is not in doubt.
    assert folder_of(original.job_file, read_job(original.job_file), []) == original.path


def test_other_files_name_their_run_dir_themselves(moved, tmp_path):
    job = read_job(DEMO)
    assert folder_of(DEMO, job, []) == job.run_dir
    other = moved.parent / "other.yaml"
    shutil.copy(moved, other)
    assert folder_of(other, read_job(other), []) == read_job(other).run_dir
    (tmp_path / "jobs").mkdir()
    alone = tmp_path / "jobs" / "job.yaml"
    shutil.copy(moved, alone)
    assert folder_of(alone, read_job(alone), []) == read_job(alone).run_dir
    given = ["seed=1", "run_dir = elsewhere"]
    assert folder_of(moved, read_job(moved), given) == read_job(moved).run_dir


def test_a_copy_of_a_run_is_not_submitted_by_mistake(moved, tmp_path):
    done = run_here("submit", moved, "--nodes", "1", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert str(moved.parent) in done.stdout and f"run_dir={read_job(moved).run_dir}" not in done.stdout
    shutil.copytree(moved.parent, read_job(moved).run_dir)
    with pytest.raises(RunError, match="lies in the folder of a run"):
        folder_of(moved, read_job(moved), [])
    assert run_here("submit", moved, "--nodes", "1", "--dry-run").returncode == 2
