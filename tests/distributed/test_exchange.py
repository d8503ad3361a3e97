"""Every protocol over real transports, against NumPy, bit for bit."""

import numpy as np
import pytest

from tests.distributed.programs import EXCHANGES, vector_of
from tests.distributed.ranks import run_program
from tests.exchange import oracle

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    "transport, size",
    [("none", 1), *((transport, size) for transport in ("MPI", "Gloo") for size in (2, 3, 4, 5, 8))],
)
def test_every_worker_gets_the_sum_that_numpy_finds(tmp_path, transport, size):
    answers = run_program("exchanges", transport, size, tmp_path)
    assert all(answer == answers[0] for answer in answers)
    sums = iter(answers[0])
    for number, settings in enumerate(EXCHANGES):
        memories = [{} for _ in range(size)]
        for step in range(2):
            total = np.frombuffer(bytes.fromhex(next(sums)), dtype=np.float32)
            vectors = [vector_of(rank, step) for rank in range(size)]
            expected = oracle.expected(settings, vectors, memories, step=step, bucket=number)
            if settings["protocol"] == "ring" and settings["bits"] in (32, "float16"):
                # Transports add floating-point numbers in orders of their own.
                scale = np.abs(vectors).sum(0) * (1e-6 if settings["bits"] == 32 else 4e-3) + 1e-30
                assert (np.abs(total - expected) <= scale).all(), settings
            else:
                assert total.tobytes() == expected.astype(np.float32).tobytes(), (settings, step)


@pytest.mark.parametrize("transport", ["MPI", "Gloo"])
def test_inside_a_node_nothing_is_rounded(tmp_path, transport):
    """Two nodes of two: the sum of two is exact; across nodes 8 bits of a block's largest."""
    answers = run_program("nodes_of_two", transport, 4, tmp_path)
    assert all(answer == answers[0] for answer in answers)
    exact = np.arange(100.0) * 10
    for name, total in answers[0].items():
        step = 0 if name.endswith(" 32") else 2 * 990 / 127
        assert np.abs(np.array(total) - exact).max() <= step, name
