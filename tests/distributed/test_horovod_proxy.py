"""Horovod's requests reach the authenticated store, and those of no other process."""

import http.client
import secrets
import subprocess
import sys
import threading
import time

import pytest

from hpcdat.distributed import horovod_proxy
from hpcdat.distributed.horovod_proxy import HorovodProxy
from hpcdat.distributed.key_value_store import StoreServer
from hpcdat.distributed.store_client import StoreClient

LO = "127.0.0.1"


@pytest.fixture
def proxies():
    """One for each of two workers."""
    secret = secrets.token_bytes(32)
    server = StoreServer(secret, LO, 2, "the test")
    made = [HorovodProxy(StoreClient(LO, server.port, secret, rank)) for rank in range(2)]
    yield made
    for proxy in made:
        proxy.shutdown()
        proxy.server_close()
    server.close()


def ask(proxy, method, path, value=None):
    connection = http.client.HTTPConnection(LO, proxy.port, timeout=20)
    connection.request(method, path, value)
    reply = connection.getresponse()
    answer = reply.status, reply.read()
    connection.close()
    return answer


def test_what_one_worker_puts_another_gets(proxies, monkeypatch):
    monkeypatch.setattr(horovod_proxy, "SECONDS_FOR_A_VALUE", 0.01)
    one, other = proxies
    assert ask(other, "GET", "/global/0") == (404, b"")
    assert ask(one, "PUT", "/global/0", b"\0address") == (200, b"")
    assert ask(other, "GET", "/global/0") == (200, b"\0address") == ask(other, "GET", "/global/0")
    assert ask(other, "GET", "/local_node1/0")[0] == 404


def test_an_address_stays_until_all_of_its_scope_have_connected(proxies, monkeypatch):
    """A worker deletes its address once it has connected; another one may have yet to read it."""
    monkeypatch.setattr(horovod_proxy, "SECONDS_FOR_A_VALUE", 0.01)
    one, other = proxies
    for rank, proxy in enumerate(proxies):
        ask(proxy, "PUT", f"/global/{rank}", b"address")
    assert ask(one, "DELETE", "/global/0") == (200, b"")
    assert ask(other, "GET", "/global/0")[0] == 200
    ask(other, "DELETE", "/global/1")
    assert ask(one, "GET", "/global/1")[0] == 404


def test_a_request_for_a_missing_value_waits_for_it(proxies, monkeypatch):
    monkeypatch.setattr(horovod_proxy, "SECONDS_FOR_A_VALUE", 30)
    one, other = proxies
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(other, "GET", "/global/0")))
    thread.start()
    time.sleep(0.1)
    assert answers == []
    ask(one, "PUT", "/global/0", b"address")
    thread.join(20)
    assert answers == [(200, b"address")]


def test_horovod_asks_the_store_once_for_one_value(proxies, monkeypatch):
    one, other = proxies
    asked = []
    get = other.client.get
    monkeypatch.setattr(other.client, "get", lambda key, seconds: asked.append(key) or get(key, seconds))
    for rank in range(2):
        ask(one, "PUT", f"/global/{rank}", b"address")
    for rank in (0, 0, 0, 1, 1):
        ask(other, "GET", f"/global/{rank}")
    assert asked == ["horovod/global/0", "horovod/global/1"]


ANOTHER = """
import http.client, sys
for method in ("GET", "PUT", "DELETE"):
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=20)
    try:
        connection.request(method, "/global/0", b"mine")
        connection.getresponse()
    except OSError as error:
        print("closed")
"""


def test_another_process_is_refused_and_it_is_said_once(proxies, capfd):
    one, other = proxies
    ask(one, "PUT", "/global/0", b"address")
    command = [sys.executable, "-c", ANOTHER, str(one.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "closed\n" * 3, done.stderr
    assert ask(one, "GET", "/global/0") == (200, b"address") == ask(other, "GET", "/global/0")
    said = capfd.readouterr().err
    assert said.startswith("hpcdat: refused a connection from another process on ") and said.count("\n") == 1


def test_a_store_that_is_lost_is_no_traceback(proxies, capfd):
    proxies[0].client.close()
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(proxies[0], "GET", "/global/0")
    assert capfd.readouterr().err == ""
