"""TLS between workers: what they send cannot be read, and it is refused where it is not there."""

import os
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from hpcdat.config.job_file import read_job
from hpcdat.distributed import gloo_tls
from hpcdat.distributed.engine import check_encryption
from hpcdat.distributed.gloo_tls import use_tls
from hpcdat.distributed.start_file import FOLDER
from hpcdat.distributed.torch_communicator import _Group
from hpcdat.errors import InputError
from tests.conftest import CHECKOUT, DEMO
from tests.distributed.ranks import environment
from tests.distributed.test_rendezvous import task

PATTERN = b"gradients of 64 bytes that are easy to find among many packets.."
PROGRAM = """
import sys, torch
from hpcdat.distributed.initialization import init_communicator

workers = init_communicator(60, engine="torch", encryption=sys.argv[1])
pattern = bytes.fromhex(sys.argv[2]) if workers.is_rank0 else bytes(64)
sent = torch.frombuffer(bytearray(pattern), dtype=torch.uint8)
received = workers.ibroadcast(sent, "pattern").wait()
print(bytes(received.tolist()).hex(), workers.transport)
channel = workers.channel("another")
assert channel.all_reduce_max(torch.tensor(float(workers.rank)), "rank").item() == 1
workers.close()
"""


def captured(stop):
    """All that passes over the loopback device."""
    packets = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3)) as sniffer:
        sniffer.bind(("lo", 0))
        sniffer.settimeout(0.1)
        sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**24)
        while not stop.is_set():
            try:
                packets.append(sniffer.recv(2**17))
            except TimeoutError:
                continue
    return b"".join(packets)


@pytest.mark.distributed
@pytest.mark.skipif(os.geteuid() != 0, reason="reads what passes over a network device")
@pytest.mark.skipif(
    not torch.__version__.startswith("2.11."), reason="the Gloo of this torch may have no TLS"
)
@pytest.mark.parametrize("encryption, transport", [("none", "Gloo"), ("tls", "Gloo with TLS")])
def test_only_unencrypted_values_can_be_read_on_the_network(tmp_path, encryption, transport):
    stop, seen = threading.Event(), []
    sniffer = threading.Thread(target=lambda: seen.append(captured(stop)))
    sniffer.start()
    variables = environment() | {FOLDER: str(tmp_path / "starts"), "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, encryption, PATTERN.hex()],
            env=variables | task(rank),
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=100)[0] for worker in workers]
    stop.set()
    sniffer.join()
    assert said == [f"{PATTERN.hex()} {transport}\n"] * 2
    assert (PATTERN in seen[0]) == (encryption == "none")


@pytest.mark.parametrize(
    "engine, launcher, reason",
    [
        ("horovod", "srun", "Horovod does not encrypt; set engine: torch"),
        ("torch", "torchrun", "a store without a secret"),
        ("torch", "hpcdat -np", "a store without a secret"),
    ],
)
def test_it_is_refused_where_it_is_not_there(engine, launcher, reason):
    check_encryption("none", engine, launcher)
    with pytest.raises(InputError, match=f"^encryption: tls: .*{reason}"):
        check_encryption("tls", engine, launcher)


def test_under_srun_and_mpirun_it_is_accepted(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    check_encryption("tls", "torch", "srun")
    check_encryption("tls", "torch", "mpirun")
    monkeypatch.setenv("MASTER_ADDR", "node1")
    with pytest.raises(InputError, match="mpirun without MASTER_ADDR"):
        check_encryption("tls", "torch", "mpirun")


class Store:
    """A connection to a store, of one worker."""

    def __init__(self):
        self.values = {}
        self.set, self.get = self.values.__setitem__, self.values.get

    def derive(self, purpose):
        return purpose.ljust(32, b"\xff")


def test_a_torch_without_it_is_named(monkeypatch):
    def create():
        raise RuntimeError("makeGlooDevice(): unsupported gloo device")

    monkeypatch.setattr(dist.ProcessGroupGloo, "create_default_device", staticmethod(create))
    for name in ("", "_TCP_TLS_PKEY", "_TCP_TLS_CERT", "_TCP_TLS_CA_FILE"):
        monkeypatch.setenv(f"GLOO_DEVICE_TRANSPORT{name}", "")
    with pytest.raises(
        InputError, match=rf"^encryption: tls: the Gloo of torch {torch.__version__} has no TLS"
    ):
        use_tls(Store(), makes_certificate=True)


def test_the_key_is_on_no_disk():
    path = gloo_tls._in_memory("key", b"secret")
    with open(path, "rb") as file:
        assert file.read() == b"secret"
    assert os.readlink(path).startswith("/memfd:")
    os.close(int(path.rpartition("/")[2]))


def test_tensors_on_gpus_are_not_sent_in_the_clear(monkeypatch):
    monkeypatch.setattr(dist, "ProcessGroupGloo", lambda *_: None)
    group = _Group(dist.HashStore(), 0, 1, "tls")
    with pytest.raises(
        InputError, match=r"^encryption: tls: .* NCCL, which does not encrypt: set device: cpu"
    ):
        group.of(SimpleNamespace(is_cuda=True))


def test_a_job_says_so():
    assert read_job(DEMO, []).encryption == "none"
    assert read_job(DEMO, ["encryption=tls"]).encryption == "tls"
