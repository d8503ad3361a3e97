"""Join the other workers of a run."""

from __future__ import annotations

from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.horovod_communicator import HorovodCommunicator
from hpcdat.distributed.launcher import launched
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import WorkerError


def init_communicator(stall_timeout: float, *, divisible: bool = False) -> Communicator:
    """Join the other workers of this run, or be the only one.

    Args:
        stall_timeout: longest wait for the others, seconds.
        divisible: whether they may be divided into teams. Horovod then takes a lock for as long as it
            talks to the other workers, which every new collective waits for, so only where it is needed.

    Raises:
        WorkerError: the workers could not find each other.
    """
    place = launched()
    if place.size == 1:
        return SingleProcess(place.launcher)
    try:
        return HorovodCommunicator(place, stall_timeout, divisible=divisible)
    except ImportError as error:
        raise WorkerError(f"{place.size} workers need Horovod, which does not start: {error}") from error
    except RuntimeError as error:
        raise WorkerError(f"worker {place.rank} of {place.size} cannot join the others: {error}") from error
