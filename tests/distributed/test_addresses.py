"""Slurm's lists of nodes, and the address under which other nodes reach this one."""

from types import SimpleNamespace

import pytest

from hpcdat.distributed import addresses
from hpcdat.distributed.addresses import address_for_workers
from hpcdat.distributed.slurm_step import first_host, last_host, tasks_per_node
from hpcdat.errors import InputError, WorkerError


@pytest.mark.parametrize(
    "short, first, last",
    [
        ("node7", "node7", "node7"),
        ("node[03-05,9],gpu1", "node03", "gpu1"),
        ("gpu1,node[03-05,9]", "gpu1", "node9"),
        ("node[03-05]", "node03", "node05"),
        ("a,b", "a", "b"),
        ("rack[1-2]-ib", "rack1-ib", "rack2-ib"),
        ("n[11,13]", "n11", "n13"),
    ],
)
def test_first_and_last_host(short, first, last):
    assert (first_host(short), last_host(short)) == (first, last)


@pytest.mark.parametrize("short, counts", [("4", [4]), ("2(x3),1", [2, 2, 2, 1]), ("1,3(x2)", [1, 3, 3])])
def test_tasks_per_node(short, counts):
    assert tasks_per_node(short) == counts


@pytest.mark.parametrize("variable", ["GLOO_SOCKET_IFNAME", "HOROVOD_GLOO_IFACE"])
def test_the_address_is_that_of_the_network_card_that_is_named(variable):
    assert address_for_workers("nowhere.invalid", None, {variable: "lo"}) == "127.0.0.1"
    with pytest.raises(InputError, match=f"^{variable}=ib7: no network card of .* with an IPv4 address"):
        address_for_workers(None, None, {variable: "ib7"})


def test_the_address_is_the_one_from_which_another_node_is_reached():
    assert address_for_workers("localhost", None, {}) == "127.0.0.1"
    with pytest.raises(WorkerError, match=r"the name of node nowhere\.invalid does not resolve on"):
        address_for_workers("nowhere.invalid", None, {})


def test_where_no_other_node_is_known_it_is_that_of_the_own_name(monkeypatch):
    found = SimpleNamespace(gethostname=lambda: "node1", gethostbyname={"node1": "10.0.0.1"}.__getitem__)
    monkeypatch.setattr(addresses, "socket", found)
    assert address_for_workers(None, None, {}) == "10.0.0.1"
    found.gethostbyname = {"node1": "127.0.1.1"}.__getitem__
    with pytest.raises(InputError, match=r"node1 resolves to 127\.0\.1\.1, .* set GLOO_SOCKET_IFNAME"):
        address_for_workers(None, None, {})
