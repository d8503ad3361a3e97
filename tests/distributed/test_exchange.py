"""Every protocol over real transports, against NumPy, bit for bit."""

import numpy as np
import pytest

from hpcdat.performance.autotune import COLLECTIVE_KINDS
from hpcdat.performance.calibration import Calibration
from tests.conftest import DEMO
from tests.distributed.ranks import on
from tests.exchange.checks import check_against_numpy

pytestmark = pytest.mark.distributed


@on("MPI 3", "torch 4", "Gloo 3", full=["MPI 4", "Gloo 4", "torch 3"])
def test_every_worker_gets_the_sum_that_numpy_finds(team):
    """For 1 to 8 workers see tests/exchange/test_protocols.py; here the transports are the subject."""
    answers = team.run("exchange.exchanges")
    assert all(answer == answers[0] for answer in answers)
    check_against_numpy([[bytes.fromhex(total) for total in steps] for steps in answers[0]], team.size)


@on("MPI 4 divisible", "torch 4", full=["Gloo 4 divisible"])
def test_inside_a_node_nothing_is_rounded(team):
    """Two nodes of two: the sum of two is exact; across nodes 8 bits of a block's largest."""
    answers = team.run("exchange.nodes_of_two")
    assert all(answer == answers[0] for answer in answers)
    exact = np.arange(100.0) * 10
    for name, total in answers[0].items():
        step = 0 if name.endswith(" 32") else 2 * 990 / 127
        assert np.abs(np.array(total) - exact).max() <= step, name


@on("MPI 3", full=["Gloo 3", "torch 4"])
def test_auto_is_chosen_once_for_all_workers_and_for_all_starts(tmp_path, team):
    answers = team.run("exchange.chosen_exchange", tmp_path / "exchange.json")
    for answer in answers:
        assert {**answer, "lines": None} == {**answers[0], "lines": None}
    settings = answers[0]["first"]
    assert settings["protocol"] != "auto" and settings["bits"] in (32, 8) and answers[0]["links"] == 5
    assert answers[0]["altered bits"] == 5, "the record counts"
    assert answers[0]["bits with other workers"] in (32, 8), "another number of workers measures again"
    lines = answers[0]["lines"]
    assert [line for line in lines if "measuring" in line] == ["exchange: measuring links and codecs"] * 2
    assert "ms per iteration" in lines[1]


@on("torch 2", full=["MPI 2"])
@pytest.mark.parametrize(
    "settings", [["bits=8"], ["protocol=auto"], ["protocol=hierarchical", "across=sharded_server", "bits=8"]]
)
def test_a_plan_measures_links_and_exchanges_between_the_workers(tmp_path, team, settings):
    save = tmp_path / "links.json"
    answers = team.run("exchange.planned", DEMO, save, *(f"exchange.{setting}" for setting in settings))
    # Workers with other corrections could choose other exchanges.
    assert answers[0] == answers[1]
    output, corrections = answers[0]["output"], answers[0]["corrections"]
    assert corrections and min(corrections) > 0
    rows = [line.split("|") for line in output.splitlines() if line.startswith(("| 1 x 1", "| 2 x 1"))]
    alone, two = ([float(field) for field in row[4:9]] for row in rows)
    assert alone[:3] == [0, 0, 0] and min(two) > 0, output
    transport = {"torch": "Gloo (torch)", "MPI": "MPI"}[team.transport]
    found = Calibration.read(save)
    assert f"memory for links, 2 x 1 workers over {transport}, " in found.measured_on
    assert f"Links: {found.measured_on}." in output and set(found.network.links) == set(COLLECTIVE_KINDS)


@on("MPI 2")
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
def test_a_gradient_that_is_not_a_number_is_a_step_skipped_by_all(tmp_path, digits, team, settings):
    answers = team.run("training.one_gradient_is_not_a_number", digits, tmp_path / "run", *settings)
    assert answers == [{"skipped": 1, "finite": True}] * 2


@pytest.mark.full
@pytest.mark.computes
@pytest.mark.timeout(600)
@on("MPI 2")
def test_8_bits_train_to_the_same_accuracy(tmp_path, digits, team):
    """Digits, 8 epochs, three seeds, two workers; within two points of TA and four of RA."""
    means = {}
    for name, settings in {
        "float32": [],
        "one-sided": ["exchange.bits=8"],
        "two-sided": ["exchange.bits=8", "exchange.protocol=sharded_server", "exchange.two_sided=true"],
    }.items():
        seeds = team.run("training.train_seeds", digits, tmp_path / name, *settings)[0]
        means[name] = {what: np.mean([seed[what] for seed in seeds]) for what in ("ta", "ra")}
    exact = means.pop("float32")
    assert exact["ta"] > 0.95 and exact["ra"] > 0.5
    for name, mean in means.items():
        assert abs(mean["ta"] - exact["ta"]) < 0.02 and abs(mean["ra"] - exact["ra"]) < 0.04, (name, means)


@on("MPI 3", "Gloo 2")
def test_any_horovod_script_can_use_the_quantizer(team):
    answers = team.run("exchange.drop_in", "Sum")
    assert max(answer["last"] for answer in answers) < 0.05 * min(answer["first"] for answer in answers)
    assert all(answer["weights"] == answers[0]["weights"] for answer in answers)


@on("MPI 3")
def test_the_example_of_the_quantizer_runs_on_workers(team):
    for answer in team.run("exchange.example"):
        assert answer["attempted"] == 10 and not answer["failed"]


@on("MPI 2")
def test_a_horovod_script_that_averages_codes_gets_an_error(team):
    for answer in team.run("exchange.drop_in", "Average"):
        assert "needs hvd.DistributedOptimizer(..., op=hvd.Sum)" in answer["error"]
