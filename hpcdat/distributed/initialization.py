"""Join the other workers of a run."""

from __future__ import annotations

from typing import Literal

from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.engine import choose_engine
from hpcdat.distributed.horovod_communicator import HorovodCommunicator
from hpcdat.distributed.launcher import launched
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.distributed.torch_communicator import TorchCommunicator
from hpcdat.errors import WorkerError


def init_communicator(
    stall_timeout: float,
    *,
    engine: Literal["auto", "horovod", "torch"] = "auto",
    stop: StopRequest | None = None,
    divisible: bool = False,
) -> Communicator:
    """Join the other workers of this run, or be the only one.

    Args:
        stall_timeout: longest wait for the others, seconds.
        engine: the job's.
        stop: request to stop, which ends the wait for the others.
        divisible: whether :meth:`Communicator.split` may be called. Horovod then holds a lock while it
            negotiates with the other workers, which delays every new collective.

    Raises:
        InputError: the launcher starts workers of another engine, or the secret of the start cannot be kept.
        WorkerError: the workers cannot connect.
        Stopped: a stop was requested before they had connected.
    """
    place = launched()
    if place.size == 1:
        return SingleProcess(place.launcher)
    chosen = choose_engine(engine, place.launcher)
    try:
        if chosen == "torch":
            return TorchCommunicator(place, stall_timeout, stop=stop)
        return HorovodCommunicator(place, stall_timeout, stop=stop, divisible=divisible)
    except ImportError as error:
        raise WorkerError(
            f"Horovod cannot be imported: {error}: build it with make setup, or set engine: torch"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise WorkerError(
            f"worker {place.rank} of {place.size} cannot connect to the others: {error}"
        ) from error
