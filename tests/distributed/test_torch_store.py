"""Process groups of torch.distributed connect through the authenticated store."""

import secrets
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from hpcdat.distributed.key_value_store import StoreServer
from hpcdat.distributed.store_client import StoreClient
from hpcdat.distributed.torch_store import NEVER, AuthenticatedStore

LO = "127.0.0.1"


@pytest.fixture
def stores():
    """Of three workers."""
    secret = secrets.token_bytes(32)
    server = StoreServer(secret, LO, 3, "the test")
    yield [AuthenticatedStore(StoreClient(LO, server.port, secret, rank)) for rank in range(3)]
    server.close()


def behaviour(store):
    """What each operation returns; of torch's own stores, too."""
    prefixed = dist.PrefixStore("a group", store)
    prefixed.set("key", "value")
    prefixed.wait(["key"])
    prefixed.wait(["key"], timedelta(seconds=1))
    return [
        prefixed.get("key"),
        prefixed.check(["key"]),
        prefixed.check(["key", "missing"]),
        prefixed.add("number", 3),
        prefixed.add("number", -5),
        prefixed.get("number"),
        prefixed.compare_set("key", "value", "another"),
        prefixed.compare_set("key", "value", "a third"),
        prefixed.compare_set("missing", "", "first"),
        prefixed.multi_get(["key", "number"]),
        prefixed.delete_key("key"),
        prefixed.delete_key("key"),
        prefixed.check(["key"]),
        store.check(["a group/number"]),
        prefixed.clone().get("number"),
    ]


def test_it_behaves_as_torchs_own_store(stores):
    assert behaviour(stores[0]) == behaviour(dist.HashStore())


def test_its_time_limits_are_errors_of_torch(stores):
    stores[0].set_timeout(timedelta(seconds=0.05))
    with pytest.raises(dist.DistStoreError, match=r"no value of missing after 0\.05 s"):
        stores[0].get("missing")
    with pytest.raises(dist.DistStoreError, match=r"not all values of missing after 0\.05 s"):
        stores[0].wait(["missing"])
    with pytest.raises(dist.DistStoreError, match=r"not all values of a/missing after 0\.02 s"):
        dist.PrefixStore("a", stores[0]).wait(["missing"], timedelta(seconds=0.02))


def test_a_lost_store_is_the_error_by_which_torch_reports_lost_workers(stores):
    stores[0].client.close()
    with pytest.raises(dist.DistError, match="lost the store of rank 0"):
        stores[0].set("key", "value")


def test_gloo_connects_through_it(stores, monkeypatch):
    """Two groups at a time, as channels do."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")

    def sums(rank, name):
        group = dist.ProcessGroupGloo(dist.PrefixStore(name, stores[rank]), rank, 3, NEVER)
        tensor = torch.full((5,), rank + 1.0)
        group.allreduce([tensor], dist.AllreduceOptions()).wait()
        return tensor.tolist()

    with ThreadPoolExecutor(6) as pool:
        found = [pool.submit(sums, rank, name) for rank in range(3) for name in ("one", "other")]
        assert [each.result(60) for each in found] == [[6.0] * 5] * 6
