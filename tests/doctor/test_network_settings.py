"""Environment variables that contradict each other or the hardware."""

from dataclasses import replace

import pytest

from hpcdat.doctor.fabric import SETTINGS, inspect_fabric
from hpcdat.doctor.network_settings import check_settings
from tests.recorded_nodes import unpack


@pytest.fixture(scope="module")
def fabric_of(tmp_path_factory):
    """Two nodes of a kind with such variables."""
    kinds = {}

    def make(kind, settings, other=None):
        if kind not in kinds:
            root = unpack(kind, tmp_path_factory.mktemp(kind))
            kinds[kind] = inspect_fabric("n1", sys=root, driver=root / "no driver", environ={})
        return [
            replace(kinds[kind], settings=settings),
            replace(kinds[kind], host="n2", settings=settings if other is None else other),
        ]

    return make


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("infiniband-hdr", {"NCCL_IB_DISABLE": "0", "NCCL_IB_HCA": "mlx5", "NCCL_SOCKET_IFNAME": "ib0"}),
        ("infiniband-hdr", {"NCCL_IB_HCA": "=mlx5_0:1,mlx5_7:1", "NCCL_SOCKET_IFNAME": "^docker0,lo"}),
        ("infiniband-hdr", {"UCX_TLS": "rc,sm,cuda_copy", "UCX_NET_DEVICES": "mlx5_0:1,mlx5_3:1"}),
        ("infiniband-hdr", {"UCX_TLS": "^tcp", "UCX_NET_DEVICES": "mlx5_*:1", "OMPI_MCA_pml": "ucx"}),
        ("infiniband-hdr", {"OMPI_MCA_pml": "ucx", "OMPI_MCA_btl": "^openib,ofi", "UCX_TLS": "all"}),
        ("infiniband-hdr", {"NCCL_NET": "IB", "NCCL_NET_GDR_LEVEL": "PHB", "GLOO_SOCKET_IFNAME": "ib0,ib1"}),
        ("slingshot", {"NCCL_NET": "AWS Libfabric", "NCCL_SOCKET_IFNAME": "hsn"}),
        ("cloud-vm", {"NCCL_IB_DISABLE": "1", "NCCL_NET": "Socket", "UCX_TLS": "tcp,sm"}),
        ("cloud-vm", {"OMPI_MCA_btl": "tcp,sm,self", "OMPI_MCA_pml": "ob1"}),
        ("cloud-vm", {"OMPI_MCA_btl_tcp_if_include": "10.0.0.0/8,eth0", "HOROVOD_GLOO_IFACE": "eth0"}),
    ],
)
def test_settings_that_fit_have_no_findings(kind, settings, fabric_of):
    assert check_settings(fabric_of(kind, settings)) == []


@pytest.mark.parametrize(
    ("kind", "settings", "level", "found"),
    [
        ("infiniband-hdr", {"NCCL_IB_DISABLE": "1"}, "warning", "NCCL_IB_DISABLE=1, but mlx5_0/1, "),
        ("roce-bond", {"NCCL_NET": "Socket"}, "warning", "NCCL_NET=Socket, but mlx5_bond_0/1 can be used"),
        ("efa", {"NCCL_NET": "Socket"}, "warning", "NCCL_NET=Socket, but rdmap"),
        (
            "cloud-vm",
            {"NCCL_NET": "IB"},
            "failure",
            "NCCL_NET=IB, but no port of InfiniBand or RoCE is active",
        ),
        (
            "cloud-vm",
            {"NCCL_SOCKET_IFNAME": "=eth"},
            "warning",
            "NCCL_SOCKET_IFNAME==eth: this node has no interface eth",
        ),
        (
            "infiniband-hdr",
            {"NCCL_IB_HCA": "mlx5_0,mlx4_0:1"},
            "warning",
            "NCCL_IB_HCA=mlx5_0,mlx4_0:1: no card is named mlx4_0",
        ),
        ("infiniband-hdr", {"NCCL_IB_HCA": "=mlx5"}, "warning", "NCCL_IB_HCA==mlx5: no card is named mlx5"),
        ("cloud-vm", {"NCCL_SOCKET_IFNAME": "ib0"}, "warning", "NCCL_SOCKET_IFNAME=ib0: this node has no"),
        (
            "cloud-vm",
            {"GLOO_SOCKET_IFNAME": "eth0,eth1"},
            "warning",
            "GLOO_SOCKET_IFNAME=eth0,eth1: this node",
        ),
        ("cloud-vm", {"HOROVOD_GLOO_IFACE": "ib0"}, "warning", "HOROVOD_GLOO_IFACE=ib0: this node has no"),
        (
            "cloud-vm",
            {"UCX_NET_DEVICES": "mlx5_0:1"},
            "warning",
            "UCX_NET_DEVICES=mlx5_0:1: this node has no",
        ),
        (
            "cloud-vm",
            {"OMPI_MCA_btl_tcp_if_include": "ib0,10.0.0.0/8"},
            "warning",
            "OMPI_MCA_btl_tcp_if_include=ib0,10.0.0.0/8: this node has no interface ib0",
        ),
        (
            "cloud-vm",
            {"OMPI_MCA_btl_tcp_if_include": "eth0", "OMPI_MCA_btl_tcp_if_exclude": "lo"},
            "failure",
            "OMPI_MCA_btl_tcp_if_include and OMPI_MCA_btl_tcp_if_exclude exclude each other",
        ),
        ("workstation", {"NCCL_P2P_DISABLE": "1"}, "warning", "NCCL_P2P_DISABLE=1: the 2 GPUs of a node"),
        ("workstation", {"NCCL_SHM_DISABLE": "1"}, "warning", "NCCL_SHM_DISABLE=1: the 2 GPUs of a node"),
        (
            "infiniband-hdr",
            {"NCCL_NET_GDR_LEVEL": "LOC"},
            "warning",
            "NCCL_NET_GDR_LEVEL=LOC turns off GPUDirect RDMA, which this node can use",
        ),
        ("infiniband-hdr", {"UCX_TLS": "tcp,sm"}, "warning", "UCX_TLS=tcp,sm leaves out rc, ud and dc, but "),
        (
            "infiniband-hdr",
            {"UCX_TLS": "sm,cuda_ipc"},
            "failure",
            "UCX_TLS=sm,cuda_ipc has no transport between",
        ),
        (
            "infiniband-hdr",
            {"OMPI_MCA_pml": "ob1", "UCX_TLS": "rc"},
            "warning",
            "OMPI_MCA_pml=ob1: Open MPI does not use UCX; without effect: UCX_TLS",
        ),
        (
            "infiniband-hdr",
            {"OMPI_MCA_pml": "^ucx", "UCX_NET_DEVICES": "mlx5_0:1"},
            "warning",
            "OMPI_MCA_pml=^ucx: Open MPI does not use UCX; without effect: UCX_NET_DEVICES",
        ),
        (
            "infiniband-hdr",
            {"OMPI_MCA_pml": "ucx", "OMPI_MCA_btl": "tcp,self"},
            "warning",
            "OMPI_MCA_pml=ucx: messages go over UCX, so OMPI_MCA_btl=tcp,self has no effect",
        ),
        (
            "cloud-vm",
            {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "sm,self"},
            "failure",
            "OMPI_MCA_btl=sm,self has no component between nodes",
        ),
    ],
)
def test_a_setting_that_does_not_fit_is_named_with_all_its_nodes(kind, settings, level, found, fabric_of):
    (finding,) = check_settings(fabric_of(kind, settings))
    assert (finding.level, finding.check, finding.where) == (level, "network settings", "n1, n2")
    assert finding.found.startswith(found) and finding.advice


def test_settings_that_exclude_each_other(fabric_of):
    findings = check_settings(fabric_of("infiniband-hdr", {"NCCL_NET": "IB", "NCCL_IB_DISABLE": "1"}))
    assert [(f.level, f.found.split(",")[0]) for f in findings] == [
        ("warning", "NCCL_IB_DISABLE=1"),
        ("failure", "NCCL_NET=IB and NCCL_IB_DISABLE=1 exclude each other"),
    ]


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ({"UCX_TLS": "rc"}, "UCX_TLS: all on n1; rc on n2"),
        ({}, "UCX_TLS: all on n1; not set on n2"),
    ],
)
def test_settings_that_differ_between_nodes(other, found, fabric_of):
    (finding,) = check_settings(fabric_of("infiniband-hdr", {"UCX_TLS": "all"}, other))
    assert (finding.level, finding.found) == ("warning", found)


def test_only_variables_that_choose_networks_are_read():
    read = ("NCCL_NET", "UCX_TLS", "OMPI_MCA_pml", "OMPI_MCA_btl_tcp_if_include", "GLOO_SOCKET_IFNAME")
    others = (
        "NCCL_DEBUG",
        "NCCL_DEBUG_FILE",
        "UCX_LOG_LEVEL",
        "OMPI_MCA_ess_base_vpid",
        "AWS_SECRET",
        "NCCL_HOSTID",
    )
    assert all(SETTINGS.match(name) for name in read)
    assert not any(SETTINGS.match(name) for name in others)
