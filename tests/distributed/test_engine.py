"""Which engine connects the workers, and local workers over torch.distributed."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpcdat.distributed import engine, local_mpirun, local_processes
from hpcdat.distributed.engine import change_of_engine, choose_engine, horovod_is_installed
from hpcdat.errors import InputError
from tests.conftest import CHECKOUT, DEMO, run_here


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("launcher", ["none", "mpirun", "srun", "horovodrun", "torchrun", "hpcdat -np"])
def test_auto_takes_what_the_launcher_starts_or_what_is_installed(monkeypatch, launcher, installed):
    monkeypatch.setattr(engine, "horovod_is_installed", lambda: installed)
    fixed = {"horovodrun": "horovod", "torchrun": "torch", "hpcdat -np": "torch"}
    assert choose_engine("auto", launcher) == fixed.get(launcher, "horovod" if installed else "torch")


@pytest.mark.parametrize("launcher", ["none", "mpirun", "srun"])
@pytest.mark.parametrize("setting", ["horovod", "torch"])
def test_a_setting_is_followed(setting, launcher):
    assert choose_engine(setting, launcher) == setting


@pytest.mark.parametrize(
    "setting, launcher", [("horovod", "torchrun"), ("horovod", "hpcdat -np"), ("torch", "horovodrun")]
)
def test_a_launcher_of_the_other_engine_is_refused(setting, launcher):
    with pytest.raises(InputError, match=f"^engine: {setting}: {launcher} starts workers for "):
        choose_engine(setting, launcher)


def test_engine_and_launcher_that_do_not_fit_are_refused_in_one_line(tmp_path, monkeypatch):
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    done = run_here("train", DEMO, "engine=horovod", "--set", f"run_dir={tmp_path}/run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "engine: horovod: torchrun starts workers for torch.distributed; set engine"
    )
    assert list(tmp_path.iterdir()) == []


def test_horovod_counts_as_installed_if_it_is_built_for_torch(tmp_path, monkeypatch):
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    assert not horovod_is_installed()
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "mpi_lib_v2.cpython-311-x86_64-linux-gnu.so").touch()
    assert horovod_is_installed()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not horovod_is_installed()


def test_a_change_of_engine_is_said_with_its_effect():
    assert change_of_engine("torch", "torch", 2) == change_of_engine("", "torch", 2) == ""
    assert change_of_engine("none", "torch", 2) == ""
    assert "over torch.distributed, and continues over Horovod: the sums of two" in change_of_engine(
        "torch", "horovod", 2
    )
    assert "float32 sums may be rounded differently" in change_of_engine("horovod", "torch", 3)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts three workers, each a line of shell in place of hpcdat; the exit code of all."""

    def begin(line):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/bash\n{line}\n")
        python.chmod(0o755)
        monkeypatch.setattr(
            local_processes, "sys", SimpleNamespace(executable=str(python), stderr=sys.stderr)
        )
        return local_processes.launch_local(3, ["train"], on_terminal=False)

    return begin


@pytest.mark.parametrize(
    "line, code",
    [
        ("exit 0", 0),
        ("exit 75", 75),
        ("[ $HPCDAT_RANK = 1 ] && exit 2; exec sleep 60", 2),
        ("[ $HPCDAT_RANK = 2 ] && kill -9 $$; exec sleep 60", 137),
    ],
)
def test_the_first_failure_ends_all_local_workers(start, capfd, line, code):
    begin = time.monotonic()
    assert start(line) == code
    assert time.monotonic() - begin < 30
    said = capfd.readouterr().err
    assert ("hpcdat: worker 2 (process " in said and "ended by signal 9 (SIGKILL)" in said) == (code == 137)


def test_local_workers_know_their_place_and_meet_in_a_file_of_their_user(start, tmp_path):
    line = f'echo "$* $HPCDAT_SIZE $(stat -c %a $(dirname $HPCDAT_STORE))" > {tmp_path}/$HPCDAT_RANK'
    assert start(line) == 0
    assert {(tmp_path / rank).read_text() for rank in "012"} == {"-m hpcdat train 3 700\n"}


STOPPABLE = """
import sys, time
from hpcdat.distributed.stop_signals import StopRequest
time.sleep(0.2)
stop = StopRequest()
open(sys.argv[1], "w").close()
while not stop.requested:
    time.sleep(0.01)
sys.exit(75)
"""


@pytest.fixture
def start_stoppable(start, tmp_path):
    """Starts three workers that stop on request."""
    (tmp_path / "worker.py").write_text(STOPPABLE)
    line = f'export PYTHONPATH={CHECKOUT}; exec "{sys.executable}" {tmp_path}/worker.py'
    return lambda: start(f"{line} {tmp_path}/ready-$HPCDAT_RANK")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_reaches_local_workers(start_stoppable, tmp_path, number):
    def ask():
        while len(list(tmp_path.glob("ready-*"))) < 3:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, number)

    threading.Thread(target=ask).start()
    assert start_stoppable() == 75


@pytest.mark.parametrize("started", [1, 3])
def test_a_request_to_stop_reaches_workers_that_are_starting_or_have_not_been_started(
    start_stoppable, monkeypatch, started
):
    popen, count = subprocess.Popen, iter(range(1, 4))

    def started_and_asked(*arguments, **options):
        process = popen(*arguments, **options)
        if next(count) == started:
            signal.raise_signal(signal.SIGTERM)
        return process

    monkeypatch.setattr(local_processes.subprocess, "Popen", started_and_asked)
    assert start_stoppable() == 75


def held(text):
    """Whether the command holds SIGUSR2 back while it is imported, with such variables."""
    code = """
import signal, sys, types
def main():
    print(signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, []))
sys.modules["hpcdat.cli.app"] = types.SimpleNamespace(main=main)
from hpcdat.cli import main
main()
"""
    variables = dict(pair.split("=") for pair in text.split())
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_only_a_worker_holds_back_its_launchers_request():
    mpi = "PMIX_NAMESPACE=a PMIX_RANK=0 OMPI_COMM_WORLD_RANK=0"
    assert held(f"{mpi} OMPI_COMM_WORLD_SIZE=2") == "True"
    assert held(f"{mpi} OMPI_COMM_WORLD_SIZE=1") == held("") == "False"
    assert held("SLURM_PROCID=0 SLURM_JOB_ID=1") == "False", "a batch script"
    assert held("PMI_RANK=0 PMI_SIZE=2") == "False", "a launcher that is refused"


@pytest.fixture
def start_mpirun(tmp_path, monkeypatch):
    """Starts a Python program in place of mpirun; the exit code of hpcdat."""

    def begin(text):
        program = tmp_path / "mpirun"
        program.write_text(f"#!{sys.executable}\n{text}\n")
        program.chmod(0o755)
        monkeypatch.setattr(local_mpirun, "mpirun_command", lambda workers, command: [program, *command])
        return local_mpirun.launch_local(2, ["train"], on_terminal=False)

    monkeypatch.setattr(local_mpirun, "SECONDS_BETWEEN_CHECKS", 0.05)
    monkeypatch.setattr(local_mpirun, "CHECKS_WITHOUT_WORKERS", 60)
    return begin


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """SIGTERM arrives as soon as mpirun has been started and has written a file; the file."""
    popen, ready = subprocess.Popen, tmp_path / "ready"

    def started_and_asked(*arguments, **options):
        process = popen(*arguments, **options)
        while not ready.exists():
            time.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)
        return process

    monkeypatch.setattr(local_mpirun.subprocess, "Popen", started_and_asked)
    return ready


HANGS = """
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
worker = subprocess.Popen(["sleep", "1"])
open({ready!r}, "w").close()
time.sleep(60)
"""
"""Its worker ends, and remains a zombie."""


def test_an_mpirun_that_hangs_after_its_workers_is_killed(start_mpirun, tmp_path, capfd):
    begin = time.monotonic()
    assert start_mpirun(HANGS.format(ready=str(tmp_path / "ready"))) == 1
    assert 3 < time.monotonic() - begin < 50
    assert capfd.readouterr().err == (
        "hpcdat: mpirun went on without any worker and was killed: how the workers ended is unknown\n"
    )


def test_an_mpirun_that_waits_for_its_workers_is_not_killed(start_mpirun):
    ends = "import subprocess, sys, time; subprocess.run(['sleep', '4']); time.sleep(0.5); sys.exit(2)"
    assert start_mpirun(ends) == 2


def test_an_mpirun_that_hangs_after_a_request_is_killed_soon(start_mpirun, asked, capfd):
    begin = time.monotonic()
    assert start_mpirun(HANGS.format(ready=str(asked))) == 75
    assert 1 < time.monotonic() - begin < 30
    assert "is unknown; the same command resumes" in capfd.readouterr().err


def test_an_mpirun_that_a_request_ends_before_it_handles_it_has_stopped(start_mpirun, asked):
    assert start_mpirun(f"import time; open({str(asked)!r}, 'w').close(); time.sleep(60)") == 75


def test_a_request_is_repeated_for_an_mpirun_that_had_no_workers_yet(start_mpirun, asked):
    handles_the_third = f"""
import signal, subprocess, sys
received = []
def handle(number, frame):
    received.append(number)
    if len(received) == 3:
        sys.exit(75)
signal.signal(signal.SIGUSR2, handle)
open({str(asked)!r}, "w").close()
subprocess.run(["sleep", "60"])
"""
    assert start_mpirun(handles_the_third) == 75


def test_a_second_ctrl_c_ends_local_workers(start, tmp_path):
    def ask():
        while len(list(tmp_path.glob("ready-*"))) < 3:
            time.sleep(0.01)
        for _ in range(2):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.3)

    threading.Thread(target=ask).start()
    line = "trap '' USR2 INT TERM"
    assert start(f"{line}; echo $$ > {tmp_path}/ready-$HPCDAT_RANK; while :; do sleep 0.05; done") == 130
    assert not any(Path("/proc", file.read_text().strip()).exists() for file in tmp_path.glob("ready-*"))
