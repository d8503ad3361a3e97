"""The shards that a process has open: each is opened once and read at any place by any thread."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

from hpcdat.data.image_file import Unusable

MOST_OPEN = 256
"""Shards that a process keeps open; most systems allow 1,024 open files."""


class _Shard:
    """One shard, opened by the first thread that reads it and closed when no thread uses it any more."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._opening = threading.Lock()

    @property
    def descriptor(self) -> int:
        with self._opening:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptor

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


_open: OrderedDict[str, _Shard] = OrderedDict()
"""By path, the one that was used last at the end."""
_lock = threading.Lock()


def _shard(path: str) -> _Shard:
    with _lock:
        shard = _open[path] = _open.get(path) or _Shard(path)
        _open.move_to_end(path)
        # A thread that still reads the oldest one keeps it open.
        if len(_open) > MOST_OPEN:
            _open.popitem(last=False)
        return shard


def forget(path: str) -> None:
    """Open a file anew when it is read next, since it is another one now."""
    with _lock:
        _open.pop(path, None)


def read_at(path: str, offset: int, size: int) -> bytes:
    """Bytes of a shard; any number of threads may call this at once.

    Args:
        path: of the shard.
        offset, size: of the bytes.

    Raises:
        Unusable: the shard cannot be read, or ends before the last of the bytes.
    """
    shard, parts = _shard(path), []
    try:
        while size:
            part = os.pread(shard.descriptor, size, offset)
            if not part:
                raise Unusable(f"the shard is truncated: it ends {size:,} bytes before the end of the image")
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
    except OSError as error:
        raise Unusable(f"the shard cannot be read: {error.strerror}") from None
    return b"".join(parts)
