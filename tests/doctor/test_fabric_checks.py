"""Findings about the networks of several kinds of nodes, healthy and not."""

import shutil
import threading
from dataclasses import replace

import pytest

from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.doctor import fabric
from hpcdat.doctor.fabric import (
    Counters,
    Sent,
    Traffic,
    gather_fabrics,
    gather_traffic,
    inspect_fabric,
)
from hpcdat.doctor.fabric_checks import (
    check_cards,
    check_errors,
    check_gpu_distances,
    check_interfaces,
    check_locked_memory,
    describe_traffic,
)
from hpcdat.doctor.network_settings import check_settings
from tests.recorded_nodes import KINDS, unpack

RDMA = [kind for kind in KINDS if kind not in ("cloud-vm", "workstation")]
PORT = "class/infiniband/mlx5_3/ports/1"


@pytest.fixture
def inspect(tmp_path):
    """Nodes n1, n2, ... of a kind, after changes of files of the last one; files that become None go."""

    def make(kind, count=1, **limits):
        changes = limits.pop("changes", {})
        fabrics = []
        for number in range(1, count + 1):
            root = unpack(kind, tmp_path / f"{kind}-n{number}{'-changed' * bool(changes)}")
            for file, text in (changes if number == count else {}).items():
                if text is None:
                    (shutil.rmtree if (root / file).is_dir() else type(root).unlink)(root / file)
                else:
                    (root / file).write_text(f"{text}\n")
            found = inspect_fabric(f"n{number}", sys=root, driver=root / "no driver", environ={})
            fabrics.append(replace(found, **({"locked_memory": None} | limits)))
        return fabrics

    return make


def all_checks(fabrics):
    return [
        *check_cards(fabrics),
        *check_interfaces(fabrics),
        *check_locked_memory(fabrics),
        *check_gpu_distances(fabrics),
        *check_settings(fabrics),
    ]


def warnings(findings):
    return [(finding.found, finding.where) for finding in findings if finding.level != "ok"]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_healthy_nodes_of_any_kind_have_no_warnings(kind, count, inspect):
    assert warnings(all_checks(inspect(kind, count))) == []


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("cloud-vm", ["no RDMA card is active: sockets over Ethernet"]),
        ("workstation", ["no RDMA card is active: sockets over Ethernet"]),
        ("roce-bond", ["1 x RoCE, 100 Gbit/s", "GPU 0: mlx5_bond_0 (same host bridge); "]),
        ("connectx-old", ["1 x InfiniBand, 40 Gbit/s"]),
        ("omni-path", ["1 x Omni-Path, 100 Gbit/s"]),
        ("slingshot", ["4 x Slingshot, 200 Gbit/s", "GPU 0: cxi3 (same host bridge); "]),
        ("efa", ["4 x EFA, 100 Gbit/s", "GPU 0: rdmap16s27 (same host bridge); "]),
        (
            "infiniband-hdr",
            ["8 x InfiniBand, 200 Gbit/s", "GPU 0: mlx5_0, mlx5_1 (same PCIe switch); "],
        ),
    ],
)
def test_what_a_node_has_is_said_in_a_line_or_two(kind, found, inspect):
    lines = [finding.found for finding in all_checks(inspect(kind)) if finding.level == "ok"]
    assert len(lines) == len(found)
    assert all(line.startswith(start) for line, start in zip(lines, found, strict=True))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {f"{PORT}/state": "1: DOWN", f"{PORT}/phys_state": "3: Disabled"},
            "mlx5_3/1 (InfiniBand) is not active: DOWN, Disabled",
        ),
        ({f"{PORT}/state": "2: INIT"}, "mlx5_3/1 (InfiniBand) is not active: INIT, LinkUp"),
        (
            {f"{PORT}/rate": "100 Gb/sec (2X HDR)"},
            "mlx5_3/1 has 100 Gbit/s, other InfiniBand ports 200 Gbit/s",
        ),
        ({"class/net/ib3/mtu": "4092"}, "ib3: 2044 on n1, n2; 4092 on n3"),
        ({"class/net/eno1/operstate": "down"}, "eno1 is down, but up on n1, n2"),
        ({"class/net/eno1/speed": "100"}, "eno1: 1000 Mbit/s on n1, n2; 100 Mbit/s on n3"),
        (
            {"module/nvidia_peermem": None},
            "no GPUDirect RDMA: neither the module nvidia_peermem nor NVIDIA's open kernel driver is loaded",
        ),
    ],
    ids=["down", "no subnet manager", "slow", "MTU", "no Ethernet", "slow Ethernet", "no peer memory"],
)
def test_what_is_wrong_on_a_node_is_named_with_it(changes, found, inspect):
    (finding,) = (f for f in all_checks(inspect("infiniband-hdr", 3, changes=changes)) if f.level != "ok")
    assert (finding.level, finding.found, finding.where) == ("warning", found, "n3") and finding.advice
    assert ("subnet manager" in finding.advice) == ("INIT" in found)


def test_a_card_of_one_port_that_is_down_is_named_on_a_single_node(inspect):
    changes = {f"{PORT}/state": "1: DOWN", f"{PORT}/phys_state": "2: Polling"}
    assert warnings(check_cards(inspect("infiniband-hdr", changes=changes))) == [
        ("mlx5_3/1 (InfiniBand) is not active: DOWN, Polling", "n1")
    ]


def test_a_port_without_a_cable_matters_if_another_node_uses_it(inspect):
    """The old card's second port is used by no node, unless one node has it up."""
    second = "class/infiniband/mlx4_0/ports/2"
    changes = {
        f"{second}/state": "4: ACTIVE",
        f"{second}/phys_state": "5: LinkUp",
        f"{second}/rate": "40 Gb/sec",
    }
    assert warnings(check_cards(inspect("connectx-old", 2))) == []
    assert warnings(check_cards(inspect("connectx-old", 2, changes=changes))) == [
        ("mlx4_0/2 (InfiniBand) is not active: DOWN, Polling", "n1")
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_locked_memory_must_be_unlimited_where_there_is_rdma(kind, inspect):
    expected = [("at most 64 KiB, but RDMA locks all its buffers", "n1, n2")] if kind in RDMA else []
    assert warnings(check_locked_memory(inspect(kind, 2, locked_memory=65536))) == expected


@pytest.mark.parametrize(
    ("version", "where"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build", []),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Fri Jan 24 22:53:27 UTC 2025", ["n1"]),
    ],
    ids=["open", "closed"],
)
def test_the_open_kernel_driver_shares_memory_without_a_module(version, where, tmp_path):
    root = unpack("roce-bond", tmp_path / "sys")
    shutil.rmtree(root / "module")
    (tmp_path / "version").write_text(f"{version}\n")
    found = inspect_fabric("n1", sys=root, driver=tmp_path / "version", environ={})
    assert [f.where for f in check_gpu_distances([found]) if f.check == "GPUDirect RDMA"] == where


def test_what_differs_between_nodes_is_said_of_each(inspect):
    mixed = [inspect("omni-path")[0], replace(inspect("cloud-vm")[0], host="n2")]
    assert [(finding.found, finding.where) for finding in check_cards(mixed)] == [
        ("1 x Omni-Path, 100 Gbit/s", "n1"),
        ("no RDMA card is active: sockets over Ethernet", "n2"),
    ]


@pytest.mark.parametrize(
    ("kind", "counter", "name"),
    [
        ("infiniband-hdr", f"{PORT}/counters/symbol_error", "mlx5_3/1 symbol_error"),
        ("infiniband-hdr", f"{PORT}/hw_counters/out_of_sequence", "mlx5_3/1 out_of_sequence"),
        ("efa", "class/infiniband/rdmap16s27/ports/1/hw_counters/rx_drops", "rdmap16s27/1 rx_drops"),
        ("cloud-vm", "class/net/eth0/statistics/rx_errors", "eth0 rx_errors"),
    ],
)
def test_errors_that_rise_meanwhile_are_named(kind, counter, name, tmp_path):
    root = unpack(kind, tmp_path)
    (root / counter).write_text("5\n")
    before = Counters(root)
    assert check_errors([before.traffic("n1")]) == []
    (root / counter).write_text("12\n")
    (finding,) = check_errors([before.traffic("n1"), Traffic("n2", [], {})])
    assert (finding.level, finding.where) == ("warning", "n1")
    assert finding.found == f"rose while the links were measured: {name} by 7"


def test_the_table_says_which_card_carried_what(tmp_path):
    root = unpack("omni-path", tmp_path)
    before = Counters(root)
    (root / "class/infiniband/hfi1_0/ports/1/counters/port_xmit_data").write_text("126000\n")
    (root / "class/net/eno1/statistics/tx_bytes").unlink()
    assert describe_traffic([before.traffic("n1")]) == [
        ["n1", "eno1", "Ethernet", "not counted"],
        ["n1", "hfi1_0/1", "Omni-Path", "1.0"],
    ]


def test_nodes_with_ethernet_alone_have_no_table():
    assert describe_traffic([Traffic("n1", [Sent("eth0", "Ethernet", 10**9)], {})]) == []


def test_all_workers_have_the_facts_of_the_first_worker_of_each_node(tmp_path, monkeypatch):
    """Three workers on two nodes, which this test gives different cards."""
    kinds = {0: "omni-path", 1: "never read", 2: "roce-bond"}
    here = threading.local()
    inspected = {
        rank: inspect_fabric(f"of {kind}", sys=unpack(kind, tmp_path / kind), environ={"NCCL_NET": kind})
        for rank, kind in kinds.items()
        if rank != 1
    }
    monkeypatch.setattr(fabric, "inspect_fabric", lambda host: inspected[here.rank])

    def program(workers):
        here.rank = workers.rank
        counters = Counters(tmp_path / kinds[workers.rank])
        return gather_fabrics(workers), gather_traffic(counters, workers)

    every = run_threads(loopback(3, node_of=[0, 0, 1]), program)
    assert every[0] == every[1] == every[2]
    fabrics, traffic = every[0]
    assert fabrics == [inspected[0], inspected[2]]
    assert [[sent.card for sent in node.sent] for node in traffic] == [
        ["eno1", "hfi1_0/1"],
        ["ens1f0np0", "ens1f1np1", "mlx5_bond_0/1"],
    ]
    assert {sent.count for node in traffic for sent in node.sent} == {0}
