"""Settings and images shared by the tests."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

# As in the ranks of the distributed tests: two numbers of threads add in two orders, and what takes
# milliseconds takes longer with threads that wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
import torch
from filelock import FileLock

if not torch.cuda.is_available():
    # Triton reads it when it is imported, and then interprets its kernels.
    os.environ["TRITON_INTERPRET"] = "1"

from typer.testing import CliRunner

from hpcdat.cli.app import app
from hpcdat.commands.train import train
from hpcdat.config.job_file import read_job
from hpcdat.distributed import uneven_work
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.storage.run_folder import RunFolder

# Python keeps compiled code, whatever the shell says: without it, each pytest compiles all tests anew, and
# each process that a test starts the package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

hypothesis.settings.register_profile("hpcdat", deadline=None, derandomize=True, max_examples=100)
hypothesis.settings.load_profile("hpcdat")

CHECKOUT = Path(__file__).resolve().parents[1]
DEMO = CHECKOUT / "jobs" / "demo.yaml"


class Never:
    """A stop request that is never made."""

    requested = False


def python_threads():
    """Threads that Python started. Others are listed for ever, once one of them has started a thread."""
    return {thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}


def run_here(*arguments):
    """Run the command hpcdat in this process, as its only worker; exit code and output as of a process."""

    def leave(code):
        raise SystemExit(code)

    handlers = {number: signal.getsignal(number) for number in StopRequest.SIGNALS}
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "_exit", leave)
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


@pytest.fixture(scope="session", autouse=True)
def _one_cache(tmp_path_factory):
    """Nothing is read from or written to the user's own cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _short_pauses():
    """Workers in this process wait after each evaluation for the next round, however short it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uneven_work, "SECONDS_BETWEEN_ROUNDS", 0.01)
        yield


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folder of a run of the demo, shortened; not to be written to. Processes of pytest-xdist share it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    run_dir = folder / "trained" / "run"
    with FileLock(folder / "trained.lock"):
        # A process that has failed has left a run without a result, which this one continues.
        if not RunFolder(run_dir).result_file.exists():
            short = ["epochs=5", "attack.steps=4", "schedule.decay_epochs=[4]", "evaluation.every=0"]
            train(read_job(DEMO, [f"run_dir={run_dir}", *short]), SingleProcess(), Never())
    return run_dir


@pytest.fixture
def run_dir(trained, tmp_path):
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "run")
