"""The page of a run that is under way, served to this machine only."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import Thread

from hpcdat.errors import HpcdatError, InputError
from hpcdat.report.live.snapshot import Snapshot
from hpcdat.report.live.terminal import SHOWN, progress_text

ADDRESS = "127.0.0.1"
REQUEST_SECONDS = 10
"""How long a connection may take to send its request."""
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""The page loads nothing from anywhere else, and no other page may show it."""


class PageServer:
    """Serves the page and the snapshots that it asks for, below a secret path, inside a ``with`` block.

    Other users of the machine can reach the port, but do not know the path.

    Args:
        take: takes a snapshot.
        port: to listen on; 0: any free one.

    Raises:
        InputError: the port cannot be used.
    """

    def __init__(self, take: Callable[[], Snapshot], port: int) -> None:
        self.take = take
        self.path = f"/{secrets.token_urlsafe(16)}/"
        try:
            self._server = ThreadingHTTPServer((ADDRESS, port), self._handler())
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port}: cannot be used: {getattr(error, 'strerror', error)}") from None
        self._thread = Thread(target=self._server.serve_forever, name="page", daemon=True)
        self.port: int = self._server.server_address[1]

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://{ADDRESS}:{self.port}{self.path}"

    def __enter__(self) -> PageServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        take, path = self.take, self.path
        page = files("hpcdat.report.live").joinpath("page.html").read_bytes()

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS

            def do_GET(self) -> None:
                if self.path == path:
                    self._send(200, "text/html; charset=utf-8", page)
                elif self.path == f"{path}snapshot.json":
                    try:
                        self._send(200, "application/json", snapshot_json(take()).encode())
                    except HpcdatError as error:
                        self._send(503, "text/plain; charset=utf-8", str(error).encode())
                else:
                    self._send(404, "text/plain; charset=utf-8", b"not found")

            def _send(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.send_header("Content-Security-Policy", POLICY)
                self.send_header("X-Content-Type-Options", "nosniff")
                self.send_header("Referrer-Policy", "no-referrer")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing about requests."""

        return Handler


def snapshot_json(snapshot: Snapshot) -> str:
    """A snapshot as the page reads it: with labels and units, and times as text."""
    shown = [
        {"label": label, "unit": unit, "points": list(snapshot.curves[name])}
        for name, (label, unit) in SHOWN.items()
        if name in snapshot.curves
    ]
    fields = dataclasses.asdict(snapshot)
    del fields["curves"]
    return json.dumps({**fields, "curves": shown, "progress": progress_text(snapshot)})
