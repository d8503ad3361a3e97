"""What is read on several kinds of nodes."""

import sys

import pytest

from hpcdat.hardware.fabric import read_distances, read_errors, read_interfaces, read_ports
from hpcdat.hardware.network_cards import network_cards
from tests.recorded_nodes import KINDS, unpack

CARDS = {
    "cloud-vm": {"eth0": ("Ethernet", 123456789)},
    "workstation": {"eno1": ("Ethernet", 5000000), "wlp5s0": ("Ethernet", 70000)},
    "infiniband-hdr": {"eno1": ("Ethernet", 9000)}
    | {f"mlx5_{n}/1": ("InfiniBand", 4 * (10**10 + n)) for n in range(8)},
    "roce-bond": {
        "ens1f0np0": ("Ethernet", 5000),
        "ens1f1np1": ("Ethernet", 6000),
        "mlx5_bond_0/1": ("RoCE", 1000),
    },
    "connectx-old": {
        "eth0": ("Ethernet", 777),
        "mlx4_0/1": ("InfiniBand", 2**35),
        "mlx4_0/2": ("InfiniBand", 0),
    },
    "omni-path": {"eno1": ("Ethernet", 1111), "hfi1_0/1": ("Omni-Path", 8000)},
    "slingshot": {f"cxi{n}": ("Slingshot", 10**12 + n) for n in range(4)},
    "efa": {"ens32": ("Ethernet", 444)}
    | {f"rdmap{bus}s27/1": ("EFA", 5000 + n) for n, bus in enumerate((16, 32, 144, 160))},
}


@pytest.fixture(autouse=True)
def no_nvml(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)


def cards_of(root):
    return {
        card.name: (card.kind, None if card.count is None else card.unit * card.count)
        for card in network_cards(root)
    }


def test_all_kinds_are_tested():
    assert set(KINDS) == set(CARDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_card_is_counted_once_in_its_own_unit(kind, tmp_path):
    assert cards_of(unpack(kind, tmp_path)) == CARDS[kind]


@pytest.mark.parametrize(
    ("kind", "counters", "card"),
    [
        ("slingshot", "class/cxi/cxi2/device/telemetry/hni_sts_tx_ok_octets", "cxi2"),
        ("efa", "class/infiniband/rdmap32s27/ports/1/hw_counters/tx_bytes", "rdmap32s27/1"),
        ("omni-path", "class/infiniband/hfi1_0/ports/1/counters/port_xmit_data", "hfi1_0/1"),
    ],
)
def test_a_card_whose_counter_cannot_be_read_is_not_counted(kind, counters, card, tmp_path):
    (unpack(kind, tmp_path) / counters).unlink()
    assert cards_of(tmp_path)[card][1] is None


def test_ethernet_over_a_slingshot_card_that_is_not_counted_counts_itself(tmp_path):
    (unpack("slingshot", tmp_path) / "class/cxi/cxi0/device/telemetry/hni_sts_tx_ok_octets").unlink()
    assert cards_of(tmp_path) == CARDS["slingshot"] | {
        "cxi0": ("Slingshot", None),
        "hsn0": ("Ethernet", 3333),
    }


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cloud-vm", {}),
        ("workstation", {}),
        ("infiniband-hdr", {f"mlx5_{n}/1": ("InfiniBand", "ACTIVE", "LinkUp", 200) for n in range(8)}),
        ("roce-bond", {"mlx5_bond_0/1": ("RoCE", "ACTIVE", "LinkUp", 100)}),
        (
            "connectx-old",
            {
                "mlx4_0/1": ("InfiniBand", "ACTIVE", "LinkUp", 40),
                "mlx4_0/2": ("InfiniBand", "DOWN", "Polling", 10),
            },
        ),
        ("omni-path", {"hfi1_0/1": ("Omni-Path", "ACTIVE", "LinkUp", 100)}),
        ("slingshot", {f"cxi{n}": ("Slingshot", "ACTIVE", "", 200) for n in range(4)}),
        ("efa", {f"rdmap{bus}s27/1": ("EFA", "ACTIVE", "LinkUp", 100) for bus in (16, 32, 144, 160)}),
    ],
)
def test_ports_with_state_and_rate(kind, expected, tmp_path):
    found = read_ports(unpack(kind, tmp_path))
    assert {port.name: (port.kind, port.state, port.physical, port.rate) for port in found} == expected


def test_ports_of_a_card_share_its_address(tmp_path):
    assert [port.card for port in read_ports(unpack("connectx-old", tmp_path))] == ["0000:03:00"] * 2


def test_a_slingshot_port_is_down_with_its_interface(tmp_path):
    (unpack("slingshot", tmp_path) / "class/net/hsn1/operstate").write_text("down\n")
    assert [port.name for port in read_ports(tmp_path) if not port.active] == ["cxi1"]


def test_interfaces_with_mtu_and_speed(tmp_path):
    found = {
        one.name: (one.physical, one.mtu, one.speed) for one in read_interfaces(unpack("roce-bond", tmp_path))
    }
    assert found == {
        "lo": (False, 65536, None),
        "ens1f0np0": (True, 9000, 100000),
        "ens1f1np1": (True, 9000, 100000),
        "bond0": (False, 9000, 200000),
        "bond0.100": (False, 9000, 200000),
    }
    down = {one.name for one in read_interfaces(unpack("connectx-old", tmp_path / "old")) if not one.up}
    assert down == {"ib1"}


def test_cards_near_gpus_on_a_dgx(tmp_path):
    """GPU 2 has the cards 2 and 3 behind its switch; the others of its socket are on other host bridges."""
    distances = read_distances(unpack("infiniband-hdr", tmp_path))
    assert list(distances) == [f"GPU {n}" for n in range(8)]
    assert distances["GPU 2"] == {
        **dict.fromkeys(("mlx5_2", "mlx5_3"), "same PCIe switch"),
        **dict.fromkeys(("mlx5_0", "mlx5_1"), "same NUMA node"),
        **dict.fromkeys(("mlx5_4", "mlx5_5", "mlx5_6", "mlx5_7"), "other NUMA node"),
    }


def test_cards_near_gpus_without_switches(tmp_path):
    assert read_distances(unpack("roce-bond", tmp_path / "roce")) == {
        "GPU 0": {"mlx5_bond_0": "same host bridge"},
        "GPU 1": {"mlx5_bond_0": "other NUMA node"},
    }
    slingshot = read_distances(unpack("slingshot", tmp_path / "slingshot"))
    assert slingshot["GPU 0"]["cxi3"] == slingshot["GPU 3"]["cxi0"] == "same host bridge"
    assert slingshot["GPU 0"]["cxi0"] == "other NUMA node"
    for kind in ("cloud-vm", "omni-path"):
        assert read_distances(unpack(kind, tmp_path / kind)) == {}
    assert read_distances(unpack("workstation", tmp_path / "workstation")) == {"GPU 0": {}, "GPU 1": {}}


def test_error_counters_of_ports_and_interfaces(tmp_path):
    errors = read_errors(unpack("roce-bond", tmp_path))
    assert {name for name in errors if name.startswith("mlx5_bond_0")} == {
        f"mlx5_bond_0/1 {name}"
        for name in (
            "symbol_error",
            "link_downed",
            "port_rcv_errors",
            "local_link_integrity_errors",
            "out_of_sequence",
            "packet_seq_err",
            "local_ack_timeout_err",
        )
    }
    assert errors["bond0 rx_errors"] == 0
