"""Connections between those who share a secret: a handshake, then frames that nobody else can write.

In the handshake, each end proves that it knows the secret. The worker sends a hello with its rank and a
nonce, rank 0 a nonce of its own and its proof, the worker its proof: HMAC-SHA256 of rank and both nonces
under the secret. A frame is its length, a code and the payload. The code is the HMAC of a counter and the
payload, under a key of this connection and direction; so frames cannot be forged, repeated, left out,
reordered or sent back. Frames are not encrypted.
"""

from __future__ import annotations

import hmac
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

HELLO = struct.Struct(">8sI32s")
"""A worker's first message: :data:`MAGIC`, its rank, a nonce."""
MAGIC = b"hpcdat 1"
BYTES_OF_NONCE = 32
BYTES_OF_PROOF = 32
SECONDS_TO_PROVE = 10.0
"""How long a handshake may take."""
LONGEST_FRAME = 2**24
"""Bytes of payload; Horovod's longest value has 136 bytes for each worker."""
_FRAME = struct.Struct(">I32s")
_HEADER = struct.Struct(">I")


class Refused(ConnectionError):
    """The other end does not know the secret, or refuses this one."""


@dataclass(frozen=True)
class Handshake:
    """What both ends of a connection have contributed.

    Attributes:
        secret: known to both.
        rank: of the worker.
        worker_nonce, server_nonce: 32 random bytes of each end, used once.
    """

    secret: bytes
    rank: int
    worker_nonce: bytes
    server_nonce: bytes

    def server_proof(self) -> bytes:
        """Shows the worker that the server knows the secret."""
        return self._code(b"proof of the server")

    def worker_proof(self) -> bytes:
        """Shows the server that the worker knows the secret."""
        return self._code(b"proof of the worker")

    def from_server(self) -> bytes:
        """Key of the frames that the server sends."""
        return self._code(b"frames of the server")

    def from_worker(self) -> bytes:
        """Key of the frames that the worker sends."""
        return self._code(b"frames of the worker")

    def _code(self, purpose: bytes) -> bytes:
        text = purpose + self.rank.to_bytes(4, "big") + self.worker_nonce + self.server_nonce
        return hmac.digest(self.secret, text, "sha256")


class FrameWriter:
    """Makes the frames of one direction of a connection.

    Args:
        key: of the direction.
    """

    def __init__(self, key: bytes) -> None:
        self._key, self._count = key, 0

    def frame(self, payload: bytes) -> bytes:
        """The next frame.

        Raises:
            ValueError: the payload is longer than :data:`LONGEST_FRAME`.
        """
        if len(payload) > LONGEST_FRAME:
            raise ValueError(f"a message of {len(payload)} bytes; at most {LONGEST_FRAME} are allowed")
        code = _code_of(self._key, self._count, payload)
        self._count += 1
        return _FRAME.pack(len(payload), code) + payload


class FrameReader:
    """Reads the frames of one direction of a connection.

    Args:
        key: of the direction.
    """

    def __init__(self, key: bytes) -> None:
        self._key, self._count, self._unread = key, 0, bytearray()

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The payloads of the frames that are complete with these bytes.

        Raises:
            Refused: a frame is too long, or is not the next one that the other end has written.
        """
        self._unread += received
        while len(self._unread) >= _FRAME.size:
            length, code = _FRAME.unpack_from(self._unread)
            if length > LONGEST_FRAME:
                raise Refused(f"a frame of {length} bytes")
            end = _FRAME.size + length
            if len(self._unread) < end:
                return
            payload = bytes(self._unread[_FRAME.size : end])
            if not hmac.compare_digest(code, _code_of(self._key, self._count, payload)):
                raise Refused("a frame with a wrong code")
            self._count += 1
            del self._unread[:end]
            yield payload


def _code_of(key: bytes, count: int, payload: bytes) -> bytes:
    return hmac.digest(key, count.to_bytes(8, "big") + payload, "sha256")


def encode(header: dict[str, Any], values: Sequence[bytes] = ()) -> bytes:
    """A payload of a JSON object and byte strings."""
    text = json.dumps(header | {"sizes": [len(value) for value in values]}).encode()
    return b"".join([_HEADER.pack(len(text)), text, *values])


def decode(payload: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The JSON object and the byte strings of :func:`encode`."""
    (length,) = _HEADER.unpack_from(payload)
    begin = _HEADER.size + length
    header = json.loads(payload[_HEADER.size : begin])
    values = []
    for size in header.pop("sizes"):
        values.append(payload[begin : begin + size])
        begin += size
    return header, values
