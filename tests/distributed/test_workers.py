"""Real ranks, oversubscribed, over MPI and over Gloo."""

import numpy as np
import pytest

from tests.distributed.checks import check_agreement, check_collectives
from tests.distributed.rank import run_alone
from tests.distributed.ranks import TRANSPORTS, on


@pytest.mark.distributed
@on("MPI 4 divisible", "torch 4", full=["Gloo 4 divisible"])
def test_collectives(team):
    check_collectives(team.run("collectives.every_collective"), TRANSPORTS[team.transport])


@pytest.mark.distributed
@pytest.mark.ends_its_team
@on("MPI 4 divisible", "torch 4", full=["Gloo 4 divisible"])
def test_no_team_ends_while_another_is_at_work(team):
    """A team ends by itself, while the others of its ranks still sum."""
    assert team.run("collectives.teams_that_end_apart") == [[2.0] * 3] * 4
    team.end()


@pytest.mark.distributed
@on("torch 4", full=["MPI 4 divisible", "Gloo 4 divisible"])
def test_threads_may_start_collectives_in_any_order(team):
    """Each on a channel of its own, and with delays of its own, which differ between workers."""
    answers = team.run("collectives.flood", 4, 40)
    assert answers == [{"wrong": [], "orders": 4}] * 4, "every worker had another order"


@pytest.mark.distributed
@on("MPI 4 divisible", "torch 4", "Gloo 3")
def test_models_are_made_equal_checked_and_their_batch_norm_averaged(team):
    check_agreement(team.run("collectives.agreement"))


METHODS = {
    "dat-pgd": ["method=dat-pgd", "attack.steps=3"],
    "dat-pgd l2, lambda": ["method=dat-pgd", "attack.norm=l2", "attack.steps=3", "objective.lambda=0.5"],
    "dat-fgsm-without-lalr": ["method=dat-fgsm-without-lalr", "attack.steps=1"],
    "plain": ["method=plain"],
}
EXACT = ["attack.random_start=false", "epochs=2", "evaluation.steps=1"]


@pytest.fixture(scope="session")
def one_worker(tmp_path_factory, digits):
    """Weights and costs of one worker with the whole global batch, by method; made once."""
    known = {}

    def of(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("one")
            settings = [*EXACT, *METHODS[name]]
            known[name] = run_alone("training.train_small", 300, digits, folder / "run", *settings)
        return known[name]

    return of


@pytest.mark.distributed
@pytest.mark.parametrize(
    "name, team",
    [
        ("dat-pgd", "MPI 2"),
        ("dat-pgd", "MPI 3"),
        ("dat-pgd", "MPI 4 divisible"),
        ("dat-pgd", "Gloo 3"),
        pytest.param("dat-pgd", "torch 4", marks=pytest.mark.full),
        pytest.param("dat-pgd", "Gloo 4", marks=pytest.mark.full),
        ("dat-pgd l2, lambda", "MPI 2"),
        ("dat-fgsm-without-lalr", "Gloo 3"),
        ("plain", "MPI 4 divisible"),
    ],
    indirect=["team"],
)
def test_m_workers_equal_one_with_m_times_the_batch(tmp_path, digits, one_worker, name, team):
    """To 1e-6, after 10 steps with a short last batch, without batch norm and random start.

    1,400 images in global batches of 300: the fifth and last step has 200. In float64: PGD takes signs of
    gradients, and in float32 a rounding error can turn one over.
    """
    answers = team.run("training.train_small", 300, digits, tmp_path / "run", *EXACT, *METHODS[name])
    assert all(answer == answers[0] for answer in answers)
    np.testing.assert_allclose(answers[0]["weights"], one_worker(name)["weights"], rtol=0, atol=1e-6)
    # The costs ride with the gradients in float32.
    np.testing.assert_allclose(answers[0]["costs"], one_worker(name)["costs"], rtol=1e-6)
    assert np.ptp(answers[0]["weights"]) > 0.1


VIRTUAL = {"dat-pgd": [], "conadv": ["method=conadv", "optimizer.lr=2", "attack.steps=1"]}


@pytest.fixture(scope="session")
def four_virtual_workers(tmp_path_factory, digits):
    """What one worker computes that stands for four, by method; made once."""
    known = {}

    def of(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("virtual")
            settings = VIRTUAL[name]
            known[name] = run_alone("training.train_virtually", 4, digits, folder / "run", *settings)
        return known[name]

    return of


@pytest.mark.distributed
@pytest.mark.parametrize(
    "name, team",
    [
        ("dat-pgd", "MPI 2"),
        pytest.param("dat-pgd", "MPI 4 divisible", marks=pytest.mark.full),
        pytest.param("conadv", "MPI 2", marks=pytest.mark.full),
        ("conadv", "MPI 4 divisible"),
    ],
    indirect=["team"],
)
def test_virtual_workers_compute_what_real_ones_do(tmp_path, digits, four_virtual_workers, team, name):
    """Four workers, two of two, and one of four: weights and running statistics to 1e-6 after six steps."""
    answers = team.run("training.train_virtually", 4 // team.size, digits, tmp_path / "run", *VIRTUAL[name])
    assert all(answer == answers[0] for answer in answers)
    expected = four_virtual_workers(name)
    np.testing.assert_allclose(answers[0]["state"], expected["state"], rtol=1e-6, atol=1e-6)
    assert answers[0]["ta"] == expected["ta"]
    assert np.ptp(expected["state"]) > 0.1


@pytest.mark.distributed
@on("MPI 3", full=["Gloo 3", "torch 3"])
def test_synchronised_batch_norm_is_that_of_the_whole_batch(tmp_path, team):
    """To 1e-6, its sums among the overlapping exchanges of gradients, and with a step of one image."""
    settings = ["method=conadv", "optimizer.name=sgd", "attack.steps=1"]
    expected = run_alone("training.train_synchronised", tmp_path / "one", *settings)
    answers = team.run("training.train_synchronised", tmp_path / "run", *settings)
    assert all(answer == answers[0] for answer in answers)
    np.testing.assert_allclose(answers[0], expected, rtol=0, atol=1e-6)
    assert np.ptp(expected) > 0.1


@pytest.fixture(scope="session")
def serial_counts(digits):
    return run_alone("evaluation.evaluate", digits, "evaluation.batch_size=30")


@pytest.mark.distributed
@on("MPI 3", "Gloo 3", full=["MPI 2", "Gloo 4", "torch 4"])
def test_a_sharded_evaluation_gives_the_numbers_of_a_serial_one(digits, serial_counts, team):
    assert serial_counts["images"] == 397
    assert 0 < serial_counts["robust"] < serial_counts["correct"] < 397, "the attack must matter"
    answers = team.run("evaluation.evaluate", digits, "evaluation.batch_size=30")
    assert answers == [serial_counts] * team.size


STOP_EARLY = ["evaluation.every=1", "early_stopping.patience=2", "attack.steps=2", "evaluation.steps=3"]


def check_early_stopping(answer, held_out):
    assert answer["trained"] == [1, 2, 3, 4, 5], "two evaluations without a better RA end it"
    assert (answer["kept epoch"], answer["kept weights"], answer["epoch"]) == (3, True, 3)
    judged = answer["judged"]
    assert max(judged[:5]) == judged[2] and judged[3] < 0.2 and judged[4] < 0.2
    # By held-out images it is judged while training; the result is of the test images in any case.
    assert len(judged) == 5 + bool(held_out) and answer["ra"] == (judged[5] if held_out else judged[2])


def test_early_stopping_keeps_the_weights_from_before_a_collapse(tmp_path, digits):
    settings = [*STOP_EARLY, "early_stopping.held_out=0"]
    check_early_stopping(run_alone("training.collapse", digits, tmp_path / "run", *settings), 0)


@pytest.mark.distributed
@on("MPI 3", full=["torch 3"])
def test_all_workers_stop_early_together(tmp_path, digits, team):
    settings = [*STOP_EARLY, "early_stopping.held_out=150"]
    answers = team.run("training.collapse", digits, tmp_path / "run", *settings)
    assert all(answer == answers[0] for answer in answers)
    check_early_stopping(answers[0], 150)


GUARDED = ["method=dat-fgsm", "attack.steps=1", "evaluation.steps=3", "evaluation.every=0"]


def check_guard(answer):
    assert answer["trained"] == [1, 2, 3, 4] and answer["overfitting"] == [4]
    assert (answer["kept epoch"], answer["kept weights"], answer["epoch"]) == (3, True, 3)
    assert answer["ra"] > 0.2


def test_the_guard_ends_fgsm_training_that_collapses_and_goes_back_an_epoch(tmp_path, digits):
    check_guard(run_alone("training.collapse", digits, tmp_path / "run", *GUARDED))


@pytest.mark.distributed
@on("MPI 2")
def test_the_guard_ends_training_on_all_workers(tmp_path, digits, team):
    answers = team.run("training.collapse", digits, tmp_path / "run", *GUARDED)
    assert all(answer == answers[0] for answer in answers)
    check_guard(answers[0])


@pytest.mark.distributed
@on("MPI 3", full=["torch 3"])
def test_a_slow_worker_is_seen_in_the_metrics(tmp_path, digits, team):
    for answer in team.run("training.one_is_slow", digits, tmp_path / "run"):
        times = answer["step_seconds"]
        assert times[1] > 0.5 > 0.25 + max(times[0], times[2]) / 2
        assert all(
            longest >= time for longest, time in zip(answer["longest_step_seconds"], times, strict=True)
        )
