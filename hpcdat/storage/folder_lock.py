"""One process at a time in a folder."""

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

from hpcdat.errors import InputError

if TYPE_CHECKING:
    from hpcdat.distributed.communicator import Communicator

SECONDS_TO_END = 5.0
"""How long to wait for the previous holder to end, as after a kill."""


def keep_others_out(folder: Path) -> IO[bytes]:
    """Lock a folder until the returned file is closed or this process ends, in whatever way.

    The lock is the operating system's. If the file system has none, this only warns.

    Args:
        folder: created if it does not exist.

    Raises:
        InputError: another process holds the lock.
        OSError: the folder cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Not flock: processes forked from this one would share it, and keep it when this one is killed.
    file = (folder / ".lock").open("ab+", buffering=0)
    deadline = time.monotonic() + SECONDS_TO_END
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                print(
                    f"warning: the file system of {folder} has no locks ({error.strerror}): nothing keeps a "
                    "second process from writing there",
                    file=sys.stderr,
                    flush=True,
                )
                return file
        if time.monotonic() > deadline:
            file.seek(0)
            holder = file.read().decode(errors="replace")
            file.close()
            raise InputError(f"{folder} is in use by {holder}: let it end, then start again")
        time.sleep(0.1)
    job = os.environ.get("SLURM_JOB_ID")
    holder = f"process {os.getpid()} on {socket.gethostname()}" + (f", Slurm's job {job}" if job else "")
    # A full disk is reported where a file is written that matters.
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(holder.encode())
    return file


@contextlib.contextmanager
def locked(folder: Path, workers: Communicator) -> Iterator[None]:
    """Lock a folder inside the block, for all workers of this command, which enter it together.

    Args:
        folder: created if it does not exist.
        workers: worker 0 holds the lock.

    Raises:
        InputError: another command holds the lock.
    """
    with contextlib.ExitStack() as held:

        def lock() -> None:
            held.enter_context(keep_others_out(folder))

        workers.on_rank0(f"lock {folder}", lock)
        yield
