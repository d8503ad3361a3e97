"""What a program does to its ranks is not felt by the next."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hpcdat import seeds
from hpcdat.distributed.single_process import SingleProcess
from tests.distributed.rank import answer_to
from tests.distributed.ranks import on
from tests.distributed.team import RanksFailed, Team

CLEAN = {"dtype": "torch.float32", "seed": seeds.derive(0, "x")}


def pids(team):
    """Process ids of the ranks, which must be as if nothing had been."""
    answers = team.run("misbehaviour.identify")
    assert [{"dtype": answer["dtype"], "seed": answer["seed"]} for answer in answers] == [CLEAN] * team.size
    return [answer["pid"] for answer in answers]


@pytest.mark.distributed
@on("MPI 2")
def test_programs_run_in_the_same_processes_and_their_patches_end_with_them(team):
    before = pids(team)
    assert team.run("misbehaviour.patch_all") == [7, 7]
    assert pids(team) == before


@pytest.mark.distributed
@pytest.mark.ends_its_team
@on("MPI 2")
@pytest.mark.parametrize(
    "how, message",
    [
        ("fail", "rank 1:.*ValueError: no good"),
        ("kill", "rank . has ended"),
        ("hang", "ranks .*1.* took too long"),
    ],
)
def test_after_a_failure_other_processes_take_the_next_program(team, how, message):
    before, begin = pids(team), time.monotonic()
    with pytest.raises(RanksFailed, match=f"(?s){message}"):
        team.run("misbehaviour.spoil", how, timeout=1 if how == "hang" else 60)
    assert time.monotonic() - begin < 30
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in before):
        assert time.monotonic() < deadline, "they live on"
        time.sleep(0.05)
    assert not set(pids(team)) & set(before)


def test_what_a_program_leaves_behind_is_its_failure(monkeypatch):
    workers = SingleProcess()
    workers._watchdog = SimpleNamespace(seconds=60)
    monkeypatch.setattr(seeds, "derive", seeds.derive)
    try:
        answer = answer_to(workers, "misbehaviour.spoil", ["return"])
    finally:
        torch.set_default_dtype(torch.float32)
    assert "leaves behind: torch's default dtype, hpcdat.seeds.derive" in answer["failure"]


@pytest.mark.distributed
def test_a_launcher_that_fails_is_reported_at_once_with_its_words():
    begin = time.monotonic()
    prefix = ["sh", "-c", "echo no slots left; exit 3"]
    with Team("MPI", 2, prefix=prefix) as team, pytest.raises(RanksFailed) as failure:
        team.run("misbehaviour.identify")
    assert "ended with code 3" in str(failure.value) and "no slots left" in str(failure.value)
    assert time.monotonic() - begin < 30
