"""Calibrations written by hand, and the terms of the cost model that only they set."""

import json
import math

import numpy as np
import pytest

from hpcdat.errors import InputError
from hpcdat.exchange.traffic import Collective
from hpcdat.performance.autotune import COLLECTIVE_KINDS
from hpcdat.performance.calibration import MESSAGE_SECONDS, Calibration, assume_links
from hpcdat.performance.cost_model import slowdown_by_slowest
from tests.performance.test_forecast import LATENCY, RATE, TIMING, calibration, predict


@pytest.fixture
def written(tmp_path):
    """Reads a calibration from a text."""

    def read(text):
        file = tmp_path / "cluster.yaml"
        file.write_text(text)
        return Calibration.read(file)

    return read


def test_assumed_links_reach_a_fraction_of_their_rate(written):
    text = "measured_on: here\nnetwork: {rate: 1gbit, efficiency: 0.5, message_seconds: 1e-3}"
    slow, nominal = written(text).network, assume_links("1gbit").network
    for kind in COLLECTIVE_KINDS:
        crossing = Collective(kind, 1e6)
        carried = crossing.on_card(6, 1)
        assert nominal.transfer(crossing, 6) == pytest.approx(carried / 1.25e8)
        assert slow.transfer(crossing, 6) == pytest.approx(2 * carried / 1.25e8)
        assert slow.latency(crossing, 6) == pytest.approx(
            1e-3 / MESSAGE_SECONDS * nominal.latency(crossing, 6)
        )


def test_a_rate_alone_is_that_of_the_option_link(written):
    assert written("measured_on: here\nnetwork: {rate: 10gbit}").network == assume_links("10gbit").network


def test_the_messages_of_a_tree_grow_with_the_logarithm_of_the_workers(written):
    ring, tree = (
        written(f"measured_on: here\nnetwork: {{rate: 1gbit, tree: {tree}}}").network
        for tree in (False, True)
    )
    crossing = Collective("allreduce", 1e6)
    assert tree.latency(crossing, 2) == ring.latency(crossing, 2)
    # 2 log2 M messages, 2 (M - 1) in a ring; as many bytes.
    assert tree.latency(crossing, 128, 8) / tree.latency(crossing, 2) == pytest.approx(10)
    assert ring.latency(crossing, 128, 8) / ring.latency(crossing, 2) == pytest.approx(1023)
    assert tree.transfer(crossing, 128, 8) == ring.transfer(crossing, 128, 8)
    for kind in set(COLLECTIVE_KINDS) - {"allreduce"}:
        assert tree.latency(Collective(kind, 1e6), 128) == ring.latency(Collective(kind, 1e6), 128)


def test_a_measured_calibration_may_be_given_a_tree_and_a_jitter(written, tmp_path):
    calibration(6).write(tmp_path / "saved.json")
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert saved["jitter"] == 0 and saved["network"]["tree"] is False and "published" not in saved
    saved["jitter"], saved["network"]["tree"] = 0.03, True
    read = written(json.dumps(saved))
    assert (read.jitter, read.network.tree) == (0.03, True)
    assert read.network.links == calibration(6).network.links
    # 2 log2 of 6, rounded up, are 6 consecutive messages, and 2 log2 of 1,024 are 20.
    crossing = Collective("allreduce", 1e6)
    assert read.network.latency(crossing, 6) == pytest.approx(LATENCY)
    assert read.network.latency(crossing, 1024) == pytest.approx(20 / 6 * LATENCY)


@pytest.mark.parametrize("workers", [1, 2, 3, 36, 1536])
def test_the_slowest_of_independent_workers_is_waited_for(workers):
    """Against the expected maximum, integrated; closed forms are 0, 1 / sqrt(pi) and 3 / (2 sqrt(pi))."""
    x = np.linspace(-9, 9, 200_001)
    below = np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in x[::20]])
    below = np.interp(x, x[::20], below)
    expected = np.trapezoid(
        x * workers * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * below ** (workers - 1), x
    )
    assert slowdown_by_slowest(0.1, workers) == pytest.approx(1 + 0.1 * expected, abs=0.1 * 0.03)


def test_computation_waits_for_the_slowest_worker_and_communication_does_not(monkeypatch):
    even = predict(["exchange.overlap=false"], 6)
    uneven_links = calibration(6).model_copy(update={"jitter": 0.1})
    monkeypatch.setattr("tests.performance.test_forecast.calibration", lambda nodes: uneven_links)
    uneven = predict(["exchange.overlap=false"], 6)
    step = 20 * 0.03 + 0.05
    assert uneven.communication == even.communication
    assert uneven.total - even.total == pytest.approx(10 * step * (slowdown_by_slowest(0.1, 6) - 1))
    # A single worker waits for nobody.
    assert predict([], 1).total == pytest.approx(60 * step)
    # What is slower hides more of the exchange: two thirds of the gradient's time, of each of many buckets.
    many = predict(["exchange.bucket_mb=0.001"], 6)
    hidden = slowdown_by_slowest(0.1, 6) * 2 / 3 * 20 * TIMING.gradient
    waited = max(many.seconds - hidden, 0)
    assert waited > many.seconds / 20, "more than the last bucket"
    assert many.total == pytest.approx(10 * (slowdown_by_slowest(0.1, 6) * step + waited))
    assert RATE < 4 * 250250, "the exchange takes longer than what hides it"


@pytest.mark.parametrize(
    "text, message",
    [
        ("measured_on: here\nnetwork: {rate: fast}", "rate: 'fast': expected a value like 1gbit"),
        ("measured_on: here\nnetwork: {rate: 1gbit, efficiency: 2}", "efficiency: Input should be less than"),
        ("measured_on: here\nnetwork: {rate: 1gbit, latency: 2}", "latency: Extra inputs are not permitted"),
        ("measured_on: here\nnetwork: {rate: 1gbit}\njitter: -1", "jitter: Input should be greater than"),
        ("network: {rate: 1gbit}", "measured_on: Field required"),
        ("measured_on: here\nmeasured_on: there", "measured_on: duplicate key"),
        ("measured_on: here\nnetwork: {nodes: 2, links: {}}", "links of allgather, allreduce, alltoall"),
        ("network: [", "not YAML"),
        ("- 1", "is not a calibration file: Input should be a valid dictionary"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(written, text, message):
    with pytest.raises(InputError, match=r"cluster\.yaml is not a calibration file") as raised:
        written(text)
    assert message in str(raised.value) and "\n" not in str(raised.value)
