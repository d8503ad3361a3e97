"""Concurrent adversarial learning in every placement, against a simulation that stores old weights."""

import pytest

from hpcdat.data.digits import write_digits
from tests.distributed.ranks import run_program

PLACEMENTS = {
    "one worker": (1, 1, []),
    "two workers": (2, 2, []),
    "a pair": (2, 1, ["concurrent.place=workers"]),
    "halves apart": (2, 1, ["concurrent.halves=apart"]),
    "halves and attack apart": (3, 1, ["concurrent.place=workers", "concurrent.halves=apart"]),
    "one attack worker for two": (3, 2, ["concurrent.place=workers", "concurrent.update_workers=2"]),
    "two pairs": (4, 2, ["concurrent.place=workers", "concurrent.update_workers=1"]),
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "digits"
    write_digits(root)
    return root


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Sums in a convolution are taken in another order with other numbers of threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory, digits):
    """Fingerprints by number of batches and delay; made once."""
    known = {}

    def of(*key):
        if key not in known:
            folder = tmp_path_factory.mktemp("simulated")
            known[key] = run_program("simulate_concurrently", "none", 1, folder, digits, *key)[0]
        return known[key]

    return of


@pytest.mark.parametrize(
    "placement, delay, transport",
    [
        ("one worker", 0, "none"),
        ("one worker", 1, "none"),
        ("one worker", 2, "none"),
        ("two workers", 1, "Gloo"),
        ("a pair", 1, "MPI"),
        ("a pair", 2, "Gloo"),
        ("halves apart", 0, "MPI"),
        ("halves apart", 1, "Gloo"),
        ("halves and attack apart", 1, "MPI"),
        ("halves and attack apart", 2, "MPI"),
        ("one attack worker for two", 1, "Gloo"),
        ("one attack worker for two", 2, "MPI"),
        ("two pairs", 1, "MPI"),
    ],
)
def test_weights_are_those_of_a_plain_simulation(tmp_path, digits, simulated, placement, delay, transport):
    """Bit for bit, over two epochs with a short last batch, running statistics included."""
    size, batches, settings = PLACEMENTS[placement]
    settings = [*settings, f"concurrent.delay={delay}"]
    answers = run_program(
        "train_concurrently", transport, size, tmp_path, digits, tmp_path / "run", 0, *settings
    )
    assert all(answer == answers[0] for answer in answers)
    expected = simulated(batches, delay)
    assert {name for name in expected if answers[0][name] != expected[name]} == set()


def test_the_delay_matters(simulated):
    weights = [simulated(1, delay)["1.classifier.weight"] for delay in (0, 1, 2)]
    assert len(set(weights)) == 3


def test_disadv_is_conadv_without_delay(tmp_path, digits, simulated):
    (answer,) = run_program(
        "train_concurrently", "none", 1, tmp_path, digits, tmp_path / "run", 0, "method=disadv"
    )
    assert answer == simulated(1, 0)


@pytest.mark.parametrize(
    "placement, delay, stop_after",
    [("one worker", 2, 2), ("one worker", 1, 8), ("a pair", 2, 3), ("halves and attack apart", 1, 4)],
)
def test_what_is_in_flight_survives_a_stop(tmp_path, digits, simulated, placement, delay, stop_after):
    size, batches, settings = PLACEMENTS[placement]
    settings = [*settings, f"concurrent.delay={delay}"]
    transport = "MPI" if size > 1 else "none"
    answers = run_program(
        "train_concurrently", transport, size, tmp_path, digits, tmp_path / "run", stop_after, *settings
    )
    assert answers == [simulated(batches, delay)] * size
