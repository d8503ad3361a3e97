"""Rows from some workers to others, over real transports."""

import subprocess
import sys

import pytest

from tests.conftest import CHECKOUT
from tests.distributed.checks import check_neighbors
from tests.distributed.ranks import environment, launcher, on

pytestmark = pytest.mark.distributed


@on("MPI 4 divisible", "MPI 3", "torch 4", full=["Gloo 3"])
def test_rows_from_some_workers_to_others(team):
    """Over MPI without an all-to-all."""
    check_neighbors(team.run("collectives.neighbors", team.transport == "MPI"))


@on("MPI 4 divisible")
def test_pairs_do_not_wait_for_each_other(team):
    assert team.run("collectives.pairs_one_after_the_other") == [[1, 2], [0, 3], [3, 0], [2, 1]]


WITH_A_LOST_PARTNER = """
import os, signal, sys
import torch
from hpcdat.distributed.initialization import init_communicator
workers = init_communicator(2.0)
channel = workers.channel("hand-over", neighbors=True)
if workers.rank == 1:
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
rows = torch.ones(2_000_000 if sys.argv[2] == "sends" else 0)
sends, receives = ({1: len(rows)}, {}) if len(rows) else ({}, {1: 5})
channel.ineighbor_all_to_all_v(rows, sends, receives, "examples").wait()
print("handed over")
"""
"""Worker 0 sends to worker 1, or receives from it, which is sent a signal instead."""


GIVES_UP = "has waited 2 s for the other workers (examples)"


@pytest.mark.parametrize(
    "how, role, message",
    [
        ("SIGSTOP", "receives", GIVES_UP),
        pytest.param("SIGSTOP", "sends", GIVES_UP, marks=pytest.mark.full),
        pytest.param("SIGKILL", "receives", "exited on signal 9", marks=pytest.mark.full),
    ],
)
def test_a_lost_partner_ends_the_wait(how, role, message):
    """After the stall timeout if it hangs, as any other collective; at once, by mpirun, if it is killed."""
    done = subprocess.run(
        [*launcher("MPI", 2), sys.executable, "-c", WITH_A_LOST_PARTNER, how, role],
        cwd=CHECKOUT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=90,
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and "handed over" not in said
    assert message in said
