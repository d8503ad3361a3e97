"""One process at a time in a folder: training, evaluation, certification."""

import errno
import multiprocessing
import os
import time

import pytest

from hpcdat.commands.certify import certify
from hpcdat.commands.evaluate import evaluate
from hpcdat.config.job_file import read_job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError
from hpcdat.evaluation.request import EvaluationRequest
from hpcdat.storage import folder_lock
from hpcdat.storage.folder_lock import is_locked, lock_folder, locked
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import DEMO, Never


def hold(folder, ready):
    """Hold a folder, start a process that outlives this one, as a loader may, and stay."""
    held = lock_folder(folder)
    if os.fork() == 0:
        time.sleep(3)
        os._exit(0)
    ready.set()
    time.sleep(60)
    held.close()


@pytest.fixture
def holder():
    """Starts a process that holds a folder; killed in the end."""
    fork, started = multiprocessing.get_context("fork"), []

    def start(folder):
        ready = fork.Event()
        started.append(fork.Process(target=hold, args=(folder, ready)))
        started[-1].start()
        assert ready.wait(30)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(folder_lock, "SECONDS_TO_ACQUIRE", 0.2)


def test_whether_another_process_holds_a_folder_can_be_asked(holder, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert is_locked(folder) is False
    other = holder(folder)
    assert is_locked(folder) is True
    other.kill()
    other.join()
    assert is_locked(folder) is False

    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "lockf", no_locks)
    assert is_locked(folder) is None


def test_a_folder_is_for_one_run_at_a_time_until_that_ends_or_is_killed(holder, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    job = read_job(DEMO, [f"run_dir={tmp_path}/run"])
    other = holder(job.run_dir)
    for overwrite in (False, True):
        message = rf"{job.run_dir} is in use by process {other.pid} on .*, Slurm job 4711: wait until"
        with pytest.raises(InputError, match=message):
            RunFolder(job.run_dir).begin(job, {}, overwrite=overwrite)
    other.kill()
    other.join()
    assert RunFolder(job.run_dir).begin(job, {}, overwrite=False) == "new"


@pytest.mark.parametrize("command", ["evaluate", "certify"])
def test_a_second_command_is_refused_and_touches_nothing(run_dir, holder, command):
    folder = RunFolder(run_dir)
    if command == "evaluate":
        at, work = (
            folder.outcomes_folder,
            lambda: evaluate(run_dir, [], EvaluationRequest(), SingleProcess(), Never()),
        )
    else:
        at, work = folder.certification_folder, lambda: certify(run_dir, [], SingleProcess(), Never())
    other = holder(at)
    with pytest.raises(InputError, match=f"{at} is in use by process {other.pid}"):
        work()
    assert [file.name for file in at.iterdir()] == [".lock"]


def test_a_command_that_fails_lets_the_next_one_in(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path, SingleProcess()):
        raise KeyboardInterrupt
    fork = multiprocessing.get_context("fork")
    other = fork.Process(target=lock_folder, args=(tmp_path,))
    other.start()
    other.join()
    assert other.exitcode == 0
