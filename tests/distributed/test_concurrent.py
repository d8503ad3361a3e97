"""Concurrent adversarial learning in every placement, against a simulation that stores old weights."""

import pytest

from tests.distributed.programs.concurrent import simulate_concurrently
from tests.distributed.rank import run_alone

ALONE = {"one worker": ("0,1,2", []), "DisAdv": ("0", ["method=disadv"])}
"""Delays and settings of one worker; bit for bit, over two epochs."""

PLACEMENTS = {
    "two workers": ("0,1,2", "Gloo 2", 2, []),
    "a pair": ("1,2", "MPI 2", 1, ["concurrent.place=workers"]),
    "a pair over Gloo": ("1,2", "Gloo 2", 1, ["concurrent.place=workers"]),
    "a pair over torch": ("1,2", "torch 2", 1, ["concurrent.place=workers"]),
    "halves apart": ("0,1,2", "MPI 2", 1, ["concurrent.halves=apart"]),
    "halves and attack apart": ("1,2", "MPI 3", 1, ["concurrent.place=workers", "concurrent.halves=apart"]),
    "one attack worker for two": (
        "2",
        "Gloo 3",
        2,
        ["concurrent.place=workers", "concurrent.update_workers=2"],
    ),
    "two pairs over torch": (
        "1",
        "torch 4",
        2,
        ["concurrent.place=workers", "concurrent.update_workers=1"],
    ),
    "two pairs": ("1", "MPI 4 divisible", 2, ["concurrent.place=workers", "concurrent.update_workers=1"]),
}
"""Delays, team, batches of a step and settings."""

FULL = ("a pair over Gloo", "a pair over torch", "two pairs")
"""Those that only `make test-full` trains."""


@pytest.fixture(scope="session")
def simulated(digits):
    """Fingerprints by number of batches and delay; made once."""
    known = {}

    def of(*key):
        if key not in known:
            known[key] = simulate_concurrently(digits, *key)
        return known[key]

    return of


def check(answer, batches, simulated):
    for delay, weights in answer.items():
        expected = simulated(batches, int(delay))
        for how, found in zip(("undisturbed", "stopped"), weights, strict=True):
            assert {name for name in expected if found[name] != expected[name]} == set(), (delay, how)


@pytest.mark.parametrize("name", ALONE)
def test_one_workers_weights_are_those_of_a_plain_simulation(tmp_path, digits, simulated, name):
    """As below."""
    delays, settings = ALONE[name]
    answer = run_alone("concurrent.train_concurrently", digits, tmp_path, delays, *settings)
    check(answer, 1, simulated)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "team, placement",
    [
        pytest.param(team, placement, marks=[pytest.mark.full] if placement in FULL else [])
        for placement, (_, team, _, _) in PLACEMENTS.items()
    ],
    indirect=["team"],
    ids=PLACEMENTS,
)
def test_weights_are_those_of_a_plain_simulation(tmp_path, digits, simulated, team, placement):
    """Bit for bit, over two epochs with a short last batch, running statistics included.

    With examples in flight stopped and gone on with, too. tau = 0 is DisAdv.
    """
    delays, _, batches, settings = PLACEMENTS[placement]
    answers = team.run("concurrent.train_concurrently", digits, tmp_path / "runs", delays, *settings)
    assert all(answer == answers[0] for answer in answers)
    check(answers[0], batches, simulated)


def test_the_delay_matters(simulated):
    weights = [simulated(1, delay)["1.classifier.weight"] for delay in (0, 1, 2)]
    assert len(set(weights)) == 3
