"""What tests of trackers have in common: no variables left over, no network, a stand-in for wandb."""

import socket
import sys

import pytest

from hpcdat.tracking.tracking import OFFLINE
from tests.tracking.stand_in_wandb import StandIn


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """Variables that the trackers set are removed after a test."""
    for name in (*OFFLINE, "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def wandb(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.delitem(sys.modules, "hpcdat.tracking.wandb_tracker", raising=False)
    yield stand_in
    sys.modules.pop("hpcdat.tracking.wandb_tracker", None)


@pytest.fixture
def no_network(monkeypatch):
    """Counts the attempts to reach another machine, which fail."""
    attempts = []

    def refuse(*arguments, **_):
        attempts.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        allowed = getattr(socket.socket, name)

        def guarded(self, *arguments, allowed=allowed):
            # Sockets in the file system are for other processes of this machine.
            return (allowed if self.family == socket.AF_UNIX else refuse)(self, *arguments)

        monkeypatch.setattr(socket.socket, name, guarded)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts
