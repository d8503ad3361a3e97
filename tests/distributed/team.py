"""A team of real ranks that is launched once and runs many programs.

To start Python, torch and a transport on several ranks takes longer than most programs. Ranks of a team
therefore wait for the next program (:mod:`tests.distributed.rank`). A team that a program has failed on
is ended, and the next program starts another one: what a program leaves behind when it fails is not
felt by the next. What one leaves behind when it succeeds is an error of its own.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import CHECKOUT
from tests.distributed.ranks import environment, launcher

SECONDS_TO_START = 120


class RanksFailed(AssertionError):
    """A program failed on a rank, a rank has ended, or they took too long; the message has their output."""


class Team:
    """Ranks over one transport.

    Args:
        transport: one of :data:`tests.distributed.ranks.TRANSPORTS`.
        size: number of ranks.
        divisible: whether they may be divided into teams.
        prefix: the command in front of a rank's, for ranks that are launched in another way.
        variables: more of the environment.
    """

    def __init__(self, transport, size, *, divisible=False, prefix=None, variables=None):
        self.transport, self.size, self.divisible = transport, size, divisible
        self.prefix, self.variables = prefix or launcher(transport, size), variables or {}
        self._process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def run(self, program, *arguments, timeout=240):
        """Run ``programs.MODULE.NAME(workers, patch, *arguments)`` on every rank; their answers, in order.

        Args:
            program: ``MODULE.NAME``.
            arguments: JSON values or paths, the same for all ranks.
            timeout: seconds that all ranks may take together.

        Raises:
            RanksFailed: as its name says; the ranks have been ended.
        """
        if self._process is None:
            self._start()
        order = json.dumps({"program": program, "arguments": arguments}, default=str) + "\n"
        try:
            for connection in self._connections:
                connection.sendall(order.encode())
            answers = self._answers(time.monotonic() + timeout)
        except (OSError, RanksFailed) as error:
            said = self._log.read_text()
            self.end(orderly=False)
            raise RanksFailed(
                f"{program} over {self.transport} on {self.size} ranks: {error}\n{said}"
            ) from None
        return answers

    def _start(self):
        self._folder = tempfile.TemporaryDirectory(prefix="hpcdat-team-")
        address, self._log = Path(self._folder.name, "socket"), Path(self._folder.name, "log")
        with socket.socket(socket.AF_UNIX) as server, self._log.open("wb") as log:
            server.bind(str(address))
            server.listen()
            server.settimeout(0.5)
            command = [sys.executable, "-m", "tests.distributed.rank", str(address), str(int(self.divisible))]
            self._process = subprocess.Popen(
                [*self.prefix, *command],
                cwd=CHECKOUT,
                env=environment() | self.variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            self._connections, self._unread = [None] * self.size, [b""] * self.size
            try:
                for _ in range(self.size):
                    connection = self._accept(server)
                    self._connections[json.loads(connection.makefile().readline())["rank"]] = connection
            except (OSError, ValueError) as error:
                said = self._log.read_text()
                self.end(orderly=False)
                raise RanksFailed(f"no {self.size} ranks over {self.transport}: {error}\n{said}") from None

    def _accept(self, server):
        """The connection of one more rank; an error as soon as the launcher has ended."""
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                if self._process.poll() is not None:
                    raise ConnectionError(
                        f"the launcher ended with code {self._process.returncode}"
                    ) from None
            else:
                connection.settimeout(SECONDS_TO_START)
                return connection
        raise TimeoutError(f"not all have started within {SECONDS_TO_START} s")

    def _answers(self, deadline):
        answers = {}
        with selectors.DefaultSelector() as selector:
            for rank, connection in enumerate(self._connections):
                selector.register(connection, selectors.EVENT_READ, rank)
            while len(answers) < self.size:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise RanksFailed(f"ranks {sorted(set(range(self.size)) - set(answers))} took too long")
                for key, _ in ready:
                    received = key.fileobj.recv(2**20)
                    if not received:
                        raise RanksFailed(f"rank {key.data} has ended")
                    self._unread[key.data] += received
                    if received.endswith(b"\n"):
                        answer = json.loads(self._unread[key.data])
                        self._unread[key.data] = b""
                        if "failure" in answer:
                            raise RanksFailed(f"rank {key.data}:\n{answer['failure']}")
                        answers[key.data] = answer["answer"]
        return [answers[rank] for rank in range(self.size)]

    def end(self, *, orderly=True):
        """End the ranks, if there are any.

        Args:
            orderly: let them leave each other; else they are killed, as one may hang.

        Raises:
            RanksFailed: they did not leave within 30 seconds and with exit code 0.
        """
        if self._process is None:
            return
        process, self._process = self._process, None
        for connection in filter(None, self._connections):
            connection.close()
        try:
            if orderly and process.wait(30):
                raise RanksFailed(f"exit code {process.returncode}:\n{self._log.read_text()}")
        except subprocess.TimeoutExpired:
            raise RanksFailed(f"they do not end:\n{self._log.read_text()}") from None
        finally:
            _kill_session(process.pid)
            process.wait()
            self._folder.cleanup()


def _kill_session(leader):
    """All processes of the launcher's session; mpirun starts ranks in process groups of their own."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == leader:
                os.kill(int(folder.name), signal.SIGKILL)
        except (OSError, IndexError):
            continue
