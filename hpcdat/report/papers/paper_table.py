"""A paper's own numbers: what a report puts runs beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RESNET_50_ON_IMAGENET = {"data.images": 1_281_167, "data.image_size": 224, "model.name": "resnet50"}
"""What both papers train."""


@dataclass(frozen=True)
class PaperRow:
    """One row of a paper's table.

    Attributes:
        key: last part of the name that a job's ``reproduces`` gives, such as ``dat-pgd-8``.
        label: as the paper names it.
        setup: what sets it apart: workers, bits, batch.
        values: what the paper states, by quantity; what it leaves out is not there.
        reference: key of the row that this one's times are divided by, if any.
        work: of this row alone, beside its table's.
    """

    key: str
    label: str
    setup: str
    values: Mapping[str, float]
    reference: str | None = None
    work: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of a paper.

    Attributes:
        name: as ``hpcdat report --table`` takes it.
        title: where it stands and what it shows.
        work: what the paper trained, so that a report can say where a run differs: settings of the job by
            their dotted names, ``data.images`` and ``global batch``.
        hardware: what the paper ran on.
        quantities: the columns, in order; see :data:`hpcdat.report.comparison.QUANTITIES`.
        rows: in the paper's order.
        notes: where the paper contradicts itself, or does not say enough.
        seeds: whose mean its numbers are; None where it does not say.
        swept: whether its rows are a few methods, each with many perturbations. A job names the method; its
            ``attack.eps``, in 255ths, is the end of the row's key: ``conadv-32k-p3``.
        certified: whether its numbers are of certificates, which ``hpcdat certify`` samples.
    """

    name: str
    title: str
    work: Mapping[str, Any]
    hardware: str
    quantities: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    notes: tuple[str, ...] = field(default=())
    seeds: int | None = None
    swept: bool = False
    certified: bool = False

    def key_of(self, name: str, eps: float) -> str:
        """Key of the row that a job means by a name, with its ``attack.eps``."""
        return f"{name}-p{255 * eps:.4g}" if self.swept else name

    def name_of(self, row: PaperRow) -> str:
        """What jobs call a row."""
        return row.key.rpartition("-p")[0] if self.swept else row.key
