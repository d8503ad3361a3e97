"""Every protocol over real transports, against NumPy, bit for bit."""

import numpy as np
import pytest

from hpcdat.data.digits import write_digits
from tests.distributed.programs.exchange import EXCHANGES, vector_of
from tests.distributed.ranks import run_program
from tests.exchange import oracle

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    "transport, size",
    [("none", 1), *((transport, size) for transport in ("MPI", "Gloo") for size in (2, 3, 4, 5, 8))],
)
def test_every_worker_gets_the_sum_that_numpy_finds(tmp_path, transport, size):
    answers = run_program("exchange.exchanges", transport, size, tmp_path)
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
    answers = run_program("exchange.nodes_of_two", transport, 4, tmp_path)
    assert all(answer == answers[0] for answer in answers)
    exact = np.arange(100.0) * 10
    for name, total in answers[0].items():
        step = 0 if name.endswith(" 32") else 2 * 990 / 127
        assert np.abs(np.array(total) - exact).max() <= step, name


@pytest.mark.parametrize("transport", ["MPI", "Gloo"])
def test_auto_is_settled_once_for_all_workers_and_for_all_starts(tmp_path, transport):
    answers = run_program("exchange.settled_exchange", transport, 3, tmp_path, tmp_path / "exchange.json")
    settings, altered, other, links, _ = answers[0]
    assert all(answer[:4] == answers[0][:4] for answer in answers)
    assert settings["protocol"] != "auto" and settings["bits"] in (32, 8) and links == 5
    assert altered == 5, "the record counts"
    assert other in (32, 8), "another number of workers measures anew"
    said = answers[0][-1]
    assert [line for line in said if "measuring" in line] == ["exchange: measuring links and codecs"] * 2
    assert "ms an iteration predicted" in said[1]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "digits"
    write_digits(root)
    return root


@pytest.mark.parametrize(
    "settings",
    [
        ["exchange.bits=8"],
        ["exchange.bits=4", "exchange.protocol=sharded_server", "exchange.two_sided=true"],
        ["exchange.bits=1", "exchange.protocol=allgather", "exchange.error_feedback=true"],
        ["exchange.bits=32", "exchange.protocol=parameter_server"],
    ],
    ids=lambda settings: " ".join(settings).replace("exchange.", ""),
)
def test_a_gradient_that_is_not_a_number_is_a_step_skipped_by_all(tmp_path, digits, settings):
    answers = run_program(
        "training.one_gradient_is_not_a_number", "MPI", 2, tmp_path, digits, tmp_path / "run", *settings
    )
    assert answers == [[1, True]] * 2


def test_8_bits_train_to_the_same_accuracy(tmp_path, digits):
    """Digits, 8 epochs, three seeds, two workers; within two points of TA and four of RA."""
    means = {}
    for name, settings in {
        "float32": [],
        "one-sided": ["exchange.bits=8"],
        "two-sided": ["exchange.bits=8", "exchange.protocol=sharded_server", "exchange.two_sided=true"],
    }.items():
        run_dir = tmp_path / name
        answers = run_program("training.train_seeds", "MPI", 2, run_dir, digits, run_dir / "run", *settings)
        means[name] = np.mean(answers[0], axis=0)
    exact = means.pop("float32")
    assert exact[0] > 0.95 and exact[1] > 0.5
    for name, (ta, ra) in means.items():
        assert abs(ta - exact[0]) < 0.02 and abs(ra - exact[1]) < 0.04, (name, ta, ra, exact)


@pytest.mark.parametrize("transport", ["MPI", "Gloo"])
def test_any_horovod_script_can_use_the_quantizer(tmp_path, transport):
    answers = run_program("exchange.drop_in", transport, 3, tmp_path, "Sum")
    first, last, weights = zip(*answers, strict=True)
    assert max(last) < 0.05 * min(first)
    assert weights[0] == weights[1] == weights[2]


def test_a_horovod_script_that_averages_codes_is_told(tmp_path):
    for answer in run_program("exchange.drop_in", "MPI", 2, tmp_path, "Average"):
        assert "needs hvd.DistributedOptimizer(..., op=hvd.Sum)" in answer
