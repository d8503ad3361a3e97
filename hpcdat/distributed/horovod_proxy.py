"""Hands the requests of a worker's Horovod on to the authenticated store.

Horovod's own client speaks HTTP without authentication. So each worker serves it on its loopback device, and
answers nobody but itself.
"""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hpcdat.distributed.addresses import LOOPBACK
from hpcdat.distributed.store_client import StoreClient

SECONDS_FOR_A_VALUE = 0.5
"""How long a request for a missing value waits at the store; Horovod repeats it."""
SOCKETS = Path("/proc/self/fd")
"""Holds an entry for each open file and socket of this process, named by its number."""


class HorovodProxy(ThreadingHTTPServer):
    """Answers this process's Horovod, in threads, until the process ends.

    Args:
        client: this worker's connection to the store.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, client: StoreClient) -> None:
        super().__init__((LOOPBACK, 0), _Requests)
        self.client = client
        self.port: int = self.server_address[1]
        self.latest: tuple[str, bytes | None] = "", None
        self._reported = False
        threading.Thread(target=self.serve_forever, name="Horovod's requests", daemon=True).start()

    def server_bind(self) -> None:
        """Without the look-up of this node's full name, for which ``http.server`` may wait a minute."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Horovod reports that it got no answer."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection is from this process; others are closed, and the first one is reported."""
        if is_own_connection(client_address, self.server_address):
            return True
        if not self._reported:
            self._reported = True
            print(
                f"hpcdat: refused a connection from another process on {socket.gethostname()} (port "
                f"{client_address[1]}) to Horovod's addresses; others are refused without a message",
                file=sys.stderr,
                flush=True,
            )
        return False


class _Requests(BaseHTTPRequestHandler):
    """``GET``, ``PUT`` and ``DELETE`` of ``/SCOPE/KEY``, as Horovod's own server answers them.

    A worker deletes its address when it has connected. Others may still need it, so the addresses of a scope
    are kept until all of its workers have done so.
    """

    server: HorovodProxy

    def do_GET(self) -> None:
        key, value = self.server.latest
        if key != self.path:
            # Horovod asks several times for one value before it asks for the next.
            value = self.server.client.get(self._key(), SECONDS_FOR_A_VALUE)
            self.server.latest = (self.path, value) if value is not None else ("", None)
        self._answer(404 if value is None else 200, value or b"")

    def do_PUT(self) -> None:
        self.server.client.set(self._key(), self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(200)

    def do_DELETE(self) -> None:
        self.server.client.finish(self._key().rpartition("/")[0])
        self._answer(200)

    def _key(self) -> str:
        return f"horovod{self.path}"

    def _answer(self, status: int, text: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are not logged."""


def is_own_connection(client: object, server: object) -> bool:
    """Whether this process holds the client's end of a connection.

    Its own sockets are compared, since reading the connections of the whole node (``/proc/net/tcp``) takes
    milliseconds, and Horovod opens a connection for each request.

    Args:
        client, server: addresses and ports of the two ends.
    """
    # The client's end is among the latest.
    for number in sorted((int(entry.name) for entry in SOCKETS.iterdir()), reverse=True):
        try:
            held = socket.socket(fileno=number)
        except OSError:
            continue
        try:
            if held.getsockname() == client and held.getpeername() == server:
                return True
        except OSError:
            continue
        finally:
            held.detach()
    return False
