"""The store on rank 0 through which the workers of a start exchange the addresses of their connections."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
import sys
import threading
from collections import defaultdict
from typing import Any, cast

from hpcdat.distributed.authentication import (
    BYTES_OF_NONCE,
    BYTES_OF_PROOF,
    HELLO,
    MAGIC,
    SECONDS_TO_PROVE,
    FrameReader,
    FrameWriter,
    Handshake,
    Refused,
    decode,
    encode,
)
from hpcdat.distributed.values import Values

MOST_STRANGERS = 128
"""Connections in a handshake, beyond one for each worker; the oldest is closed for another one."""
SECONDS_TO_RECOVER = 0.05
"""Pause after a connection that could not be accepted."""
BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted."""


class StoreServer:
    """Serves :class:`Values` to workers that know the secret, in a thread, until this process ends.

    Each worker has one connection. One that has not proved after :data:`SECONDS_TO_PROVE` seconds that it
    knows the secret is closed; the first such connection is reported.

    Args:
        secret: of this start.
        address: of this node, on which to listen; the port is one that is free.
        size: number of workers.
        name: of the workers as a whole, for the message.

    Raises:
        OSError: this node has no such address.
    """

    def __init__(self, secret: bytes, address: str, size: int, name: str) -> None:
        self.secret, self.size, self.name = secret, size, name
        self.workers: dict[int, _Connection] = {}
        self.values = Values()
        self._waiting: dict[str, list[_Waiter]] = defaultdict(list)
        self._strangers: dict[_Connection, None] = {}
        self._reported = False
        self.loop = asyncio.new_event_loop()
        self._listener = socket.create_server((address, 0), backlog=BACKLOG)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._accepted: set[asyncio.Task[Any]] = set()
        self._accept_next()
        threading.Thread(target=self.loop.run_forever, name="key-value store", daemon=True).start()

    def stop_listening(self) -> None:
        """Take no more connections, and close those that are not a worker's."""

        async def stop() -> None:
            if self._is_listening():
                self.loop.remove_reader(self._listener)
                self._listener.close()
            for stranger in list(self._strangers):
                stranger.close()

        asyncio.run_coroutine_threadsafe(stop(), self.loop).result()

    def close(self) -> None:
        """Close all connections, and end the thread."""
        self.stop_listening()

        async def end() -> None:
            for worker in list(self.workers.values()):
                worker.close()
            # The loop closes them in its next turn.
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _accept_next(self) -> None:
        """Take the next connection when there is one."""
        if self._is_listening():
            self.loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            # It has been closed already, or this process has too many files open.
            self.loop.remove_reader(self._listener)
            self.loop.call_later(SECONDS_TO_RECOVER, self._accept_next)
            return
        connection.setblocking(False)
        task = self.loop.create_task(self.loop.connect_accepted_socket(lambda: _Connection(self), connection))
        self._accepted.add(task)
        task.add_done_callback(self._accepted.discard)

    def _is_listening(self) -> bool:
        return self._listener.fileno() >= 0

    def admit(self, stranger: _Connection) -> None:
        """Note a new connection; if there are too many, the oldest is closed."""
        if not self._is_listening():
            stranger.close()
            return
        self._strangers[stranger] = None
        if len(self._strangers) > MOST_STRANGERS + self.size:
            next(iter(self._strangers)).refuse()

    def forget(self, stranger: _Connection) -> None:
        """A connection is closed, or a worker's."""
        self._strangers.pop(stranger, None)

    def report(self, address: str) -> None:
        """Report the first connection that is refused."""
        if not self._reported:
            self._reported = True
            print(
                f"hpcdat: refused a connection from {address} to the store of {self.name}: it did not prove "
                "that it knows the secret of this start; others are refused without a message",
                file=sys.stderr,
                flush=True,
            )

    def answer(self, connection: _Connection, request: dict[str, Any], given: list[bytes]) -> None:
        """Carry out a request; one for values that are missing is answered when they are there.

        Raises:
            LookupError, TypeError, ValueError: there is no such request.
        """
        keys: list[str] = request["keys"]
        answer: int | bool | None = None
        found: list[bytes] = []
        match request["operation"]:
            case "get" | "wait":
                _Waiter(self, connection, request).begin()
                return
            case "set":
                self.values.set(keys[0], given[0], connection.rank)
                self.wake(keys[0])
            case "add":
                answer = self.values.add(keys[0], request["amount"], connection.rank)
                self.wake(keys[0])
            case "compare_set":
                found = [self.values.compare_set(keys[0], given[0], given[1], connection.rank)]
                self.wake(keys[0])
            case "check":
                answer = all(key in self.values for key in keys)
            case "delete":
                answer = self.values.delete(keys[0])
            case "finish":
                self.values.finish(request["scope"], connection.rank)
            case other:
                raise ValueError(f"no operation {other!r}")
        connection.send({"id": request["id"], "answer": answer}, found)

    def wake(self, key: str) -> None:
        """Go on with the requests that wait for a value, if it is there."""
        if key in self.values:
            for waiter in self._waiting.pop(key, ()):
                waiter.come(key)

    def hold(self, waiter: _Waiter, keys: set[str]) -> None:
        """Keep a request until values are there."""
        for key in keys:
            self._waiting[key].append(waiter)

    def drop(self, waiter: _Waiter, keys: set[str]) -> None:
        """Keep a request no longer."""
        for key in keys:
            self._waiting[key].remove(waiter)
            if not self._waiting[key]:
                del self._waiting[key]


class _Waiter:
    """A request for values, some of which may be missing.

    Args:
        server: which has the values.
        connection: from which the request came.
        request: ``get`` of one key, or ``wait`` for several.
    """

    def __init__(self, server: StoreServer, connection: _Connection, request: dict[str, Any]) -> None:
        self._server, self._connection, self._request = server, connection, request
        self._missing = {key for key in request["keys"] if key not in server.values}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Answer, or wait."""
        if not self._missing:
            self._answer(True)
            return
        self._server.hold(self, self._missing)
        self._connection.waiters.add(self)
        if self._request["seconds"] is not None:
            self._timer = self._server.loop.call_later(self._request["seconds"], self._expire)

    def come(self, key: str) -> None:
        """A value is there."""
        self._missing.remove(key)
        if not self._missing:
            self.end()
            self._answer(True)

    def end(self) -> None:
        """Wait no longer."""
        self._server.drop(self, self._missing)
        self._connection.waiters.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self.end()
        self._answer(False)

    def _answer(self, there: bool) -> None:
        key = self._request["keys"][0] if there and self._request["operation"] == "get" else None
        found = [] if key is None else [self._server.values[key]]
        self._connection.send({"id": self._request["id"], "answer": there}, found)


class _Connection(asyncio.Protocol):
    """One connection, at first a stranger's.

    Args:
        server: which it is to.
    """

    def __init__(self, server: StoreServer) -> None:
        self._server = server
        self._unread, self._is_reported = b"", True
        self._handshake: Handshake | None = None
        self._frames: tuple[FrameReader, FrameWriter] | None = None
        self.waiters: set[_Waiter] = set()

    @property
    def rank(self) -> int:
        """Of the worker; it has been named in the handshake."""
        assert self._handshake is not None
        return self._handshake.rank

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._address: str = transport.get_extra_info("peername")[0]
        self._deadline = self._server.loop.call_later(SECONDS_TO_PROVE, self.refuse)
        self._server.admit(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._deadline.cancel()
        self._server.forget(self)
        for waiter in list(self.waiters):
            waiter.end()
        if self._handshake and self._server.workers.get(self._handshake.rank) is self:
            del self._server.workers[self._handshake.rank]
        elif self._frames is None and self._is_reported:
            self._server.report(self._address)

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        try:
            if self._frames is None:
                self._shake_hands(data)
                return
            for payload in self._frames[0].feed(data):
                request, given = decode(payload)
                try:
                    self._server.answer(self, request, given)
                except (LookupError, TypeError, ValueError) as error:
                    self.send({"id": request["id"], "error": f"{type(error).__name__}: {error}"})
        except Refused:
            self.refuse()

    def _shake_hands(self, data: bytes) -> None:
        """Take part in a handshake; see :mod:`hpcdat.distributed.authentication`."""
        self._unread += data
        if self._handshake is None:
            if len(self._unread) < HELLO.size:
                return
            magic, rank, nonce = HELLO.unpack_from(self._unread)
            if magic != MAGIC or rank >= self._server.size:
                raise Refused
            self._unread = self._unread[HELLO.size :]
            self._handshake = Handshake(self._server.secret, rank, nonce, secrets.token_bytes(BYTES_OF_NONCE))
            self._transport.write(self._handshake.server_nonce + self._handshake.server_proof())
        if len(self._unread) < BYTES_OF_PROOF:
            return
        if not hmac.compare_digest(self._unread, self._handshake.worker_proof()):
            raise Refused
        self._begin_frames(self._handshake)

    def _begin_frames(self, handshake: Handshake) -> None:
        self._deadline.cancel()
        self._server.forget(self)
        self._frames = FrameReader(handshake.from_worker()), FrameWriter(handshake.from_server())
        if handshake.rank in self._server.workers:
            self.send({"error": f"worker {handshake.rank} is connected already"})
            self._transport.close()
            return
        self._server.workers[handshake.rank] = self
        self.send({"answer": True})

    def send(self, header: dict[str, Any], values: list[bytes] | None = None) -> None:
        """Send a reply."""
        assert self._frames is not None  # only a worker's requests are answered
        self._transport.write(self._frames[1].frame(encode(header, values or [])))

    def refuse(self) -> None:
        """Close and report it."""
        self._server.forget(self)
        self._server.report(self._address)
        self._transport.abort()

    def close(self) -> None:
        """Close without a report."""
        self._is_reported = False
        self._server.forget(self)
        self._transport.abort()
