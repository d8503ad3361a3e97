"""The transports that libraries take, in outputs of theirs.

In ``outputs`` those of UCX 1.20 and Open MPI on one node were recorded; the others were written after the
libraries' sources and reports of users (NVIDIA/nccl issues 226, 676, 952, 1189, 1597; Mellanox/nv_peer_memory
56; openucx/ucx 9560 and pull request 8699; open-mpi/ompi 9080 and pull requests 5507 and 10397).
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hpcdat.distributed.loopback import loopback, run_threads
from hpcdat.doctor.fabric import inspect_fabric
from hpcdat.doctor.library_logs import LibraryLogs, library_logs
from hpcdat.doctor.library_output import (
    Transport,
    merge,
    read_nccl,
    read_open_mpi,
    read_ucx,
    without_open_mpi,
)
from hpcdat.doctor.transports import check_transports, gather_transports
from tests.recorded_nodes import unpack

OUTPUTS = Path(__file__).parent / "outputs"
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def read(name):
    reader = {"nccl": read_nccl, "ucx": read_ucx, "open": read_open_mpi}[name.partition("-")[0]]
    return reader((OUTPUTS / f"{name}.txt").read_text())


EXPECTED = {
    "nccl-infiniband-gdr": (["P2P/CUMEM/read"], ["NET/IB/GDRDMA (mlx5_0, mlx5_1)"], False),
    "nccl-infiniband-staged": (["P2P/CUMEM/read"], ["NET/IB (mlx5_0, mlx5_1)"], False),
    "nccl-infiniband-old": (["P2P/IPC", "SHM"], ["NET/IB (mlx5_0)"], False),
    "nccl-sockets": ([], ["NET/Socket (eth0)"], True),
    "nccl-one-node": (["P2P/CUMEM", "SHM/direct/direct"], ["NET/Socket (eth0)"], True),
    "nccl-efa": (["P2P/IPC/read"], ["libfabric (efa) with GPUDirect RDMA"], False),
    "nccl-slingshot": ([], ["libfabric (cxi)"], False),
    "nccl-libfabric-tcp": ([], ["libfabric (tcp)"], True),
    "ucx-1.10": (
        ["sysv/memory", "cma/memory", "cuda_copy/cuda"],
        ["rc_mlx5/mlx5_0:1", "rc_mlx5/mlx5_1:1"],
        False,
    ),
    "ucx-1.18": (
        ["sysv/memory", "cma/memory", "cuda_ipc/cuda"],
        ["rc_mlx5/mlx5_0:1", "rc_mlx5/mlx5_1:1"],
        False,
    ),
    "ucx-tcp": (["sysv/memory", "cma/memory", "cuda_ipc/cuda"], ["tcp/ib0", "tcp/eth0"], True),
    "ucx-1.20-one-node": (["sysv/memory", "cma/memory"], [], False),
    "ucx-1.20-one-node-tcp": (["tcp/eth0"], [], False),
    "open-mpi-one-node": (["sm"], [], False),
    "open-mpi-ucx-one-node": (["sysv/memory", "cma/memory"], [], False),
    "open-mpi-ucx-two-nodes": ([], ["tcp/eth0"], True),
    "open-mpi-tcp": (["sm"], ["tcp"], True),
    "open-mpi-ucx": (["sysv/memory", "cma/memory"], ["rc_mlx5/mlx5_0:1", "rc_mlx5/mlx5_1:1"], False),
    "open-mpi-mixed": ([], ["ofi", "tcp"], True),
}


def test_all_outputs_are_tested():
    assert {file.stem for file in OUTPUTS.glob("*.txt")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_library_took(name):
    found = read(name)
    assert (found.inside, found.between, found.sockets) == EXPECTED[name]


@pytest.mark.parametrize("reader", [read_nccl, read_ucx, read_open_mpi])
@pytest.mark.parametrize("text", ["", "measuring 3 links\n", "NCCL INFO Bootstrap: Using eth0:10.0.0.1<0>\n"])
def test_other_output_names_no_transport(reader, text):
    assert reader(text) is None


def test_open_mpi_of_one_worker_names_no_transport():
    text = "  on-host:  all connections are self\n  off-host: all connections are n/a\n"
    assert read_open_mpi(text) is None and read_open_mpi(text.replace("n/a", "tcp")) is not None


def test_what_else_was_written_is_kept():
    table = (OUTPUTS / "open-mpi-mixed.txt").read_text()
    assert (
        without_open_mpi(f"a warning of a library\n{table}another\n") == "a warning of a library\nanother\n"
    )


def test_the_workers_of_a_node_are_merged():
    one, two = Transport("n1", "NCCL", ["SHM"], []), Transport("n1", "NCCL", ["SHM"], ["NET/IB"])
    other = Transport("n2", "NCCL", [], ["NET/IB"])
    assert merge([one, two, other]) == [Transport("n1", "NCCL", ["SHM"], ["NET/IB"]), other]


@pytest.fixture(scope="module")
def fabrics_of(tmp_path_factory):
    def make(kind, count=2):
        root = unpack(kind, tmp_path_factory.mktemp(kind))
        fabric = inspect_fabric("n1", sys=root, driver=root / "no driver", environ={})
        return [replace(fabric, host=f"n{number}") for number in range(1, count + 1)]

    return make


@pytest.mark.parametrize(
    ("name", "kind", "device", "warning"),
    [
        ("nccl-infiniband-gdr", "infiniband-hdr", GPU, ""),
        ("nccl-infiniband-staged", "infiniband-hdr", GPU, "without GPUDirect RDMA, which the nodes have"),
        ("nccl-infiniband-staged", "connectx-old", GPU, ""),
        ("nccl-sockets", "infiniband-hdr", GPU, "sockets, although mlx5_0/1, "),
        ("nccl-sockets", "roce-bond", GPU, "sockets, although mlx5_bond_0/1 can be used"),
        ("nccl-sockets", "efa", GPU, "sockets, although rdmap"),
        ("nccl-sockets", "slingshot", GPU, "sockets, although cxi0, cxi1, cxi2, cxi3 can be used"),
        ("nccl-sockets", "cloud-vm", GPU, ""),
        ("nccl-libfabric-tcp", "slingshot", GPU, "sockets, although cxi0"),
        ("nccl-slingshot", "slingshot", GPU, ""),
        ("nccl-efa", "efa", GPU, ""),
        ("ucx-1.18", "infiniband-hdr", CPU, ""),
        ("ucx-tcp", "infiniband-hdr", CPU, "sockets, although mlx5_0/1, "),
        ("open-mpi-tcp", "omni-path", CPU, "sockets, although hfi1_0/1 can be used"),
        ("open-mpi-tcp", "omni-path", GPU, ""),
        ("open-mpi-tcp", "cloud-vm", CPU, ""),
        ("open-mpi-mixed", "omni-path", CPU, "sockets, although hfi1_0/1 can be used"),
    ],
)
def test_a_fall_back_to_sockets_is_a_warning_where_there_is_better(name, kind, device, warning, fabrics_of):
    (finding,) = check_transports([read(name)], fabrics_of(kind), device)
    assert finding.level == ("warning" if warning else "ok") and warning in finding.found
    assert bool(finding.advice) == bool(warning) and finding.where == ""


def test_a_finding_reads_as_a_sentence(fabrics_of):
    (finding,) = check_transports([read("open-mpi-tcp")], fabrics_of("cloud-vm"), CPU)
    assert finding.found == "Open MPI: tcp between nodes, sm inside a node"


def test_the_node_that_falls_back_is_named(fabrics_of):
    transports = [replace(read("nccl-infiniband-gdr"), host="n1"), replace(read("nccl-sockets"), host="n2")]
    findings = check_transports(transports, fabrics_of("infiniband-hdr"), GPU)
    assert [(finding.level, finding.where) for finding in findings] == [("ok", "n1"), ("warning", "n2")]


def test_libraries_write_into_the_logs_and_the_variables_are_as_before_afterwards(monkeypatch, capfd):
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.delenv("UCX_LOG_FILE", raising=False)
    with library_logs() as logs:
        for variable, name in (("NCCL_DEBUG_FILE", "nccl-sockets"), ("UCX_LOG_FILE", "ucx-tcp")):
            Path(os.environ[variable]).write_bytes((OUTPUTS / f"{name}.txt").read_bytes())
        os.write(1, b"of another library\n" + (OUTPUTS / "open-mpi-tcp.txt").read_bytes())
        logs.release_stdout()
        os.write(1, b"later\n")
        assert logs.read() == [read("nccl-sockets"), read("ucx-tcp"), read("open-mpi-tcp")]
    assert os.environ["NCCL_DEBUG"] == "WARN" and "UCX_LOG_FILE" not in os.environ
    assert capfd.readouterr().out == "of another library\nlater\n"


class Written(LibraryLogs):
    """Logs with the output of some libraries."""

    def __init__(self, *names):
        self.names = names

    def read(self):
        return [read(name) for name in self.names]


def test_transports_of_all_workers_are_gathered():
    outputs = [Written("nccl-efa", "open-mpi-tcp"), Written("nccl-efa")]
    every = run_threads(loopback(2), lambda workers: gather_transports(outputs[workers.rank], workers))
    assert every[0] == every[1]
    assert [one.library for one in every[0]][:1] == ["NCCL"]
    assert [one.host for one in every[0] if one.library == "Open MPI"] == [""]


@pytest.mark.parametrize(
    ("node_of", "inside", "between"),
    [([0, 0], ["tcp"], []), ([0, 1], [], ["tcp"]), ([0, 0, 1], ["tcp"], ["tcp"])],
)
def test_gloo_has_sockets_only(node_of, inside, between, fabrics_of):
    def program(workers):
        workers.transport = "Gloo"
        return gather_transports(Written(), workers)

    (found,) = run_threads(loopback(len(node_of), node_of=node_of), program)[0]
    assert found == Transport("", "Gloo", inside, between)
    for device, level in ((CPU, "warning" if between else "ok"), (GPU, "ok")):
        assert [f.level for f in check_transports([found], fabrics_of("omni-path"), device)] == [level]
