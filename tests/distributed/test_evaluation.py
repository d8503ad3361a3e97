"""Evaluations by real workers: shared out, killed, stopped, and gone on with by others."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from hpcdat.storage.run_folder import RunFolder
from tests.conftest import CHECKOUT
from tests.distributed.rank import run_alone
from tests.distributed.ranks import environment, on
from tests.distributed.team import RanksFailed, Team

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="session")
def serial(digits, tmp_path_factory):
    """What one process finds out, and the batches it measured."""
    return run_alone("evaluation.examine_all", digits, tmp_path_factory.mktemp("serial") / "kept", 0)


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
    assert len(serial["written"]) == 3 * 15 + 2 * 5


@on(full=["Gloo 3", "MPI 2"])
def test_more_workers_find_exactly_the_same(tmp_path, digits, serial, team):
    answers = team.run("evaluation.examine_all", digits, tmp_path / "kept", 0)
    assert all(answer["sections"] == serial["sections"] for answer in answers)
    written = [batch for answer in answers for batch in answer["written"]]
    assert len(written) == len(set(written)) == len(serial["written"])
    assert all(answer["written"] for answer in answers)


@pytest.mark.ends_its_team
@pytest.mark.parametrize("others", [[], pytest.param([2], marks=pytest.mark.full)], ids=str)
@on("MPI 3")
def test_killed_evaluations_go_on_with_any_number_of_workers(tmp_path, digits, serial, team, others):
    """kill -9 in the midst of it, of three workers and then of others; what was done is not done again."""
    for killed in (team, *(Team("MPI", size) for size in others)):
        with pytest.raises(RanksFailed, match="has ended"):
            killed.run("evaluation.examine_all", digits, tmp_path / "kept", 8)
    before = batches_in(tmp_path / "kept")
    assert 8 * (1 + len(others)) <= before <= 8 * (team.size + sum(others))
    answer = run_alone("evaluation.examine_all", digits, tmp_path / "kept", 0)
    assert answer["sections"] == serial["sections"]
    assert len(answer["written"]) == len(serial["written"]) - before


@on("MPI 3")
def test_unequal_shares_look_like_no_stall_and_a_failure_or_stop_ends_all_at_once(team):
    """Rank 1 takes four seconds, and nobody may wait longer than two without hearing of it."""
    answers = team.run("evaluation.unequal_shares")
    assert [answer["end"]["result"] for answer in answers] == [0, 1, 2]
    # All are processes of one machine, whose monotonic clock is the same for all.
    last = answers[1]["end"]["worked_until"]
    assert all(answer["end"]["returned_at"] >= last for answer in answers), "all wait for the last one"
    for answer in answers:
        failure, stop = answer["failure"], answer["stop"]
        assert failure["kind"] == "WorkerError" and failure["everywhere"] and failure["seconds"] < 3.5
        assert re.fullmatch(r"cannot work: no space left \(worker 1 on .*\)", failure["text"])
        assert stop["kind"] == "Stopped" and stop["everywhere"] and stop["seconds"] < 3.5
        assert stop["text"] == "stopped; rerun the same command to work"
        assert answer["evaluation"] == {
            "kind": "Stopped",
            "text": "stopped; rerun the same command to measure accuracy",
            "everywhere": True,
        }


def test_sigterm_leaves_what_was_measured_and_the_same_command_goes_on(finished, tmp_path):
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
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
    assert "stopped; rerun the same command to measure sweep-steps" in (tmp_path / "log").read_text()
    before = batches_in(kept, "sweep-steps")
    assert 2 < before < 20
    done = subprocess.run(command, cwd=CHECKOUT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "accuracy: 20 of 20 batches are already measured" in done.stdout
    assert f"sweep-steps: {before} of 20 batches are already measured" in done.stdout
    assert "ra-over-steps-2.svg" in done.stdout
    (other,) = json.loads(RunFolder(run_dir).evaluation_file.read_text())["others"]
    assert other["sections"]["sweep-steps"]["images"] == 200


@on("MPI 2")
def test_a_model_in_memory_is_evaluated_alike_by_any_number_of_workers(team):
    answers = team.run("evaluation.in_memory")
    alone = run_alone("evaluation.in_memory")
    assert 0 < alone["ra"] < 1 and alone["error"] is None
    for answer in answers:
        assert answer.pop("error").startswith("model: not the same on all workers")
        assert answer == {key: alone[key] for key in answer}
