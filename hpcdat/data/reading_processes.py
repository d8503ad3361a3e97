"""Processes that read batches of images ahead of a trainer."""

from __future__ import annotations

import os
import select
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, get_context, resource_tracker
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from hpcdat.data.image_waits import ImageWaits
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import HpcdatError, InputError, WorkerError, first_line

Batch = TypeVar("Batch")
Wanted = TypeVar("Wanted")

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
"""Where the processes put the images that they have read."""
SECONDS_TO_END = 2
"""How long :meth:`ReadingProcesses.close` waits for the processes to end."""
BATCHES_AHEAD = 2
"""Batches that each process reads ahead."""


class ReadingProcesses(Generic[Wanted, Batch]):
    """A pool of processes that read batches ahead, in order, and serve one epoch after the other.

    Args:
        read: reads one batch, given what is wanted of it; a function that can be pickled.
        count: number of processes.
        image_bytes: size of an image as it is read, bytes; None if unknown.
        loader: the job's ``data.loader``, for messages.

    Raises:
        InputError: there is no room for temporary files or shared memory.
    """

    def __init__(
        self,
        read: Callable[[Wanted], Batch],
        count: int,
        image_bytes: int | None,
        *,
        loader: str = "torchvision",
    ) -> None:
        self.count, self.image_bytes, self.loader = count, image_bytes, loader
        self._waits = ImageWaits("images from the processes of data.threads")
        try:
            _start_fork_server(read)
            # MPI forbids forking; a fork server starts clean processes.
            self._pool = ProcessPoolExecutor(
                count, get_context("forkserver"), initializer=_begin, initargs=(os.getpid(), read)
            )
        except (OSError, EOFError) as error:
            raise _cannot_start(error, loader) from None

    def read(self, batches: Iterable[Wanted], largest: int) -> Iterator[Batch]:
        """Yield what ``read`` returns for each batch, in order.

        Args:
            batches: what is wanted of each; made as late as it is needed.
            largest: images of the largest batch.

        Raises:
            InputError: the shared memory is too small.
            WorkerError: a process was killed, or cannot send what it has read.
            Stopped: a stop was requested, and no images have come since.
        """
        left, pending = iter(batches), deque[Future[Batch]]()
        needed = self.image_bytes and shared_bytes(largest * self.image_bytes, self.count)
        try:
            while True:
                while len(pending) < BATCHES_AHEAD * self.count and (batch := next(left, None)) is not None:
                    pending.append(self._submit(batch))
                if not pending:
                    return
                yield self._result(pending.popleft(), needed)
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """End the processes; one that waits for a file system is not waited for."""
        end = threading.Thread(target=self._pool.shutdown, kwargs={"cancel_futures": True}, daemon=True)
        end.start()
        # Python's own clean-up at the end of the program fails if it meets one of the pool.
        end.join(SECONDS_TO_END)

    def _submit(self, batch: Wanted) -> Future[Batch]:
        try:
            return self._pool.submit(_read, batch)
        except BrokenProcessPool as error:
            raise _killed(error, self.loader) from None
        except (OSError, EOFError) as error:
            raise _cannot_start(error, self.loader) from None

    def _result(self, future: Future[Batch], needed: int | None) -> Batch:
        self._waits.until_done([future])
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise _killed(error, self.loader) from None
        except (OSError, RuntimeError) as error:
            raise _cannot_send(error, needed, self.count, self.loader) from None


def shared_bytes(batch_bytes: int, processes: int) -> int:
    """Bytes of images that are in shared memory at once: batches read ahead, and the one at hand."""
    return batch_bytes * (BATCHES_AHEAD * processes + 1)


def _cannot_send(error: Exception, needed: int | None, count: int, loader: str) -> HpcdatError:
    """Why a process cannot send the images that it has read."""
    if "shared memory" not in str(error) and "No space left" not in str(error):
        return WorkerError(f"data.loader: {loader}: a process cannot send images: {first_line(error)}")
    held = f"up to {_mib(needed)} of images" if needed else f"{BATCHES_AHEAD * count + 1} batches of images"
    ways = "lower batch_size or data.threads"
    return InputError(
        f"{SHARED_MEMORY} is too small for data.loader: {loader}: it has {_room()}, and the {count} "
        f"processes of data.threads hold {held} there. Start the container with a "
        f"larger --shm-size or with --ipc=host, "
        f"{f'{ways}, or choose data.loader: dali' if needed else f'or {ways}'}"
    )


def _killed(error: BrokenProcessPool, loader: str) -> WorkerError:
    """Why the pool broke: a process was killed, or what it sent cannot be received."""
    cause = str(error.__cause__ or "").strip().strip('"').strip().splitlines()
    if cause:
        return WorkerError(f"data.loader: {loader}: images cannot be received: {cause[-1]}")
    return WorkerError(
        f"data.loader: {loader}: a process that reads images has ended. If it left no message, it was "
        "killed, probably because memory ran out (see dmesg): lower data.threads or batch_size, or request "
        "more memory"
    )


def _cannot_start(error: Exception, loader: str) -> InputError:
    """Why there is no process that reads images."""
    problem = f"data.loader: {loader}: its processes cannot be started: {first_line(error)}"
    # There may be no folder for temporary files.
    with suppress(OSError):
        return InputError(
            f"{problem}. They need space in {SHARED_MEMORY} (it has {_room()}) and in the folder for "
            f"temporary files, TMPDIR (now {tempfile.gettempdir()})"
        )
    return InputError(f"{problem}. Set TMPDIR to a folder that exists, can be written and has space")


def _room() -> str:
    """Size of the shared memory and what is free of it."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError as error:
        return f"no space: {error.strerror}"
    return f"{_mib(usage.total)}, {_mib(usage.free)} of them free"


def _mib(size: float) -> str:
    return f"{size / 2**20:.3g} MiB"


_batch_reader: Callable[[Any], Any]
"""In a reading process: what reads a batch."""


def _begin(trainer: int, read: Callable[[Any], Any]) -> None:
    """Prepare a reading process."""
    global _batch_reader
    _batch_reader = read
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()


def _read(batch: Any) -> Any:
    return _batch_reader(batch)


def _end_with(trainer: int) -> None:
    """End this process when the trainer ends in any way, or asks it to end.

    Its parent is the fork server, which outlives the trainer. SIGTERM, which the trainer sends to end it, is
    blocked, since others send it too.
    """
    with suppress(ProcessLookupError):
        trains = os.pidfd_open(trainer)
        while not select.select([trains], [], [], 0)[0]:
            received = signal.sigtimedwait([signal.SIGTERM], 0.5)
            if received and received.si_pid == trainer:
                break
    os._exit(1)


def _start_fork_server(read: Callable[..., object]) -> None:
    """Start the fork server with signals to stop blocked, so that only the trainer handles them.

    A terminal, mpirun and Slurm send them to all processes of a worker; the trainer then finishes its step.
    The server imports once what all processes of all loaders need.
    """
    function = getattr(read, "func", read)
    forkserver.set_forkserver_preload([__name__, function.__module__])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, StopRequest.SIGNALS)
    try:
        with _quiet():
            resource_tracker.ensure_running()
        # The resource tracker has unblocked some of them.
        signal.pthread_sigmask(signal.SIG_BLOCK, StopRequest.SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the resource tracker's warning when it cleans up after a trainer that was killed."""
    before = os.environ.get("PYTHONWARNINGS")
    mine = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = f"{before},{mine}" if before else mine
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before
