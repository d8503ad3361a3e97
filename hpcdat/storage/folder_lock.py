"""Exclusive locks on folders."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hpcdat.errors import InputError, shorten

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator

SECONDS_TO_ACQUIRE = 5.0
"""How long to wait for the previous holder to exit, for example after a kill."""


def lock_folder(folder: Path) -> IO[bytes]:
    """Lock a folder until the returned file is closed or this process exits or is killed.

    The lock is the operating system's. If the file system does not support locks, this only warns.

    Args:
        folder: created if it does not exist.

    Raises:
        InputError: another process holds the lock.
        OSError: the folder cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Not flock: forked processes would share the lock, and hold it after this process is killed.
    file = (folder / ".lock").open("ab+", buffering=0)
    deadline = time.monotonic() + SECONDS_TO_ACQUIRE
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                print(
                    f"warning: the file system of {folder} does not support locks ({error.strerror}): a "
                    "second process writing there would not be detected",
                    file=sys.stderr,
                    flush=True,
                )
                return file
        if time.monotonic() > deadline:
            file.seek(0)
            holder = file.read().decode(errors="replace")
            file.close()
            raise InputError(f"{folder} is in use by {shorten(holder)}: wait until it ends, then retry")
        time.sleep(0.1)
    job = os.environ.get("SLURM_JOB_ID")
    holder = f"process {os.getpid()} on {socket.gethostname()}" + (f", Slurm job {job}" if job else "")
    # The name is only informative; a full disk is reported by the writes that matter.
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(holder.encode())
    return file


def is_locked(folder: Path) -> bool | None:
    """Whether another process holds the lock of a folder; None if that cannot be seen.

    Not to be called by a process that holds the lock itself: it would lose it.
    """
    try:
        file = (folder / ".lock").open("rb")
    except FileNotFoundError:
        return False
    except OSError:
        return None
    with file:
        try:
            # Shared, so that nobody who asks the same at this moment is taken for the holder.
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except OSError as error:
            return True if error.errno in (errno.EACCES, errno.EAGAIN) else None


@contextlib.contextmanager
def locked(folder: Path, workers: Communicator) -> Iterator[None]:
    """Lock a folder inside the block, for all workers of this command; all of them call this together.

    Args:
        folder: created if it does not exist.
        workers: worker 0 holds the lock.

    Raises:
        InputError: another command holds the lock.
    """
    with contextlib.ExitStack() as held:

        def lock() -> None:
            held.enter_context(lock_folder(folder))

        workers.on_rank0(f"lock {folder}", lock)
        yield
