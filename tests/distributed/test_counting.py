"""A worker that is not worker 0 sends and receives as much with many workers as with few."""

import json

import pytest
import torch

from hpcdat.config.job_file import read_job
from hpcdat.distributed.counting import Counted
from hpcdat.distributed.environment import describe_environment
from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.errors import InputError, WorkerError
from hpcdat.training.roles import assign_roles
from tests.conftest import DEMO

SIZES = (6, 36, 256)


def messages(size, program):
    """The messages of every worker in a program."""

    def counted(rank):
        workers = Counted(rank)
        program(workers)
        return workers.messages

    return run_threads(loopback(size), counted)


def totals(size, program, rank=1):
    """Number of messages of a worker, and bytes it gives and gets."""
    own = messages(size, program)[rank]
    return len(own), sum(message.sent for message in own), sum(message.received for message in own)


PROGRAMS = {
    "a failure that all are asked about": lambda workers: workers.on_all_ranks("work", lambda: None),
    "a result of worker 0": lambda workers: workers.on_rank0("read", lambda: ["the", "same", "for", "all"]),
    "values for worker 0": lambda workers: workers.gather_object([0.25, "host"], "values"),
    "a barrier": lambda workers: workers.barrier("all are there"),
    "the environment": lambda workers: describe_environment(workers, torch.device("cpu")),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_message_of_another_worker_is_as_long_with_many_workers(name):
    few, *more = (totals(size, PROGRAMS[name]) for size in SIZES)
    assert all(many == few for many in more)


def test_worker_0_gets_what_each_sends_once():
    def program(workers):
        workers.gather_object(["text", workers.rank % 10], "values")

    for size in SIZES:
        count, sent, received = totals(size, program, rank=0)
        line = len(json.dumps(["text", 0])) + 1
        assert (count, sent, received) == (1, line, size * line)


def test_a_failure_is_sent_to_all_workers_once_for_each_message():
    """Every third worker fails with one of two messages; all raise both, with the lowest ranks."""

    def program(workers):
        def work():
            if workers.rank % 3:
                raise InputError(f"the file is {'missing' if workers.rank % 3 == 1 else 'damaged'}")

        with pytest.raises(InputError) as raised:
            workers.on_all_ranks("read", work)
        where = [f"worker {rank} on {workers.host}" for rank in (1, 2)]
        assert str(raised.value) == f"the file is missing ({where[0]})\nthe file is damaged ({where[1]})"

    few, *more = (totals(size, program) for size in SIZES)
    assert all(many == few for many in more)


def test_a_failure_of_worker_0_names_it_on_all():
    def program(workers):
        def work():
            raise RuntimeError("disk full")

        with pytest.raises(WorkerError, match=r"^cannot write: disk full \(worker 0 on .*\)$"):
            workers.on_rank0("write", work)

    messages(3, program)


def test_a_role_is_computed_without_the_others():
    settings = ["method=conadv", "concurrent.place=workers", "concurrent.halves=apart", "attack.steps=1"]
    job = read_job(DEMO, settings)
    roles = assign_roles(job, 4095)
    assert len(roles.cell) == 7 and roles.batches == 1755
    assert roles[4094].attacked == (1752, 1753, 1754)
    assert [roles.first_with_adversarial(number) for number in roles[4094].attacked] == [4089, 4091, 4093]
