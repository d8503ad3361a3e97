"""A disk that fills up: a run ends with a message and whole checkpoints, and resumes when there is space."""

import contextlib
import re
import subprocess
import sys

import pytest

from hpcdat.data.digits import write_digits
from hpcdat.storage.run_folder import RunFolder
from tests.cluster.nodes import SETTINGS, all_whole, finish, same, weights
from tests.conftest import CHECKOUT, DEMO, run_here

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def small_disk(tmp_path):
    """Two megabytes: two checkpoints, and no room to write a third beside them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True)
    if done.returncode:
        pytest.skip(f"NO FULL DISK HERE: {done.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def train_here(run_dir):
    small = ["data.train_images=300", "data.test_images=50"]
    return run_here("train", DEMO, "--set", f"run_dir={run_dir}", *SETTINGS, *small)


@pytest.fixture(
    params=["one process", pytest.param("three nodes", marks=[pytest.mark.distributed, pytest.mark.full])]
)
def training(request, tmp_path):
    """How runs are trained, where their first worker is, and a run that nothing happens to."""
    if request.param == "three nodes":
        cluster = request.getfixturevalue("cluster")
        return cluster.train, " (worker 0 on node1)", request.getfixturevalue("undisturbed")
    train_here(tmp_path / "undisturbed")
    return train_here, "", RunFolder(tmp_path / "undisturbed")


def half_written(folder):
    return list(folder.checkpoints.folder.glob(".*"))


def fill(file):
    """Take all that is left of a disk."""
    with file.open("wb", buffering=0) as rest, contextlib.suppress(OSError):
        while True:
            rest.write(bytes(4096))


def test_a_disk_that_is_full(training, small_disk):
    train, where, undisturbed = training
    run_dir = small_disk / "run"
    done = train(run_dir)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"No space left on device: '{run_dir}/checkpoints/epoch-new.pt'{where}" in done.stderr
    folder = RunFolder(run_dir)
    assert all_whole(folder) and not half_written(folder) and folder.newest_checkpoint().epoch == 2
    rest = small_disk / "something else"
    fill(rest)
    done = train(run_dir)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"No space left on device: '{run_dir}/job.yaml'{where}" in done.stderr
    again = [sys.executable, "-m", "hpcdat.slurm.preemption", str(run_dir), "1", "no"]
    decided = subprocess.run(again, cwd=CHECKOUT, capture_output=True, text=True)
    assert decided.returncode == 1 and "Traceback" not in decided.stderr
    assert "no requeue: failed (code 1): epoch 2, step 0" in decided.stderr
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    rest.rename(folder.checkpoints.folder / ".step.pt-killed")
    done = train(run_dir)
    assert done.returncode == 0, done.stderr
    assert "resuming from epoch 2, step 0" in done.stdout
    assert all_whole(folder) and not half_written(folder) and same(weights(folder), weights(undisturbed))


@pytest.mark.distributed
@pytest.mark.full
def test_a_scratch_disk_that_is_full(cluster, undisturbed, small_disk, tmp_path):
    """Named with its node before anything is trained; with room, training gives the same weights."""
    write_digits(tmp_path / "digits")
    fill(small_disk / "something else")
    data = ["data.source=folder", f"data.root={tmp_path / 'digits'}", f"data.stage={small_disk}"]
    done = finish(cluster.start(tmp_path / "run", *data))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(rf"data.stage: {small_disk}.*\(worker \d on node\d\)", done.stderr), done.stderr
    assert not list(small_disk.rglob("copies*"))
    (small_disk / "something else").unlink()
    done = finish(cluster.start(tmp_path / "run", *data))
    assert done.returncode == 0, done.stderr
    assert list(small_disk.rglob("copies*.images"))
    assert same(weights(RunFolder(tmp_path / "run")), weights(undisturbed))
