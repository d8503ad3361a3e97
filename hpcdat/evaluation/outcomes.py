"""Boolean outcomes of images, such as whether each is classified correctly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of N images, one column per property.

    Attributes:
        columns: by name, such as ``correct`` or ``robust``, (N,) bool each.
        warnings: of a library about the model, without duplicates.
    """

    columns: Mapping[str, Flags]
    warnings: Sequence[str] = field(default=())

    @classmethod
    def from_tensors(cls, columns: Mapping[str, Tensor], warnings: Sequence[str] = ()) -> Self:
        """Outcomes from (N,) bool tensors on any device."""
        return cls({name: flags.cpu().numpy() for name, flags in columns.items()}, tuple(warnings))

    @property
    def images(self) -> int:
        """Number of images; those that cannot be read are not among them."""
        return len(next(iter(self.columns.values())))

    def count(self, column: str) -> int:
        """Number of images for which a column is true."""
        return int(self.columns[column].sum())

    def share(self, column: str) -> float:
        """Fraction of images for which a column is true, in [0, 1]."""
        return self.count(column) / self.images

    def to_json(self) -> dict[str, object]:
        """As a JSON value; a column becomes a string of 0 and 1."""
        columns = {
            name: "".join("1" if flag else "0" for flag in flags) for name, flags in self.columns.items()
        }
        return {"columns": columns, "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`."""
        columns = {name: np.array([c == "1" for c in text], bool) for name, text in value["columns"].items()}
        return cls(columns, tuple(value["warnings"]))


def merge(batches: Mapping[int, Outcomes]) -> Outcomes:
    """The outcomes of all batches as one, in the order of the batches' numbers.

    Args:
        batches: by number, at least one.
    """
    ordered = [batches[number] for number in sorted(batches)]
    names = ordered[0].columns
    columns = {name: np.concatenate([batch.columns[name] for batch in ordered]) for name in names}
    return Outcomes(columns, tuple(sorted({warning for batch in ordered for warning in batch.warnings})))
