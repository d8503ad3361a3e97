"""Atomic file writes, and hashes of JSON values and arrays."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hpcdat.errors import InputError


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write to a temporary file, and rename it when it is safely on disk.

    Args:
        path: the file; an existing file is replaced atomically.
        write: writes the contents into an open binary file.

    Raises:
        OSError: it could not be written, and names the file; an existing file is unchanged.
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
            # Errors of write() name no file, and those of rename() name two.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def check_writable(path: Path) -> None:
    """Check that a file can be written, before the work that ends with writing it.

    Args:
        path: the file; an existing file is unchanged.

    Raises:
        OSError: it cannot be written; names the file.
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
    """Write a UTF-8 text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_output(path: Path, text: str) -> None:
    """Write a UTF-8 text file that the user has named, atomically.

    Raises:
        InputError: it cannot be written.
    """
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def append_text(path: Path, text: str) -> None:
    """Append to a UTF-8 text file; the text is on disk when this returns.

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


def digest_of_array(array: NDArray[Any]) -> str:
    """A hash of an array's numbers and shape, 16 hexadecimal digits."""
    found = hashlib.blake2b(repr((array.dtype.str, array.shape)).encode(), digest_size=8)
    found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
