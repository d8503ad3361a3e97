"""The store of a start: who knows the secret may use it from several threads, and nobody else."""

import secrets
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdat.distributed import authentication, key_value_store
from hpcdat.distributed.authentication import (
    HELLO,
    LONGEST_FRAME,
    MAGIC,
    FrameWriter,
    Refused,
    encode,
)
from hpcdat.distributed.key_value_store import MOST_STRANGERS, StoreServer
from hpcdat.distributed.store_client import StoreClient

SECRET = secrets.token_bytes(32)
HERE = "127.0.0.1"
REFUSED = (
    f"hpcdat: refused a connection from {HERE} to the store of the test: it did not prove that it knows the "
    "secret of this start; others are refused without a message\n"
)


@contextmanager
def serving(size=3):
    server = StoreServer(SECRET, HERE, size, "the test")
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def server():
    with serving() as made:
        yield made


def connect(server, rank=0, secret=SECRET):
    return StoreClient(HERE, server.port, secret, rank)


def connect_at_last(server, rank):
    """Again if a flood has displaced it, as a worker does."""
    for _ in range(20):
        with suppress(OSError):
            return connect(server, rank)
    raise AssertionError(f"worker {rank} was kept out")


def silent(server):
    return socket.create_connection((HERE, server.port), timeout=10)


def wait_until(what):
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_closed(connection):
    try:
        while connection.recv(1000):
            pass
    except ConnectionResetError:
        pass
    return True


def test_a_value_is_read_by_another_worker(server):
    one, other = connect(server, 0), connect(server, 1)
    one.set("key", b"\0any bytes\xff")
    assert other.get("key") == b"\0any bytes\xff"
    assert other.check(["key"]) and not other.check(["key", "another"])
    assert other.delete("key") and not one.delete("key") and not one.check(["key"])


def test_a_message_too_long_is_refused_where_it_is_sent(server):
    with pytest.raises(ValueError, match=f"at most {LONGEST_FRAME} are allowed"):
        connect(server).set("key", bytes(LONGEST_FRAME + 1))


def test_without_the_secret_nobody_is_let_in_and_it_is_said_once(server, capsys):
    for _ in range(3):
        with pytest.raises(Refused, match="does not know the secret"):
            connect(server, 1, b"a guess")
    wait_until(lambda: not server._strangers)
    assert server.workers == {} and capsys.readouterr().err == REFUSED
    connect(server, 1)


def test_a_wrong_proof_is_refused(server, capsys):
    """A stranger that does not mind that the server knows the secret."""
    with silent(server) as stranger:
        stranger.sendall(HELLO.pack(MAGIC, 1, bytes(32)))
        assert len(stranger.recv(1000)) == 64
        stranger.sendall(bytes(32))
        assert is_closed(stranger)
    assert server.workers == {} and capsys.readouterr().err == REFUSED


def test_a_recorded_handshake_is_of_no_use(server, capsys):
    """The server's nonce is another one each time."""
    sent = []

    class Recorder:
        def __init__(self, connection):
            self.connection = connection

        def sendall(self, data):
            sent.append(bytes(data))
            self.connection.sendall(data)

        def __getattr__(self, name):
            return getattr(self.connection, name)

    with pytest.MonkeyPatch.context() as patch:
        create = socket.create_connection
        patch.setattr(socket, "create_connection", lambda *a, **b: Recorder(create(*a, **b)))
        worker = connect(server, 1)
        worker.set("key", b"value")
    worker.close()
    wait_until(lambda: not server.workers)
    with silent(server) as stranger:
        for data in sent:
            stranger.sendall(data)
        assert is_closed(stranger)
    assert server.workers == {} and capsys.readouterr().err == REFUSED


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\nHost: node1\r\n\r\n" + bytes(50), HELLO.pack(MAGIC, 3, bytes(32))]
)
def test_what_is_no_hello_of_a_worker_is_refused(server, said, capsys):
    with silent(server) as stranger:
        stranger.sendall(said)
        assert is_closed(stranger)
    assert capsys.readouterr().err == REFUSED


def test_frames_of_a_worker_that_are_not_its_own_end_its_connection(server):
    worker = connect(server, 1)
    worker._socket.sendall(FrameWriter(b"guess").frame(encode({"operation": "set", "keys": ["key"]}, [b""])))
    with pytest.raises(ConnectionError):
        worker.get("key")
    wait_until(lambda: not server.workers)
    assert "key" not in server.values


def test_a_rank_connects_once_at_a_time(server, capsys):
    worker = connect(server, 1)
    with pytest.raises(Refused, match="worker 1 is connected already"):
        connect(server, 1)
    worker.set("key", b"still there")
    worker.close()
    wait_until(lambda: not server.workers)
    assert connect(server, 1).get("key") == b"still there"
    assert capsys.readouterr().err == "", "it knows the secret"


def test_nobody_can_connect_once_all_are_there(server):
    worker, stranger = connect(server), silent(server)
    server.stop_listening()
    assert is_closed(stranger)
    with pytest.raises(ConnectionRefusedError):
        silent(server)
    worker.set("key", b"")
    assert worker.check(["key"])


def test_a_silent_connection_is_closed_after_a_time(server, monkeypatch, capsys):
    monkeypatch.setattr(key_value_store, "SECONDS_TO_PROVE", 0.05)
    with silent(server) as stranger:
        assert is_closed(stranger)
    assert capsys.readouterr().err == REFUSED


def test_a_flood_of_silent_connections_keeps_no_worker_out():
    """Neither threads nor open files grow with it."""
    size, flood = 5, []
    with serving(size) as server, ExitStack() as stack:
        threads, most = threading.active_count(), []

        def attack():
            for _ in range(2000):
                flood.append(stack.enter_context(silent(server)))
                most.append(len(server._strangers))
                if len(flood) > 200:
                    flood.pop(0).close()

        attacker = threading.Thread(target=attack)
        attacker.start()
        workers = []
        for rank in range(size):
            wait_until(lambda: len(most) > 300 * len(workers))
            workers.append(connect_at_last(server, rank))
            workers[-1].set(f"of {rank}", b"value")
        attacker.join(60)
        assert len(most) == 2000 and max(most) <= MOST_STRANGERS + size
        assert threading.active_count() <= threads + size, "one for the replies to each client"
        assert set(server.workers) == set(range(size))
        assert all(workers[0].get(f"of {rank}") == b"value" for rank in range(size))


def test_several_threads_wait_over_one_connection(server):
    """A long wait delays no other request."""
    one, other, found = connect(server, 0), connect(server, 1), {}

    def wait(number):
        found[number] = one.get(f"key {number}")

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for number in reversed(range(8)):
        assert number not in found
        other.set(f"key {number}", str(number).encode())
        threads[number].join(20)
        assert found[number] == str(number).encode()


def test_a_wait_for_several_values_ends_with_the_last_or_with_the_time(server):
    one, other = connect(server, 0), connect(server, 1)
    assert one.wait([]) and not one.wait(["a", "b"], 0.02) and one.get("a", 0.02) is None
    thread = threading.Thread(target=one.wait, args=(["a", "b"],))
    thread.start()
    other.set("b", b"")
    thread.join(0.05)
    assert thread.is_alive()
    other.add("a", 1)
    thread.join(20)
    assert not thread.is_alive() and server._waiting == {}


def test_waits_of_a_worker_that_is_lost_are_dropped(server):
    one = connect(server, 0)

    def wait():
        with pytest.raises(ConnectionError):
            one.get("never")

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: server._waiting)
    one.close()
    thread.join(20)
    wait_until(lambda: not server._waiting)


def test_the_end_of_the_store_ends_the_waits_of_workers():
    with serving() as server:
        worker, errors = connect(server), []

        def wait():
            with pytest.raises(ConnectionError, match="lost the store of rank 0") as raised:
                worker.get("never")
            errors.append(raised)

        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: server._waiting)
    thread.join(20)
    assert errors
    with pytest.raises(ConnectionError, match="lost the store of rank 0"):
        worker.set("key", b"")


def test_a_request_that_cannot_be_carried_out_is_an_error_of_its_caller_alone(server):
    worker = connect(server)
    worker.set("key", b"no number")
    with pytest.raises(ValueError, match="no number"):
        worker.add("key", 1)
    with pytest.raises(ValueError, match="no operation 'exec'"):
        worker._request("exec", ["key"])
    assert worker.get("key") == b"no number"


def test_values_of_a_scope_stay_until_all_that_have_set_one_have_finished(server):
    """A worker that has connected to all others may be done before they have read its address."""
    one, other = connect(server, 0), connect(server, 1)
    for rank, worker in enumerate((one, other)):
        worker.set(f"global/{rank}", b"address")
        worker.set(f"global/rank_{rank}", b"host")
    other.set("another/1", b"address")
    one.finish("global")
    assert other.check(["global/0", "global/rank_0", "global/1", "another/1"])
    other.finish("global")
    assert not any(one.check([f"global/{name}"]) for name in ("0", "1", "rank_0", "rank_1"))
    assert one.check(["another/1"])


KEYS = st.sampled_from(["a", "b", "c/d", "ü\n"])
CALLS = st.one_of(
    st.tuples(st.just("set"), KEYS, st.binary(max_size=8)),
    st.tuples(st.just("add"), st.just("n"), st.integers(-5, 5)),
    st.tuples(st.just("compare_set"), KEYS, st.sampled_from([b"", b"x"]), st.sampled_from([b"x", b"y"])),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("check"), st.lists(KEYS, max_size=3)),
    st.tuples(st.just("get"), KEYS, st.just(0.0)),
)


def expected(model, name, key, *arguments):
    """What a dictionary does."""
    match name:
        case "set":
            model[key] = arguments[0]
        case "add":
            model[key] = str(int(model.get(key, b"0")) + arguments[0]).encode()
            return int(model[key])
        case "compare_set":
            if model.get(key, b"") == arguments[0]:
                model[key] = arguments[1]
            return model.get(key, arguments[0])
        case "delete":
            return model.pop(key, None) is not None
        case "check":
            return set(key) <= model.keys()
        case "get":
            return model.get(key)
    return None


@given(st.lists(st.tuples(st.integers(0, 1), CALLS), max_size=12))
def test_the_store_is_a_dictionary(calls):
    with serving() as server:
        workers, model = [connect(server, rank) for rank in range(2)], {}
        for rank, (name, *arguments) in calls:
            assert getattr(workers[rank], name)(*arguments) == expected(model, name, *arguments)


def test_the_time_for_a_handshake_is_bounded_for_a_worker_too(monkeypatch):
    """Another program may listen on the port that an earlier start has left in its file."""
    monkeypatch.setattr("hpcdat.distributed.store_client.SECONDS_TO_PROVE", 0.05)
    assert authentication.SECONDS_TO_PROVE == 10
    with socket.create_server((HERE, 0)) as other, pytest.raises(TimeoutError):
        StoreClient(HERE, other.getsockname()[1], SECRET, 1)
