"""Protocol auto: the formula of the cost model, and the choice for slow and fast links."""

import pytest
from torch import nn

from hpcdat.config.sections import Exchange
from hpcdat.errors import InputError
from hpcdat.exchange.pipeline import IN_FLIGHT
from hpcdat.exchange.traffic import Collective
from hpcdat.performance import autotune
from hpcdat.performance.autotune import (
    COLLECTIVE_KINDS,
    Candidate,
    measure_and_choose,
    most_exact_of_the_fast,
)
from hpcdat.performance.cost_model import Link, Network, predict
from hpcdat.performance.microbenchmarks import SimulatedCommunicator
from hpcdat.progress import Progress


def link(latency, bytes_per_second):
    return Link(points=[(0, latency), (1e6, latency + 1e6 / bytes_per_second)])


def test_a_collective_takes_its_latency_and_its_bytes_on_the_line_through_the_measured_points():
    bent = Link(points=[(0, 0.01), (1000, 0.02), (2000, 0.05)])
    assert [bent.seconds(c) for c in (0, 500, 1000, 1500, 3000)] == pytest.approx(
        [0.01, 0.015, 0.02, 0.035, 0.08]
    )
    assert bent.latency == 0.01
    with pytest.raises(ValueError, match="bytes must rise"):
        Link(points=[(0, 0.1), (0, 0.2)])


def test_time_is_the_longer_of_network_and_computation_and_one_bucket_of_the_other():
    links = {"allreduce": link(0.001, 1e6), "allgather": link(0.002, 2e6)}
    network = Network(nodes=6, links=links)
    # Six workers: 2 * 5/6 of an all-reduced vector, five gathered rows.
    buckets = [[Collective("allreduce", 6e5), Collective("allgather", 2e5)]] * 4
    wire = 4 * (1.0 + 0.5 + 0.001 + 0.002)
    assert predict(buckets, 2.0, network, 6) == pytest.approx(wire + 2.0 / 4)
    assert predict(buckets, 10.0, network, 6) == pytest.approx(10.0 + wire / 4)
    # A single bucket waits as long as four that are agreed upon together.
    assert predict(buckets[:1], 0.0, network, 6) == pytest.approx(1.0 + 0.5 + 4 * (0.001 + 0.002))
    # On shared processors, half of what could be hidden is not.
    shared = network.model_copy(update={"sharing": 0.5})
    assert predict(buckets, 2.0, shared, 6) == pytest.approx(wire + 2.0 * (1 / 4 + 3 / 4 / 2))


def test_other_numbers_of_workers_send_other_bytes_and_wait_for_more_messages():
    network = Network(nodes=3, links={kind: link(0.01, 1e6) for kind in COLLECTIVE_KINDS})

    def seconds(kind, nodes, per_node=1):
        crossing = Collective(kind, 3e5)
        return network.latency(crossing, nodes, per_node) + network.transfer(crossing, nodes, per_node)

    # Two thousand nodes: 3998 messages in a row where there were 4, and two vectors less a share.
    assert seconds("allreduce", 2000) == pytest.approx(0.01 * 3998 / 4 + 2 * 1999 / 2000 * 0.3)
    assert seconds("allgather", 6) == pytest.approx(0.01 * 5 / 2 + 5 * 0.3)
    # Each of two workers on a node sends two thirds of its vector to the other nodes.
    assert seconds("alltoall", 3, 2) == pytest.approx(0.01 * 5 / 2 + 2 * 2 / 3 * 0.3)
    assert seconds("gather", 3, 2) == pytest.approx(0.01 * 5 / 2 + 4 * 0.3)
    assert seconds("broadcast", 8) == pytest.approx(0.01 * 3 / 2 + 3 * 0.3)


def candidate(bits, seconds, two_sided=False):
    exchange = Exchange(bits=bits, two_sided=two_sided, protocol="sharded_server")
    return Candidate(exchange=exchange, computing=0.0, seconds=seconds)


@pytest.mark.parametrize(
    "candidates, expected",
    [
        ([candidate(32, 1.0), candidate(8, 0.91)], (32, False)),
        ([candidate(32, 1.0), candidate(8, 0.89)], (8, False)),
        ([candidate(4, 0.45), candidate(8, 0.49), candidate(32, 1.0)], (8, False)),
        ([candidate(8, 0.5, two_sided=True), candidate(8, 0.52)], (8, False)),
        ([candidate(8, 0.3, two_sided=True), candidate(8, 0.5)], (8, True)),
    ],
)
def test_less_exact_must_save_a_tenth(candidates, expected):
    chosen = most_exact_of_the_fast(candidates).exchange
    assert (chosen.bits, chosen.two_sided) == expected


@pytest.fixture
def choosing(monkeypatch):
    """Choices for made-up links."""

    def run(links, size=6, trial=lambda *_, **__: 1.0, **settings):
        def made_up(workers, kinds, device):
            known = {kind: links[kind] if isinstance(links, dict) else links for kind in kinds}
            return Network(nodes=workers.size, links=known)

        monkeypatch.setattr(autotune, "measure_network", made_up)
        monkeypatch.setattr(autotune, "measure_correction", trial)
        model = nn.Sequential(nn.Linear(500, 500), nn.Linear(500, 500))
        exchange = Exchange(protocol="auto", **settings)
        return measure_and_choose(exchange, SimulatedCommunicator(size), model)

    return run


def test_fast_links_are_not_worth_compressing(choosing):
    chosen = choosing(link(1e-5, 1e11)).chosen.exchange
    assert chosen.bits == 32


def test_slow_links_take_the_fewest_bytes_of_what_is_allowed(choosing):
    slow = link(1e-3, 1e5)
    assert choosing(slow, two_sided=True).chosen.exchange.describe() == "sharded_server, 8 bits two-sided"
    assert choosing(slow).chosen.exchange.describe() == "ring, 8 bits", "one-sided: 2 x 12.8 bits"
    assert choosing(slow, bits_allowed=[32, 4]).chosen.exchange.bits == 4
    assert choosing(slow, bits_allowed=[32]).chosen.exchange.describe() == "ring, 32 bits"
    assert choosing(slow, size=2).chosen.exchange.protocol == "allgather", "one vector of codes, no more"


def test_a_network_with_one_fast_collective_is_used_for_it(choosing):
    links = {kind: link(1e-3, 1e5) for kind in COLLECTIVE_KINDS} | {"allgather": link(1e-3, 1e8)}
    assert choosing(links).chosen.exchange.protocol == "allgather"


def test_a_trial_that_takes_longer_than_its_parts_counts(choosing):
    slow = link(1e-3, 1e5)
    assert choosing(slow).chosen.exchange.protocol == "ring"
    tried = []

    def trial(exchange, *_, **__):
        tried.append(exchange.protocol)
        return 10.0 if exchange.protocol == "ring" and exchange.bits == 8 else 1.0

    chosen = choosing(slow, trial=trial).chosen
    assert chosen.exchange.protocol != "ring" and chosen.exchange.bits == 8
    assert "ring" in tried


def test_long_waits_want_large_buckets_and_long_messages_that_collide_small_ones(choosing):
    model_mb = 2 * 4 * 500 * 500 / 2**20
    # At most IN_FLIGHT buckets, which are agreed upon at once.
    assert choosing(link(1.0, 1e6), bits_allowed=[32]).chosen.exchange.bucket_mb > model_mb / IN_FLIGHT
    colliding = Link(points=[(0, 1e-6), (4e5, 0.01), (1e6, 1.0)])
    assert choosing(colliding, bits_allowed=[32]).chosen.exchange.bucket_mb < 1


def test_settings_of_the_quantizer_stay_on_only_for_quantised_exchanges(choosing):
    slow = choosing(link(1e-3, 1e5), error_feedback=True, rounding="correlated", rotation="hadamard")
    chosen = slow.chosen.exchange
    assert (chosen.error_feedback, chosen.rounding, chosen.rotation) == (True, "correlated", "hadamard")
    other = min(slow.candidates, key=lambda c: -c.seconds).exchange
    assert (other.error_feedback, other.rounding, other.rotation) == (False, "independent", "none")


def test_a_damaged_record_is_reported(tmp_path):
    record = tmp_path / "exchange.json"
    record.write_text('{"workers": 2')
    with pytest.raises(InputError, match=r"exchange.json cannot be read"):
        autotune.read_choice(record)


def test_the_exchange_of_a_run_is_read_from_its_record(tmp_path):
    record, auto = tmp_path / "exchange.json", Exchange(protocol="auto")
    assert autotune.exchange_of_run(Exchange(bits=4), record).describe() == "ring, 4 bits"
    assert autotune.exchange_of_run(auto, record).describe() == "ring, 32 bits", "one worker chooses nothing"
    chosen = candidate(8, 1.0, two_sided=True)
    choice = autotune.Choice(
        workers=2, network=Network(nodes=2, links={}), candidates=[chosen], chosen=chosen
    )
    record.write_text(choice.model_dump_json())
    assert autotune.exchange_of_run(auto, record).describe() == "sharded_server, 8 bits two-sided"


def test_a_recorded_choice_is_taken_by_as_many_workers_and_made_again_by_others(tmp_path, monkeypatch):
    measured = []

    def measure(settings, workers, model):
        measured.append(workers.size)
        chosen = candidate(4 if workers.size == 6 else 8, 1.0)
        network = Network(nodes=workers.size, links={})
        return autotune.Choice(workers=workers.size, network=network, candidates=[chosen], chosen=chosen)

    monkeypatch.setattr(autotune, "measure_and_choose", measure)
    auto, record = Exchange(protocol="auto"), tmp_path / "exchange.json"
    found = [
        autotune.choose_exchange(
            auto, SimulatedCommunicator(size), nn.Linear(2, 2), record, Progress(shown=False)
        ).bits
        for size in (6, 6, 4, 4, 6)
    ]
    assert found == [4, 4, 8, 8, 4] and measured == [6, 4, 6]
