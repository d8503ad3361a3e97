"""Runs that are stopped, killed or hang, and what the same command makes of them."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hpcdat.storage.run_folder import RunFolder
from tests.conftest import CHECKOUT, DEMO, run_here
from tests.distributed.command_line import HPCDAT, newest, short, weights
from tests.distributed.drill import drill, settings_of
from tests.distributed.ranks import environment, launcher, on

pytestmark = pytest.mark.distributed


@pytest.fixture
def start():
    """Starts long runs, and leaves none behind."""
    started = []

    def begin(run_dir, *arguments, prefix=()):
        """Start and wait until an epoch more than before has been trained."""
        before = len(RunFolder(run_dir).metrics("epoch"))
        command = [
            *prefix,
            *HPCDAT,
            "train",
            str(DEMO),
            "--set",
            f"run_dir={run_dir}",
            "epochs=500",
            *arguments,
        ]
        log = (run_dir.parent / "log").open("w")
        marked = environment() | {"RUN_UNDER_TEST": str(run_dir)}
        process = subprocess.Popen(command, cwd=CHECKOUT, env=marked, stdout=log, stderr=log)
        started.append(process)
        deadline = time.monotonic() + 120
        while len(RunFolder(run_dir).metrics("epoch")) == before:
            assert process.poll() is None and time.monotonic() < deadline, log_of(run_dir)
            time.sleep(0.1)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def log_of(run_dir):
    return (run_dir.parent / "log").read_text()


def worker_process(run_dir, rank):
    """The process of one rank, found by what its launcher told it."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes().decode().split("\0")
            environ = (folder / "environ").read_bytes().decode().split("\0")
        except OSError:
            continue
        names = ("OMPI_COMM_WORLD_RANK", "HOROVOD_RANK", "HPCDAT_RANK", "RANK")
        ranks = {f"{name}={rank}" for name in names}
        if command[0] == sys.executable and f"run_dir={run_dir}" in command and ranks & set(environ):
            return int(folder.name)
    raise AssertionError(f"no worker {rank}")


def none_left(run_dir):
    """Whether all processes of the run, its loaders' too, have ended, within ten seconds."""
    mark = f"RUN_UNDER_TEST={run_dir}\0".encode()
    for _ in range(100):
        left = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                left += [environ] if mark in environ.read_bytes() else []
        if not left:
            return True
        time.sleep(0.1)
    return False


BY_MPIRUN = r"rank 1 .* exited on\s+signal 9"


@pytest.mark.parametrize("engine", ["horovod", pytest.param("torch", marks=pytest.mark.full)])
def test_ctrl_c_ends_all_workers_leaves_a_checkpoint_and_the_same_command_goes_on(tmp_path, start, engine):
    run_dir = tmp_path / "run"
    process = start(run_dir, "-np", "2", f"engine={engine}")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 75
    assert re.search(r"stopped in epoch \d+, step \d+; the checkpoint is in", log_of(run_dir))
    assert none_left(run_dir)
    done = run_here("evaluate", run_dir, "--set", "evaluation.steps=2")
    assert done.returncode == 0, done.stderr
    checkpoint = newest(run_dir)
    process = start(run_dir, "-np", "2", f"engine={engine}")
    assert f"resuming from epoch {checkpoint.epoch}, step {checkpoint.step}" in log_of(run_dir)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert newest(run_dir).epoch >= checkpoint.epoch
    changed = run_here("train", DEMO, "--set", f"run_dir={run_dir}", "epochs=500", "optimizer.lr=0.1")
    assert changed.returncode == 2 and "optimizer.lr: 0.02 -> 0.1" in changed.stderr


@pytest.mark.parametrize(
    "prefix, arguments, transport, name",
    [
        pytest.param([], ["-np", "2"], "MPI", BY_MPIRUN, marks=pytest.mark.full),
        pytest.param(launcher("MPI", 2), [], "MPI", BY_MPIRUN, marks=pytest.mark.full),
        (launcher("Gloo", 2), ["data.loader=torchvision"], "Gloo", r"Process 1 exit with status code 137"),
        (
            [],
            ["-np", "2", "engine=torch"],
            "Gloo",
            r"worker 1 \(process \d+\) was ended by signal 9 \(SIGKILL\)",
        ),
        pytest.param(launcher("torch", 2), [], "Gloo", r"rank +: 1 .*exitcode +: -9", marks=pytest.mark.full),
    ],
    ids=["-np", "mpirun", "horovodrun", "-np, torch", "torchrun"],
)
def test_a_worker_that_dies_ends_the_others_and_is_named(tmp_path, start, prefix, arguments, transport, name):
    """Under horovodrun, with processes that read images."""
    run_dir = tmp_path / "run"
    process = start(run_dir, *arguments, prefix=prefix)
    assert RunFolder(run_dir).environment()["transport"] == transport
    os.kill(worker_process(run_dir, 1), signal.SIGKILL)
    assert process.wait(60) != 0
    assert none_left(run_dir)
    assert re.search(name, log_of(run_dir), re.DOTALL)
    assert weights(run_dir)


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param([], marks=pytest.mark.full),
        ["-np", "2"],
        pytest.param(["-np", "2", "engine=torch"], marks=pytest.mark.full),
    ],
    ids=["one", "two", "two, torch"],
)
def test_nothing_lives_on_when_the_process_that_was_started_is_killed(tmp_path, start, workers):
    run_dir = tmp_path / "run"
    process = start(run_dir, "data.loader=torchvision", *workers)
    process.kill()
    assert none_left(run_dir)


@pytest.mark.parametrize("engine", ["horovod", "torch"])
def test_a_worker_that_hangs_ends_all_after_the_stall_timeout(tmp_path, start, engine):
    run_dir = tmp_path / "run"
    process = start(run_dir, "stall_timeout=5", "-np", "2", f"engine={engine}")
    os.kill(worker_process(run_dir, 1), signal.SIGSTOP)
    assert process.wait(60) == 1
    assert "worker 0 on" in log_of(run_dir) and "has waited 5 s for the other workers" in log_of(run_dir)
    assert none_left(run_dir)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=[pytest.mark.full, pytest.mark.computes])])
@on("MPI 2")
def test_killed_runs_end_like_undisturbed_ones(tmp_path, team, kills):
    """kill -9 of a random worker at a random moment, as `make drill` does."""
    epochs = 2 + 2 * kills

    def peace(run_dir):
        team.run("training.train_job", *settings_of(run_dir, epochs), timeout=600)

    same_weights, same_metrics, killed, amid = drill(
        tmp_path, workers=2, epochs=epochs, kills=kills, seed=1, peace=peace
    )
    assert same_weights and same_metrics and killed
    assert amid >= 1, "no start went on from the middle of an epoch: this has shown nothing"


@pytest.mark.ends_its_team
@on("MPI 2")
def test_another_number_of_workers_goes_on_from_the_start_of_the_epoch(tmp_path, team):
    run_dir = tmp_path / "run"
    settings = short(run_dir)[2:]
    assert team.run("training.train_and_stop", 17, *settings) == ["stopped in epoch 2, step 3"] * 2
    # A stopped run holds its folder until its processes have ended.
    team.end()
    done = run_here("train", DEMO, "--set", *settings)
    assert done.returncode == 0, done.stderr
    assert "step 3 of epoch 2" in done.stdout and "with 1 the epoch restarts" in done.stdout
    assert "resuming from epoch 1, step 0 " in done.stdout
