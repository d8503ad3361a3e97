"""Concurrent adversarial learning in every placement, against a simulation that stores old weights."""

import pytest

from hpcdat.data.digits import write_digits
from tests.distributed.ranks import run_program

PLACEMENTS = {
    "one worker": ("0,1,2", "none", 1, 1, []),
    "DisAdv": ("0", "none", 1, 1, ["method=disadv"]),
    "two workers": ("0,1,2", "Gloo", 2, 2, []),
    "a pair": ("1,2", "MPI", 2, 1, ["concurrent.place=workers"]),
    "a pair over Gloo": ("1,2", "Gloo", 2, 1, ["concurrent.place=workers"]),
    "halves apart": ("0,1,2", "MPI", 2, 1, ["concurrent.halves=apart"]),
    "halves and attack apart": ("1,2", "MPI", 3, 1, ["concurrent.place=workers", "concurrent.halves=apart"]),
    "one attack worker for two": (
        "1,2",
        "Gloo",
        3,
        2,
        ["concurrent.place=workers", "concurrent.update_workers=2"],
    ),
    "two pairs": ("1,2", "MPI", 4, 2, ["concurrent.place=workers", "concurrent.update_workers=1"]),
}
"""Delays, transport, workers, batches of a step and settings."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "digits"
    write_digits(root)
    return root


@pytest.fixture(scope="module")
def simulated(tmp_path_factory, digits):
    """Fingerprints by number of batches and delay; made once."""
    known = {}

    def of(*key):
        if key not in known:
            folder = tmp_path_factory.mktemp("simulated")
            known[key] = run_program("concurrent.simulate_concurrently", "none", 1, folder, digits, *key)[0]
        return known[key]

    return of


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_weights_are_those_of_a_plain_simulation(tmp_path, digits, simulated, placement):
    """Bit for bit, over two epochs with a short last batch, running statistics included.

    With examples in flight stopped and gone on with, too. tau = 0 is DisAdv.
    """
    delays, transport, size, batches, settings = PLACEMENTS[placement]
    answers = run_program(
        "concurrent.train_concurrently",
        transport,
        size,
        tmp_path,
        digits,
        tmp_path / "runs",
        delays,
        *settings,
    )
    assert all(answer == answers[0] for answer in answers)
    for delay, weights in answers[0].items():
        expected = simulated(batches, int(delay))
        for how, found in zip(("undisturbed", "stopped"), weights, strict=True):
            assert {name for name in expected if found[name] != expected[name]} == set(), (delay, how)


def test_the_delay_matters(simulated):
    weights = [simulated(1, delay)["1.classifier.weight"] for delay in (0, 1, 2)]
    assert len(set(weights)) == 3
