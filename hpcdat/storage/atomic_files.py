"""Files that are whole or not there, and names for what they hold."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under another name and give it its own when it is safely on disk.

    Args:
        path: the file's name; what was there is replaced in one stroke.
        write: writes the contents into an open binary file.

    Raises:
        OSError: it could not be written; what was there before is untouched. It names the file.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, name):
            # A disk that is full does not say which, and a name that is taken says two.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def check_place(path: Path) -> None:
    """Look whether a file could be written, before the work whose end it is.

    Args:
        path: the file's name; what is there is not touched.

    Raises:
        OSError: it could not; names the file.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def append_text(path: Path, text: str) -> None:
    """Add to a UTF-8 text file; the text is on disk when this returns.

    Raises:
        OSError: it could not be written; names the file.
    """
    try:
        with path.open("a") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)
        raise


def digest(value: Any) -> str:
    """A hash of a JSON value, 16 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
