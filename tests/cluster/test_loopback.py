"""M workers in one process: the same answers as over a transport, and no wait without an end."""

import threading

import pytest
import torch

from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.loopback import loopback, run_in_lockstep, run_threads
from hpcdat.errors import WorkerError
from tests.distributed.checks import check_agreement, check_collectives, check_neighbors
from tests.distributed.programs.collectives import agreement, every_collective, neighbors


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_collectives(size):
    check_collectives(run_threads(loopback(size), every_collective), ("none", "loopback"))


@pytest.mark.parametrize("size", [2, 3, 8])
def test_rows_from_some_workers_to_others(size):
    check_neighbors(run_threads(loopback(size), neighbors))


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_models_are_made_equal_checked_and_their_batch_norm_averaged(size):
    check_agreement(run_threads(loopback(size), agreement))


@pytest.mark.parametrize("forgotten", sorted(Communicator.__abstractmethods__))
def test_a_collective_that_an_implementation_forgets_is_an_error(forgotten):
    """It must not fall back to the identity of a single process, which nobody would notice."""
    all_but_one = {name: None for name in Communicator.__abstractmethods__ if name != forgotten}
    with pytest.raises(TypeError, match=forgotten):
        type("Forgetful", (Communicator,), all_but_one)("none")


def test_a_rank_that_fails_ends_the_waits_of_the_others():
    def program(rank):
        if rank.rank == 1:
            raise ValueError("spoilt")
        rank.all_gather_object(None, "all there")

    with pytest.raises(ValueError, match="spoilt"):
        run_threads(loopback(3, timeout=30), program)


def test_a_rank_that_stays_away_is_named():
    def program(rank):
        if rank.rank != 1:
            rank.all_gather_object(None, "all there")

    with pytest.raises(WorkerError, match=r"ranks \[1\] have not called it: timed out after 0.1 s"):
        run_threads(loopback(3, timeout=0.1), program)


def test_different_collectives_by_one_name_are_an_error():
    one, other = loopback(2)
    one.iall_reduce([torch.ones(1)], "x")
    with pytest.raises(WorkerError, match="x: rank 1 calls max, another rank sum"):
        other.iall_reduce_max(torch.ones(1), "x")


def test_lockstep_ends_where_ranks_wait_for_each_other():
    def exchange(rank):
        yield rank.iall_reduce([torch.ones(1)], f"of rank {rank.rank}")

    with pytest.raises(WorkerError, match=r"ranks \[0, 1\] wait for each other"):
        run_in_lockstep([exchange(rank) for rank in loopback(2)])


def test_nothing_is_shared_between_ranks():
    """A rank may write into what it got, and into what it gave once the collective is over."""

    def program(rank):
        row = torch.full((2,), float(rank.rank))
        everybody = rank.iall_gather(row, "rows").wait()
        largest = rank.all_reduce_max(row, "largest")
        everybody.add_(100), largest.add_(100)
        together.wait()
        return rank.ibroadcast(row, "first").wait().tolist(), rank.all_reduce_max(row, "largest").tolist()

    together = threading.Barrier(2)
    assert run_threads(loopback(2), program) == [([0.0, 0.0], [0.0, 0.0])] * 2
