"""The stores through which the process groups of torch.distributed connect."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from hpcdat.distributed.launcher import STORE, Launched
from hpcdat.distributed.rendezvous import meet, party_of
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.store_client import StoreClient
from hpcdat.distributed.waiting import Wait, wait_in_thread

T = TypeVar("T")

NEVER = timedelta(days=365)
"""Timeout of torch.distributed itself; the watchdog bounds every wait."""


class AuthenticatedStore(dist.Store):
    """The store on rank 0, for torch.distributed, which calls these methods from any thread.

    Args:
        client: this worker's connection to it.
    """

    def __init__(self, client: StoreClient) -> None:
        super().__init__()
        self.client = client

    def set(self, key: str, value: bytes | str) -> None:  # noqa: D102
        self._ask(lambda: self.client.set(key, _bytes(value)))

    def get(self, key: str) -> bytes:  # noqa: D102
        value = self._ask(lambda: self.client.get(key, self._seconds()))
        if value is None:
            raise dist.DistStoreError(f"no value of {key} after {self._seconds():g} s")
        return value

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:  # noqa: D102
        seconds = timeout.total_seconds() if timeout else self._seconds()
        if not self._ask(lambda: self.client.wait(keys, seconds)):
            raise dist.DistStoreError(f"not all values of {', '.join(keys)} after {seconds:g} s")

    def check(self, keys: Sequence[str]) -> bool:  # noqa: D102
        return self._ask(lambda: self.client.check(keys))

    def add(self, key: str, amount: int) -> int:  # noqa: D102
        return self._ask(lambda: self.client.add(key, amount))

    def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:  # noqa: D102
        return self._ask(lambda: self.client.compare_set(key, _bytes(expected), _bytes(desired)))

    def delete_key(self, key: str) -> bool:  # noqa: D102
        return self._ask(lambda: self.client.delete(key))

    def clone(self) -> AuthenticatedStore:
        """A store of the same values that another thread may use: this one, since any thread may."""
        return self

    def _ask(self, request: Callable[[], T]) -> T:
        """Carry out a request; that rank 0 is lost is reported as torch's own stores report it."""
        try:
            return request()
        except ConnectionError as error:
            raise dist.DistNetworkError(str(error)) from None

    def _seconds(self) -> float:
        """How long to wait for a value, unless a call sets another time."""
        return float(self.timeout.total_seconds())  # type: ignore[attr-defined]

    # The name under which torch itself calls it.
    deleteKey = delete_key  # noqa: N815


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


def connect_store(place: Launched, longest: float, stop: StopRequest | None) -> dist.Store:
    """Connect to the store through which the process groups of torch.distributed connect.

    Args:
        place: of this worker.
        longest: how long to wait for the other workers, seconds.
        stop: request to stop, which ends the wait.

    Raises:
        InputError, WorkerError, Stopped: as :func:`~hpcdat.distributed.rendezvous.meet`.
    """
    store: dist.Store
    if place.launcher == "hpcdat -np":
        return dist.FileStore(os.environ[STORE], place.size)
    if place.launcher == "torchrun" or (place.launcher == "mpirun" and "MASTER_ADDR" in os.environ):
        where = f"{os.environ['MASTER_ADDR']}, port {os.environ.get('MASTER_PORT', '?')}"
        wait = Wait(f"rank 0 to answer on {where} (MASTER_ADDR, MASTER_PORT)", stop, shown=place.rank < 2)
        timeout = timedelta(seconds=longest)

        def connect() -> dist.Store:
            connected: dist.Store = next(dist.rendezvous("env://", place.rank, place.size, timeout=timeout))[
                0
            ]
            return connected

        store = wait_in_thread(connect, wait)
    else:
        store = AuthenticatedStore(meet(party_of(place), longest, stop))
    store.set_timeout(NEVER)
    return store
