"""The pictures of lanes and protocols show what the exchange computes and what its traffic counts."""

from collections import Counter
from importlib import import_module

import pytest
import torch

from hpcdat.exchange.traffic import traffic
from tests.conftest import CHECKOUT

PICTURES = CHECKOUT / "docs" / "how-it-works" / "pictures"
FLAT = ["ring, one-sided", "allgather, one-sided", "parameter_server, two-sided", "sharded_server, two-sided"]


@pytest.fixture(scope="module")
def scripts():
    """The scripts that draw the pictures, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CHECKOUT / "docs" / "pictures")
        yield {name: import_module(name) for name in ("lanes", "protocols")}


@pytest.fixture
def script(scripts):
    return scripts["protocols"]


def check(steps, plan, count):
    """The messages of steps between nodes are those of the plan's collectives."""
    expected = plan.collectives(count)
    assert [step.kind for step in steps] == [collective.kind for collective in expected]
    for step, collective in zip(steps, expected, strict=True):
        sent, received = Counter(), Counter()
        for source, target, size in step.arrows:
            sent[source] += size
            received[target] += size
        counted = traffic([collective], plan.senders)
        assert sum(sent.values()) == pytest.approx(counted.total)
        assert max(sent.values()) == pytest.approx(counted.sent or collective.size)
        assert max(received.values()) == pytest.approx(counted.received or collective.size)


@pytest.mark.parametrize("size", [2, 3, 4, 6])
@pytest.mark.parametrize("title", FLAT)
def test_messages_of_a_flat_protocol(script, title, size):
    plan, steps = script.record(script.SHOWN[title], range(size), count=5000)
    assert plan.senders == size
    check(steps, plan, 5000)


@pytest.mark.parametrize("node_of", [(0, 0, 1, 1), (0, 0, 0, 1, 1, 1, 2, 2, 2)])
def test_messages_of_the_hierarchical_protocol(script, node_of):
    """Float32 inside each node, before and after what the leaders exchange."""
    plan, (inside, *across, back) = script.record(script.SHOWN["hierarchical, across: ring"], node_of, 5000)
    check(across, plan, 5000)
    for step in (inside, back):
        assert all(node_of[arrow.source] == node_of[arrow.target] for arrow in step.arrows)
    per_node = node_of.count(0)
    inside_nodes = plan.senders * 2 * (per_node - 1) * 4 * 5000
    assert sum(arrow.bytes for arrow in inside.arrows) == pytest.approx(inside_nodes)
    assert {arrow.bytes for arrow in back.arrows} == {4 * 5000}


def test_the_picture_is_of_these_messages(script):
    text = (PICTURES / "protocols.svg").read_text()
    for settings in script.SHOWN.values():
        _, steps = script.record(settings, script.NODES)
        assert f"all workers send {sum(a.bytes for step in steps for a in step.arrows):,.0f} bytes" in text
        assert all(f"{step.arrows[0].bytes:,.0f} bytes an arrow" in text for step in steps)


def test_the_picture_of_lanes_is_of_codes_that_add_up(scripts):
    shown = scripts["lanes"].example()
    assert shown.codes.tolist() == torch.stack([w.codes for w in shown.workers]).sum(0).tolist()
    assert len({int(words) for words in (shown.words, *(w.words for w in shown.workers))}) == 4
    step = float(shown.norm) / scripts["lanes"].QUANTIZER.s
    exact = torch.stack([worker.numbers for worker in shown.workers]).sum(0)
    assert (shown.decoded - exact).abs().max() < len(shown.workers) * step
    text = (PICTURES / "lanes.svg").read_text()
    assert all(f"0x{int(words):08x}" in text for words in (shown.words, *(w.words for w in shown.workers)))
    assert all(f"{number:+.2f}" in text for number in shown.decoded)
