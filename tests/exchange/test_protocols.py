"""Every protocol with M workers in one process, against NumPy, bit for bit."""

import numpy as np
import pytest
import torch

from hpcdat.config.sections import Exchange
from hpcdat.distributed.loopback import loopback, run_in_lockstep, run_threads
from hpcdat.exchange.protocols import Draw, ErrorFeedback
from hpcdat.exchange.resolve import make_plan
from tests.distributed.programs.exchange import EXCHANGES, exchanges, nodes_of_two, vector_of
from tests.exchange.checks import check_against_numpy


@pytest.mark.parametrize("size", range(1, 9))
def test_every_worker_gets_the_sum_that_numpy_finds(size):
    """Advanced in lockstep, so that no two workers of a protocol may call different collectives."""
    ranks, sums = loopback(size), []
    for number, settings in enumerate(EXCHANGES):
        coded = settings["bits"] not in (32, "float16")
        feedbacks = [ErrorFeedback() if coded else None for _ in ranks]
        plans = [
            make_plan(Exchange(**{"block": 64, "error_feedback": coded} | settings), rank) for rank in ranks
        ]
        sums.append([])
        for step in range(2):
            draw = Draw(5, 1, step, number, torch.device("cpu"))
            totals = run_in_lockstep(
                [
                    plan.protocol(rank, torch.from_numpy(vector_of(rank.rank, step)), draw, "sum", feedback)
                    for plan, rank, feedback in zip(plans, ranks, feedbacks, strict=True)
                ]
            )
            assert all(total.numpy().tobytes() == totals[0].numpy().tobytes() for total in totals)
            sums[-1].append(totals[0].numpy().tobytes())
            for feedback in feedbacks:
                if feedback:
                    feedback.commit(counts=True)
    check_against_numpy(sums, size)


def test_inside_a_node_nothing_is_rounded(monkeypatch):
    """Three nodes of two: the sum of two is exact; across nodes 8 bits of a block's largest."""
    answers = run_threads(loopback(6), lambda rank: nodes_of_two(rank, monkeypatch))
    assert all(answer == answers[0] for answer in answers)
    exact = np.arange(100.0) * 21
    for name, total in answers[0].items():
        step = 0 if name.endswith(" 32") else 3 * 1089 / 127
        assert np.abs(np.array(total) - exact).max() <= step, name


def test_threads_exchange_as_processes_do():
    answers = run_threads(loopback(3), exchanges)
    assert answers[1:] == answers[:1] * 2
