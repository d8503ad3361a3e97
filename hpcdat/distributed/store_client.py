"""A worker's connection to the store on rank 0."""

from __future__ import annotations

import hmac
import itertools
import secrets
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

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

Reply = tuple[dict[str, Any], list[bytes]]
"""Header and values of a reply."""


class StoreClient:
    """A worker's connection to the store on rank 0; any number of threads may use it at a time.

    Args:
        address, port: of the store.
        secret: of this start.
        rank: of this worker.

    Raises:
        Refused: the other end does not know the secret, or a worker of this rank is connected already.
        OSError: nothing answers there.
    """

    def __init__(self, address: str, port: int, secret: bytes, rank: int) -> None:
        self._socket = socket.create_connection((address, port), timeout=SECONDS_TO_PROVE)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            handshake = self._shake_hands(secret, rank)
            self._reader = FrameReader(handshake.from_server())
            self._writer = FrameWriter(handshake.from_worker())
            ((header, _),) = self._read()
            if "error" in header:
                raise Refused(header["error"])
            self._socket.settimeout(None)
        except BaseException:
            self._socket.close()
            raise
        self._numbers = itertools.count()
        self._replies: dict[int, Future[Reply]] = {}
        self._lost: str | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._receive, name="replies of the store", daemon=True).start()

    def set(self, key: str, value: bytes) -> None:
        """Set a value, whether there is one already or not."""
        self._request("set", [key], [value])

    def get(self, key: str, seconds: float | None = None) -> bytes | None:
        """A value, as soon as it is there; None if it is not after so many seconds (None: no limit)."""
        _, found = self._request("get", [key], seconds=seconds)
        return found[0] if found else None

    def wait(self, keys: Sequence[str], seconds: float | None = None) -> bool:
        """Wait for values; whether they were there within so many seconds (None: no limit)."""
        return bool(self._request("wait", keys, seconds=seconds)[0]["answer"])

    def check(self, keys: Sequence[str]) -> bool:
        """Whether there are all of these values."""
        return bool(self._request("check", keys)[0]["answer"])

    def add(self, key: str, amount: int) -> int:
        """Add to a number, from 0 if it is missing; the sum."""
        return int(self._request("add", [key], amount=amount)[0]["answer"])

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        """See :meth:`hpcdat.distributed.values.Values.compare_set`."""
        return self._request("compare_set", [key], [expected, desired])[1][0]

    def delete(self, key: str) -> bool:
        """Delete a value; whether there was one."""
        return bool(self._request("delete", [key])[0]["answer"])

    def finish(self, scope: str) -> None:
        """Say that this worker needs the values of ``SCOPE/NAME`` no longer."""
        self._request("finish", [], scope=scope)

    def close(self) -> None:
        """Leave the store."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def _request(
        self, operation: str, keys: Sequence[str], given: Sequence[bytes] = (), **more: Any
    ) -> Reply:
        """Send a request and wait for the reply.

        Raises:
            ConnectionError: the connection to rank 0 is lost.
            ValueError: the store cannot carry it out.
        """
        reply: Future[Reply] = Future()
        with self._lock:
            if self._lost is not None:
                raise ConnectionError(self._lost)
            number = next(self._numbers)
            request = {"id": number, "operation": operation, "keys": list(keys)} | more
            frame = self._writer.frame(encode(request, given))
            self._replies[number] = reply
            try:
                self._socket.sendall(frame)
            except OSError as error:
                raise ConnectionError(f"lost the store of rank 0: {error}") from None
        header, values = reply.result()
        if "error" in header:
            raise ValueError(header["error"])
        return header, values

    def _shake_hands(self, secret: bytes, rank: int) -> Handshake:
        """See :mod:`hpcdat.distributed.authentication`."""
        nonce = secrets.token_bytes(BYTES_OF_NONCE)
        self._socket.sendall(HELLO.pack(MAGIC, rank, nonce))
        handshake = Handshake(secret, rank, nonce, self._receive_exactly(BYTES_OF_NONCE))
        if not hmac.compare_digest(self._receive_exactly(BYTES_OF_PROOF), handshake.server_proof()):
            raise Refused("what answers there does not know the secret of this start")
        self._socket.sendall(handshake.worker_proof())
        return handshake

    def _receive_exactly(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            part = self._socket.recv(count - len(received))
            if not part:
                raise Refused("what answers there has closed the connection")
            received += part
        return received

    def _read(self) -> list[Reply]:
        """Wait for at least one reply.

        Raises:
            ConnectionError: the connection is lost.
        """
        replies: list[Reply] = []
        while not replies:
            received = self._socket.recv(2**18)
            if not received:
                raise ConnectionError("the store of rank 0 has closed the connection")
            replies += [decode(payload) for payload in self._reader.feed(received)]
        return replies

    def _receive(self) -> None:
        """Hand replies to those who wait for them, until the connection is lost."""
        try:
            while True:
                for header, values in self._read():
                    self._replies.pop(header["id"]).set_result((header, values))
        except (OSError, LookupError, ValueError) as error:
            with self._lock:
                self._lost = f"lost the store of rank 0: {error}"
            for reply in self._replies.values():
                reply.set_exception(ConnectionError(self._lost))
            self._socket.close()
