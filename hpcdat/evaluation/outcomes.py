"""What became of every image: by batch on disk, and all together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcdat.files import write_text

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of some images, a column for each thing that was looked at.

    Attributes:
        columns: by name, (N,) bool each, such as ``correct`` or ``robust``.
        remarks: what a library said about the model, each once.
    """

    columns: Mapping[str, Flags]
    remarks: Sequence[str] = field(default=())

    @property
    def images(self) -> int:
        """Images that were looked at; those that cannot be read are not among them."""
        return len(next(iter(self.columns.values())))

    def count(self, column: str) -> int:
        """Images of which a column is true."""
        return int(self.columns[column].sum())

    def share(self, column: str) -> float:
        """The same as a share of the images, in [0, 1]."""
        return self.count(column) / self.images

    def to_json(self) -> dict[str, object]:
        """As a JSON value: a column is a string of 0 and 1."""
        columns = {
            name: "".join("1" if flag else "0" for flag in flags) for name, flags in self.columns.items()
        }
        return {"columns": columns, "remarks": list(self.remarks)}

    @classmethod
    def from_json(cls, value: dict) -> Outcomes:
        """The inverse.

        Raises:
            KeyError, TypeError, ValueError: it is not of that form.
        """
        columns = {name: np.array([int(c) for c in text], bool) for name, text in value["columns"].items()}
        if len({len(flags) for flags in columns.values()}) != 1:
            raise ValueError("columns of several lengths")
        if not {*"".join(value["columns"].values())} <= {"0", "1"}:
            raise ValueError("flags other than 0 and 1")
        if not all(isinstance(remark, str) for remark in value["remarks"]):
            raise TypeError("remarks that are no texts")
        return cls(columns, tuple(value["remarks"]))


def merge(batches: Mapping[int, Outcomes]) -> Outcomes:
    """All batches as one, in the order of their numbers, whoever measured them.

    Args:
        batches: by number, at least one.
    """
    ordered = [batches[number] for number in sorted(batches)]
    names = ordered[0].columns
    columns = {name: np.concatenate([batch.columns[name] for batch in ordered]) for name in names}
    return Outcomes(columns, tuple(sorted({remark for batch in ordered for remark in batch.remarks})))


class Shelf:
    """A folder with a file for every batch that was measured, each written once and whole.

    Args:
        folder: of one measurement of one model on one list of images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, settings: dict[str, object]) -> None:
        """Make the folder, with what it is of for a reader, and clear away what killed writes left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for torn in self.folder.glob(".*.json-*"):
            torn.unlink(missing_ok=True)
        write_text(self.folder / "settings.json", json.dumps(settings, indent=2) + "\n")

    def write(self, number: int, outcomes: Outcomes) -> None:
        """Keep the outcomes of a batch.

        Raises:
            OSError: it could not be written; names the file.
        """
        write_text(self._file(number), json.dumps(outcomes.to_json()) + "\n")

    def read(
        self, sizes: Mapping[int, int], columns: Sequence[str], *, fewer: bool = False
    ) -> dict[int, Outcomes]:
        """Those of these batches that are there; one that is damaged or of others counts as missing.

        Args:
            sizes: images of each batch, by number.
            columns: that each has.
            fewer: whether images may be missing in them, those that cannot be read.
        """
        found = {}
        for number, size in sizes.items():
            try:
                outcomes = Outcomes.from_json(json.loads(self._file(number).read_text()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
            fits = 0 < outcomes.images <= size if fewer else outcomes.images == size
            if fits and list(outcomes.columns) == list(columns):
                found[number] = outcomes
        return found

    def _file(self, number: int) -> Path:
        return self.folder / f"batch-{number:05d}.json"
