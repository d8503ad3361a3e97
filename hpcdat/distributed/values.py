"""Byte strings by key, as the store of a start holds them."""

from __future__ import annotations

from collections import defaultdict


class Values:
    """Byte strings by key. A key may be ``SCOPE/NAME``."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._in_scope: dict[str, set[str]] = defaultdict(set)
        self._writers: dict[str, set[int]] = defaultdict(set)
        self._finished: dict[str, set[int]] = defaultdict(set)

    def __getitem__(self, key: str) -> bytes:
        return self._values[key]

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def set(self, key: str, value: bytes, worker: int) -> None:
        """Set a value, whether there is one already or not."""
        self._values[key] = value
        scope = _scope(key)
        self._in_scope[scope].add(key)
        self._writers[scope].add(worker)

    def add(self, key: str, amount: int, worker: int) -> int:
        """Add to a number, written in decimal digits; a missing one counts as 0. The sum.

        Raises:
            ValueError: the value is not a number.
        """
        total = int(self._values.get(key, b"0")) + amount
        self.set(key, str(total).encode(), worker)
        return total

    def compare_set(self, key: str, expected: bytes, desired: bytes, worker: int) -> bytes:
        """Set a value if the present one is as expected; a missing one counts as empty.

        Returns:
            The value afterwards; if it is missing, the expected one, as torch's stores do.
        """
        if self._values.get(key, b"") == expected:
            self.set(key, desired, worker)
        return self._values.get(key, expected)

    def delete(self, key: str) -> bool:
        """Delete a value; whether there was one."""
        self._in_scope[_scope(key)].discard(key)
        return self._values.pop(key, None) is not None

    def finish(self, scope: str, worker: int) -> None:
        """Delete the values of a scope as soon as all workers that have set some have called this."""
        self._finished[scope].add(worker)
        if self._finished[scope] >= self._writers[scope]:
            for key in self._in_scope.pop(scope, ()):
                del self._values[key]
            del self._finished[scope], self._writers[scope]


def _scope(key: str) -> str:
    return key.rpartition("/")[0]
