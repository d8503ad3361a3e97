"""Real ranks, oversubscribed, over MPI and over Gloo."""

import numpy as np
import pytest

from hpcdat.data.digits import write_digits
from tests.distributed.ranks import TRANSPORTS, run_program

pytestmark = pytest.mark.distributed

TEAMS = [(transport, size) for transport in TRANSPORTS for size in (2, 4)]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "digits"
    write_digits(root)
    return root


@pytest.mark.parametrize("transport, size", TEAMS)
def test_collectives(tmp_path, transport, size):
    answers = run_program("collectives.every_collective", transport, size, tmp_path)
    total = size * (size + 1) / 2
    for rank, answer in enumerate(answers):
        assert (answer["rank"], answer["size"], answer["transport"]) == (rank, size, transport)
        assert answer["local"] == [rank, size, 1]
        assert answer["sums"] == [[total] * 3, [total - size]]
        assert answer["alltoall"] == [[2 * rank + 100 * r, 2 * rank + 1 + 100 * r] for r in range(size)]
        assert answer["allgather"] == [[r, r] for r in range(size)]
        assert answer["gather"] == ([[r, r] for r in range(size)] if rank == 0 else [])
        mates = list(range(rank % 2, size, 2))
        place = [mates.index(rank), len(mates)]
        assert answer["team"] == [*place, [sum(mates)] * 2, [mates[0]] * 2, [mates[-1]] * 2]
        assert answer["max"] == [size - 1, 0]
        assert answer["broadcast"] == [0.0, 0.0]
        assert answer["gathered"] == [{"rank": r, "é": None} for r in range(size)]
        kind, text, everywhere = answer["failure"]
        assert kind == "WorkerError" and everywhere
        assert "bad folder (worker 0 on " in text
        assert f"cannot write: no space left (worker {size - 1} on " in text


@pytest.mark.parametrize("transport", ["MPI", "Gloo"])
def test_no_team_ends_while_another_is_at_work(tmp_path, transport):
    assert run_program("collectives.teams_that_end_apart", transport, 4, tmp_path) == [[2.0] * 3] * 4


@pytest.mark.parametrize("transport, size", TEAMS)
def test_models_are_made_equal_checked_and_their_batch_norm_averaged(tmp_path, transport, size):
    mean = (size - 1) / 2
    for answer in run_program("collectives.agreement", transport, size, tmp_path):
        assert "2.bias differ" in answer["found"] and "weight" not in answer["found"]
        assert answer["own"]
        assert answer["statistics"] == [[mean] * 2, [2 + mean] * 2, 10 + size - 1]


METHODS = {
    "dat-pgd": ["method=dat-pgd", "attack.steps=3"],
    "dat-pgd l2, lambda": ["method=dat-pgd", "attack.norm=l2", "attack.steps=3", "objective.lambda=0.5"],
    "dat-fgsm-without-lalr": ["method=dat-fgsm-without-lalr", "attack.steps=1"],
    "plain": ["method=plain"],
}


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory, digits):
    """Weights and costs of one worker with the whole global batch, by method; made once."""
    known = {}

    def of(name):
        if name not in known:
            known[name] = train(name, "none", 1, tmp_path_factory.mktemp("one"), digits)[0]
        return known[name]

    return of


def train(name, transport, size, folder, digits):
    """1,400 images in global batches of 300: the fifth and last step has 200."""
    common = ["attack.random_start=false", "epochs=2", "evaluation.steps=1"]
    settings = [*common, *METHODS[name]]
    return run_program(
        "training.train_small", transport, size, folder, 300, digits, folder / "run", *settings
    )


@pytest.mark.parametrize(
    "name, transport, size",
    [
        ("dat-pgd", "MPI", 2),
        ("dat-pgd", "Gloo", 2),
        ("dat-pgd", "MPI", 3),
        ("dat-pgd", "MPI", 4),
        ("dat-pgd", "Gloo", 4),
        ("dat-pgd l2, lambda", "MPI", 2),
        ("dat-fgsm-without-lalr", "Gloo", 2),
        ("plain", "MPI", 4),
    ],
)
def test_m_workers_equal_one_with_m_times_the_batch(tmp_path, digits, one_worker, name, transport, size):
    """To 1e-6, after 10 steps with a short last batch, without batch norm and random start.

    In float64: PGD takes signs of gradients, and in float32 a rounding error can turn one over.
    """
    answers = train(name, transport, size, tmp_path, digits)
    assert all(answer == answers[0] for answer in answers)
    np.testing.assert_allclose(answers[0]["weights"], one_worker(name)["weights"], rtol=0, atol=1e-6)
    # The costs ride with the gradients in float32.
    np.testing.assert_allclose(answers[0]["costs"], one_worker(name)["costs"], rtol=1e-6)
    assert np.ptp(answers[0]["weights"]) > 0.1


@pytest.mark.parametrize("settings", [[], ["method=conadv", "optimizer.lr=2"]], ids=["dat-pgd", "conadv"])
def test_virtual_workers_compute_what_real_ones_do(tmp_path, digits, settings):
    """Four workers, two of two, and one of four: weights and running statistics to 1e-6 after ten steps."""
    if settings:
        settings = [*settings, "attack.steps=1"]
    states = {}
    for size, virtual in ((4, 1), (2, 2), (1, 4)):
        folder = tmp_path / str(size)
        answers = run_program(
            "training.train_virtually", "MPI", size, folder, virtual, digits, folder / "run", *settings
        )
        assert all(answer == answers[0] for answer in answers)
        states[size] = answers[0]
    for size in (2, 1):
        np.testing.assert_allclose(states[size]["state"], states[4]["state"], rtol=1e-6, atol=1e-6)
        assert states[size]["ta"] == states[4]["ta"]
    assert np.ptp(states[1]["state"]) > 0.1


@pytest.fixture(scope="module")
def serial_counts(tmp_path_factory, digits):
    return run_program(
        "evaluation.evaluate",
        "none",
        1,
        tmp_path_factory.mktemp("serial"),
        digits,
        "evaluation.batch_size=30",
    )[0]


@pytest.mark.parametrize("transport, size", [("MPI", 2), ("MPI", 3), ("Gloo", 4)])
def test_a_sharded_evaluation_gives_the_numbers_of_a_serial_one(
    tmp_path, digits, serial_counts, transport, size
):
    images, correct, robust, _ = serial_counts
    assert images == 397 and 0 < robust < correct < 397, (
        "the attack must matter for this test to mean anything"
    )
    answers = run_program(
        "evaluation.evaluate", transport, size, tmp_path, digits, "evaluation.batch_size=30"
    )
    assert answers == [serial_counts] * size


@pytest.mark.parametrize("size, held_out", [(1, 0), (2, 0), (3, 150)])
def test_early_stopping_keeps_the_weights_from_before_a_collapse(tmp_path, digits, size, held_out):
    settings = ["evaluation.every=1", "early_stopping.patience=2", f"early_stopping.held_out={held_out}"]
    quick = ["attack.steps=2", "evaluation.steps=3"]
    answers = run_program(
        "training.collapse", "MPI", size, tmp_path, digits, tmp_path / "run", *settings, *quick
    )
    assert all(answer == answers[0] for answer in answers)
    answer = answers[0]
    assert answer["trained"] == [1, 2, 3, 4, 5], "two evaluations without a better RA end it"
    assert answer["kept"] == [3, True] and answer["epoch"] == 3
    judged = answer["judged"]
    assert max(judged[:5]) == judged[2] and judged[3] < 0.2 and judged[4] < 0.2
    # By held-out images it is judged while training; the result is of the test images in any case.
    assert len(judged) == 5 + bool(held_out) and answer["ra"] == (judged[5] if held_out else judged[2])


@pytest.mark.parametrize("size", [1, 2])
def test_the_guard_ends_fgsm_training_that_collapses_and_goes_back_an_epoch(tmp_path, digits, size):
    settings = ["method=dat-fgsm", "attack.steps=1", "evaluation.steps=3", "evaluation.every=0"]
    answers = run_program("training.collapse", "MPI", size, tmp_path, digits, tmp_path / "run", *settings)
    assert all(answer == answers[0] for answer in answers)
    assert answers[0]["trained"] == [1, 2, 3, 4] and answers[0]["overfitting"] == [4]
    assert answers[0]["kept"] == [3, True] and answers[0]["epoch"] == 3
    assert answers[0]["ra"] > 0.2


def test_a_slow_worker_is_seen_in_the_metrics(tmp_path, digits):
    for answer in run_program("training.one_is_slow", "MPI", 3, tmp_path, digits, tmp_path / "run"):
        times = answer["step_seconds"]
        assert times[1] > 0.5 > 0.25 + max(times[0], times[2]) / 2
        assert all(
            longest >= time for longest, time in zip(answer["longest_step_seconds"], times, strict=True)
        )
