"""The file through which the workers of a start learn where rank 0 is, and the secret of the start."""

from __future__ import annotations

import json
import os
import stat
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

from hpcdat.errors import InputError
from hpcdat.user_cache import user_cache

FOLDER = "HPCDAT_STARTS"
"""Variable that names another folder for these files."""
SECONDS_KEPT = 7 * 24 * 3600.0
"""Age at which a file that a killed start has left is removed."""


@dataclass(frozen=True)
class Start:
    """What rank 0 tells the other workers of a start.

    Attributes:
        address, port: of the store on rank 0.
        secret: 32 random bytes, in hexadecimal digits.
    """

    address: str
    port: int
    secret: str = field(repr=False)


class StartFile:
    """The file of a start, which only the user may read, in a folder that all nodes share.

    Args:
        token: differs from that of other starts of this user.

    Raises:
        InputError: there is no folder for it, or others may use the folder.
    """

    def __init__(self, token: str) -> None:
        try:
            folder = Path(os.environ.get(FOLDER) or user_cache() / "starts")
            folder.mkdir(0o700, parents=True, exist_ok=True)
            _check_private(folder, folder.stat())
        except (OSError, RuntimeError) as error:
            raise _useless(error) from None
        self.path = folder / f"{quote(token, safe='@')}.json"

    def write(self, start: Start) -> None:
        """Write the file atomically, in place of one that an earlier start has left.

        Raises:
            InputError: it cannot be written.
        """
        name = ""
        try:
            self._remove_old()
            # With mode 0600.
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}-", dir=self.path.parent)
            with os.fdopen(handle, "w") as file:
                json.dump(asdict(start), file)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
        except OSError as error:
            if name:
                Path(name).unlink(missing_ok=True)
            raise _useless(error) from None

    def read(self, *, refresh: bool = False) -> Start | None:
        """Read the file; None if there is none.

        Args:
            refresh: ask the file server: NFS may remember for a minute that there was no such file. One
                worker of a node does so for all of them.

        Raises:
            InputError: it is not the user's, or others may read it.
        """
        if refresh:
            with suppress(OSError):
                os.utime(self.path.parent)
        try:
            with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
                _check_private(self.path, os.fstat(file.fileno()))
                return Start(**json.load(file))
        except (OSError, ValueError, TypeError):
            return None

    def remove(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self.path.unlink()

    def _remove_old(self) -> None:
        for file in self.path.parent.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > SECONDS_KEPT:
                    file.unlink()


def _check_private(path: Path, found: os.stat_result) -> None:
    """Check that nobody but the user may use a file or a folder.

    Raises:
        InputError: somebody may.
    """
    if found.st_uid != os.geteuid():
        raise InputError(
            f"{path}: belongs to user {found.st_uid}, not to {os.geteuid()}, who starts the workers"
        )
    if found.st_mode & 0o077:
        raise InputError(
            f"{path}: others may use it (mode {stat.S_IMODE(found.st_mode):04o}), but the secret of a start "
            f"is kept there: chmod go= {path}, or set {FOLDER} to another folder"
        )


def _useless(error: Exception) -> InputError:
    return InputError(
        f"no file for the secret of this start can be written: {error}: set {FOLDER} to a folder of yours "
        "that all nodes share"
    )
