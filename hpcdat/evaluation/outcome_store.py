"""Outcomes of batches on disk, so that an interrupted measurement can be resumed."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdat.storage.atomic_files import append_text, digest, write_text

FORMAT = 1
"""Version of the file format. It is part of every key, so outcomes in another format are never read."""


@dataclass(frozen=True)
class StoredOutcome:
    """The outcome of one batch.

    Attributes:
        images: number of measured images; those that cannot be read are not among them.
        value: the outcome, a JSON value.
    """

    images: int
    value: Any


class OutcomeStore:
    """A JSON-lines file: the key on the first line, then one line per batch, ordered by number.

    Every worker appends completed batches to its own part file, so that ``kill -9`` loses only the batches
    in progress. Worker 0 merges the parts into the file, whose bytes do not depend on the number of workers
    or on interruptions. Each line has a checksum; the batch of a damaged line counts as not measured.

    Args:
        folder: of the file, ``name-DIGEST.jsonl`` with a digest of the key.
        name: of the measurement.
        key: all that the outcomes depend on, a JSON value.
    """

    def __init__(self, folder: Path, name: str, key: Mapping[str, Any]) -> None:
        self.folder, self.name, self.key = folder, name, {"format": FORMAT, **key}
        self.path = folder / f"{name}-{digest(self.key)[:8]}.jsonl"

    def load(self, warn: Callable[[str], None]) -> dict[int, StoredOutcome]:
        """Read the file and the parts of an interrupted run, merge them, and create the file if it is new.

        Only one process may call this, and none may append at the same time.

        Args:
            warn: called with a line of text if stored outcomes cannot be used.

        Returns:
            The outcomes by number of the batch.

        Raises:
            OSError: the file could not be read or written; names the file.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        parts, is_new = self._parts(), not self.path.exists()
        if is_new and not parts and any(self.folder.glob(f"{glob.escape(self.name)}-*")):
            warn(
                f"{self.name}: the outcomes in {self.folder} are of other weights, images, settings or "
                "versions; measuring all batches"
            )
        outcomes: dict[int, StoredOutcome] = {}
        damaged = 0
        if not is_new:
            first, *lines = self.path.read_bytes().split(b"\n")
            lines = [line for line in lines if line]
            damaged = _read(lines, outcomes) if _parse(first) == self.key else 1 + len(lines)
        for part in parts:
            # After the last line break there may be an incomplete line of a killed process.
            damaged += _read(part.read_bytes().split(b"\n")[:-1], outcomes)
        if damaged:
            warn(f"{self.path}: {damaged} lines are damaged; measuring their batches again")
        if damaged or parts or is_new:
            self.write(outcomes)
        return outcomes

    def append(self, number: int, outcome: StoredOutcome, rank: int) -> None:
        """Append a batch to the part file of a worker; it is on disk when this returns.

        Raises:
            OSError: it could not be written; names the file.
        """
        append_text(self.path.with_name(f"{self.path.name}.part-{rank}"), _line(number, outcome))

    def write(self, outcomes: Mapping[int, StoredOutcome]) -> None:
        """Write the whole file, atomically, and remove the parts. Only one process may call this.

        Args:
            outcomes: of all batches measured so far, by number.

        Raises:
            OSError: it could not be written; names the file.
        """
        lines = [_line(number, outcomes[number]) for number in sorted(outcomes)]
        write_text(self.path, "".join([json.dumps(self.key) + "\n", *lines]))
        for leftover in (*self._parts(), *self.folder.glob(f".{glob.escape(self.path.name)}-*")):
            leftover.unlink(missing_ok=True)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(f"{glob.escape(self.path.name)}.part-*"))


def _line(number: int, outcome: StoredOutcome) -> str:
    fields = {"batch": number, "images": outcome.images, "outcome": outcome.value}
    return json.dumps({**fields, "checksum": digest(fields)}) + "\n"


def _read(lines: list[bytes], outcomes: dict[int, StoredOutcome]) -> int:
    """Add the outcomes of some lines; return the number of damaged lines."""
    damaged = 0
    for line in lines:
        fields = _parse(line)
        if isinstance(fields, dict) and fields.pop("checksum", None) == digest(fields):
            outcomes[fields["batch"]] = StoredOutcome(fields["images"], fields["outcome"])
        else:
            damaged += 1
    return damaged


def _parse(line: bytes) -> Any:
    """The JSON value of a line, or None."""
    try:
        return json.loads(line)
    except ValueError:
        return None
