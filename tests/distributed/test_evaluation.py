"""Evaluations by real workers: shared out, killed, stopped, and gone on with by others."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from hpcdat.record import RunFolder
from tests.conftest import CHECKOUT
from tests.distributed.ranks import environment, run_program

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """What one process finds out, and the batches it measured."""
    folder = tmp_path_factory.mktemp("serial")
    return run_program("evaluation.examine_all", "none", 1, folder, folder / "digits", folder / "kept", 0)[0]


def batches_in(folder, name=""):
    """Batches that are measured: lines of files, but for the first line of each file that is no part."""
    return sum(
        file.read_bytes().count(b"\n") - (file.suffix == ".jsonl") for file in folder.glob(f"{name}*.jsonl*")
    )


def test_the_serial_evaluation_means_something(serial):
    sections = serial["sections"]
    assert 0 < sections["autoattack"]["robust"]["square"] < sections["accuracy"]["ra"] + 0.2
    assert sections["autoattack"]["aa"] is None, "shortened attacks are not AA"
    curve = [ra for _, ra in sections["sweep-eps"]["curve"]]
    assert curve[0] == sections["accuracy"]["ta"] > curve[1] > curve[2]
    assert len(serial["written"]) == 3 * 15 + 5


@pytest.mark.parametrize("transport, size", [("MPI", 2), ("Gloo", 3)])
def test_more_workers_find_exactly_the_same(tmp_path, serial, transport, size):
    answers = run_program(
        "evaluation.examine_all", transport, size, tmp_path, tmp_path / "d", tmp_path / "kept", 0
    )
    assert all(answer["sections"] == serial["sections"] for answer in answers)
    written = [batch for answer in answers for batch in answer["written"]]
    assert len(written) == len(set(written)) == len(serial["written"])
    assert all(answer["written"] for answer in answers)


def test_killed_evaluations_go_on_with_any_number_of_workers(tmp_path, serial):
    """kill -9 in the midst of it; what was done is not done again."""
    for size, kill_after in ((2, 12), (1, 12)):
        with pytest.raises(AssertionError):
            run_program(
                "evaluation.examine_all", "MPI", size, tmp_path, tmp_path / "d", tmp_path / "kept", kill_after
            )
    before = batches_in(tmp_path / "kept")
    assert 24 <= before <= 36
    answers = run_program("evaluation.examine_all", "MPI", 3, tmp_path, tmp_path / "d", tmp_path / "kept", 0)
    assert all(answer["sections"] == serial["sections"] for answer in answers)
    assert sum(len(answer["written"]) for answer in answers) == len(serial["written"]) - before


def test_unequal_shares_look_like_no_stall_and_a_failure_or_stop_ends_all_at_once(tmp_path):
    """Worker 1 takes five seconds, and nobody may wait longer than two without hearing of it."""
    answers = run_program("evaluation.unequal_shares", "MPI", 3, tmp_path)
    assert [answer["end"][0] for answer in answers] == [0, 1, 2]
    assert all(answer["end"][1] > 4.5 for answer in answers), "all wait for the last one"
    for answer in answers:
        (kind, told, everywhere), seconds = answer["failure"]
        assert kind == "WorkerError" and everywhere and seconds < 4.5
        assert re.fullmatch(r"cannot work: no space left \(worker 1 on .*\)", told)
        (kind, told, everywhere), seconds = answer["stop"]
        assert kind == "Stopped" and everywhere and seconds < 4.5
        assert told == "stopped; the same command goes on to work"
        assert answer["evaluation"] == [
            "Stopped",
            "stopped; the same command goes on to measure accuracy",
            True,
        ]


def test_sigterm_leaves_what_was_measured_and_the_same_command_goes_on(tmp_path, run_dir):
    command = [sys.executable, "-m", "hpcdat", "evaluate", str(run_dir), "-np", "2", "--sweep-steps", "1,200"]
    command += ["--set", "evaluation.batch_size=10", "data.test_images=200"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=CHECKOUT, env=environment(), stdout=log, stderr=log)
        kept = RunFolder(run_dir).outcomes_folder
        for _ in range(600):
            if batches_in(kept, "sweep-steps") > 2:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 75, (tmp_path / "log").read_text()
    assert "stopped; the same command goes on to measure sweep-steps" in (tmp_path / "log").read_text()
    before = batches_in(kept, "sweep-steps")
    assert 2 < before < 20
    done = subprocess.run(command, cwd=CHECKOUT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "accuracy: 20 of 20 batches are already measured" in done.stdout
    assert f"sweep-steps: {before} of 20 batches are already measured" in done.stdout
    assert "ra-over-steps.svg" in done.stdout
    sections = json.loads(RunFolder(run_dir).evaluation_file.read_text())["sections"]
    assert sections["sweep-steps"]["images"] == 200
