"""Bytes that cards have sent, on stand-ins of the files that kernels show on several kinds of nodes."""

from pathlib import Path

import pytest

from hpcdat.hardware.network_cards import Card, network_cards, sent_between

ETHERNET, LOOPBACK, IP_OVER_INFINIBAND = 1, 772, 32


class Node:
    """A made-up /sys."""

    def __init__(self, root):
        self.root = root

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def interface(self, name, sent, *, kind=ETHERNET, device=True, lower=()):
        self.write(f"class/net/{name}/type", kind)
        self.write(f"class/net/{name}/statistics/tx_bytes", sent)
        if device:
            self.write(f"class/net/{name}/device/vendor", "0x15b3")
        for other in lower:
            self.write(f"class/net/{name}/lower_{other}/type", ETHERNET)

    def port(self, name, words, *, link="InfiniBand", file="counters/port_xmit_data"):
        folder = f"class/infiniband/{name.replace('/', '/ports/')}"
        self.write(f"{folder}/link_layer", link)
        self.write(f"{folder}/{file}", words)


@pytest.fixture
def node(tmp_path):
    made = Node(tmp_path)
    made.interface("lo", 10**9, kind=LOOPBACK, device=False)
    return made


def cards_of(node):
    return {
        card.name: (card.kind, card.count and card.unit * card.count) for card in network_cards(node.root)
    }


def test_a_workstation_has_one_card(node):
    node.interface("eno1", 1234)
    assert cards_of(node) == {"eno1": ("Ethernet", 1234)}


def test_a_machine_in_the_cloud_with_containers_counts_its_card_alone(node):
    """What a container sends crosses the card as well."""
    node.interface("ens5", 5000)
    node.interface("docker0", 700, device=False)
    node.interface("veth1a2b", 600, device=False)
    assert cards_of(node) == {"ens5": ("Ethernet", 5000)}


def test_in_a_container_or_an_emulated_node_the_virtual_card_counts(node):
    node.interface("eth0", 42, device=False)
    assert cards_of(node) == {"eth0": ("Ethernet", 42)}


def test_a_bond_with_vlans_is_counted_at_its_cards(node):
    node.interface("eth0", 100)
    node.interface("eth1", 200)
    node.interface("bond0", 300, device=False, lower=("eth0", "eth1"))
    node.interface("bond0.7", 250, device=False, lower=("bond0",))
    assert cards_of(node) == {"eth0": ("Ethernet", 100), "eth1": ("Ethernet", 200)}


def test_infiniband_counts_words_and_its_ip_interface_is_not_counted_again(node):
    """A node with four cards of one port, and Ethernet for its management."""
    node.interface("eno1", 9)
    for number in range(4):
        node.port(f"mlx5_{number}/1", 10**10 + number)
        node.interface(f"ib{number}", 4 * 10**9, kind=IP_OVER_INFINIBAND)
    expected = {f"mlx5_{number}/1": ("InfiniBand", 4 * (10**10 + number)) for number in range(4)}
    assert cards_of(node) == {"eno1": ("Ethernet", 9)} | expected


def test_an_rdma_port_on_ethernet_adds_to_what_its_interface_counts(node):
    node.interface("ens1f0np0", 5000)
    node.port("mlx5_bond_0/1", 250, link="Ethernet")
    assert cards_of(node) == {"ens1f0np0": ("Ethernet", 5000), "mlx5_bond_0/1": ("RoCE", 1000)}


def test_a_card_of_two_ports_with_extended_counters(node):
    for port, words in ((1, 2**33), (2, 7)):
        node.port(f"mlx4_0/{port}", 2**32 - 1)
        node.port(f"mlx4_0/{port}", words, file="counters_ext/port_xmit_data_64")
    assert cards_of(node) == {"mlx4_0/1": ("InfiniBand", 2**35), "mlx4_0/2": ("InfiniBand", 28)}


@pytest.mark.parametrize("words", [2**32 - 1, "N/A (no PMA)", ""], ids=["full", "iWARP", "unreadable"])
def test_a_port_that_counts_nothing_says_so_and_its_ip_interface_counts(node, words):
    node.port("old0/1", words)
    node.interface("ib0", 77, kind=IP_OVER_INFINIBAND)
    assert cards_of(node) == {"ib0": ("Ethernet", 77), "old0/1": ("InfiniBand", None)}


def test_a_node_without_cards_has_none(tmp_path):
    assert network_cards(tmp_path) == []


@pytest.mark.parametrize(
    "before, after, unit, sent",
    [
        (100, 350, 1, 250),
        (100, 350, 4, 1000),
        (2**32 - 5, 10, 1, 15),
        (2**64 - 5, 10, 4, 60),
        (2**31 - 5, 10, 1, None),
        (2**40, 10, 1, None),
        (None, 10, 1, None),
        (10, None, 4, None),
    ],
    ids=["bytes", "words", "32 bits wrap", "64 bits wrap", "reset", "reset of 64", "new", "gone"],
)
def test_what_was_sent_between_two_readings(before, after, unit, sent):
    first, second = Card("a", "Ethernet", before, unit), Card("a", "Ethernet", after, unit)
    assert sent_between([first], [second]) == {"a": sent}
    assert sent_between([], [second]) == {"a": None}


def test_the_counters_of_this_machine_are_those_of_its_interfaces():
    counted = {card.name: card.count for card in network_cards() if card.kind == "Ethernet"}
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    sent = {
        name.strip(): int(fields.split()[8]) for name, _, fields in (line.partition(":") for line in lines)
    }
    assert "lo" not in counted and counted.keys() <= sent.keys()
    assert all(0 <= counted[name] <= sent[name] for name in counted)
