"""What ``hpcdat report --live`` does."""

from __future__ import annotations

import getpass
import shutil
import socket
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hpcdat.cli.worker_process import reported_once
from hpcdat.errors import HpcdatError

if TYPE_CHECKING:
    from hpcdat.report.live.snapshot import Snapshot

SECONDS_BETWEEN_SNAPSHOTS = 2.0
SECONDS_AFTER_THE_END = 10.0
"""How long the page is served when the run has ended, so that open browsers show it."""
TOP_LEFT, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
"""Escape sequences: go to the top left; erase the rest of the line, of the screen."""
CLEAR = f"{TOP_LEFT}\x1b[2J"


def report_live(run: Path, port: int | None) -> None:
    """Show a run on the terminal, or as a page, until it has ended or Ctrl-C.

    Where the output is no terminal, its state is printed once.

    Args:
        run: folder of the run.
        port: of the page; 0: any free one; None: on the terminal.

    Raises:
        typer.Exit: there is no run in the folder, or the port cannot be used.
    """
    from hpcdat.report.live.server import PageServer
    from hpcdat.report.live.snapshot import take_snapshot

    def take() -> Snapshot:
        return take_snapshot(run, time.time())

    try:
        snapshot = reported_once(take)
        once = snapshot.state == "finished" or (port is None and not sys.stdout.isatty())
        if once:
            print(_text(snapshot))
            return
        with reported_once(lambda: PageServer(take, port)) if port is not None else nullcontext() as server:
            print(_where(server.address, server.port) if server else CLEAR, end="", flush=True)
            while snapshot.state != "finished":
                if server is None:
                    _redraw(_text(snapshot))
                time.sleep(SECONDS_BETWEEN_SNAPSHOTS)
                # A file may be missing for a moment, while a run is started over or on a network file system.
                with suppress(HpcdatError):
                    snapshot = take()
            if server is None:
                _redraw(_text(snapshot))
            else:
                print("the run has ended", flush=True)
                time.sleep(SECONDS_AFTER_THE_END)
    except KeyboardInterrupt:
        # The run goes on; only this view ends.
        print()


def _text(snapshot: Snapshot) -> str:
    from hpcdat.report.live.terminal import BLOCKS, terminal_text

    encoding = sys.stdout.encoding or "ascii"
    blocks = BLOCKS.encode(encoding, "replace").decode(encoding) == BLOCKS
    text = terminal_text(snapshot, shutil.get_terminal_size().columns, blocks=blocks)
    return text.encode(encoding, "replace").decode(encoding)


def _redraw(text: str) -> None:
    lines = text.split("\n")[: shutil.get_terminal_size().lines - 1]
    body = "".join(f"{line}{REST_OF_LINE}\n" for line in lines)
    print(f"{TOP_LEFT}{body}{REST_OF_SCREEN}", end="", flush=True)


def _where(address: str, port: int) -> str:
    """How to reach the page, from another machine too."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "USER"
    return (
        f"{address}\n"
        f"from another machine: ssh -N -L {port}:127.0.0.1:{port} {user}@{socket.gethostname()}, "
        "then open the same address there\n"
        "Ctrl-C ends the page, not the run\n"
    )
