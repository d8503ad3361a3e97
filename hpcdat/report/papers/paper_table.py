"""The numbers that a paper states, which a report compares runs with."""

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
        key: last part of the name in a job's ``reproduces``, such as ``dat-pgd-8``.
        label: the paper's name for it.
        setup: what distinguishes it from other rows: workers, bits, batch.
        values: the numbers that the paper states, by quantity; missing where it states none.
        reference: key of the row that its times are divided by, if any.
        work: settings of this row, in addition to its table's.
        spreads: spread over the seeds, by quantity, where the paper states one.
        cited: whether the paper quotes it from elsewhere; no job reproduces it.
    """

    key: str
    label: str
    setup: str
    values: Mapping[str, float]
    reference: str | None = None
    work: Mapping[str, Any] = field(default_factory=dict)
    spreads: Mapping[str, float] = field(default_factory=dict)
    cited: bool = False


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of a paper.

    Attributes:
        name: as given to ``hpcdat report --table``.
        title: where it is in the paper, and what it shows.
        work: what the paper trained: settings of the job by their dotted names, ``data.images`` and
            ``global batch``. A report lists where a run differs.
        hardware: what the paper ran on.
        quantities: the columns, in order; see :data:`hpcdat.report.quantities.QUANTITIES`.
        rows: in the paper's order.
        notes: where the paper contradicts itself, or leaves something open.
        seeds: number of seeds that its numbers are means of; None if the paper does not say.
        swept: whether its rows are a few methods, each with many perturbations. A job then names the method;
            its ``attack.eps``, in 255ths, is the end of the row's key: ``conadv-32k-p3``.
        certified: whether its numbers are from certificates, sampled by ``hpcdat certify``.
        over_batch: whether it is a figure with the global batch on its horizontal axis.
        epochs: number of the paper's epochs and the images of each. Given where an epoch of the paper is not
            a pass over a run's training images: C and T are then scaled to that many images.
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
    over_batch: bool = False
    epochs: tuple[int, int] | None = None

    def key_of(self, name: str, eps: float) -> str:
        """Key of the row that a job with this ``attack.eps`` means by a name."""
        return f"{name}-p{255 * eps:.4g}" if self.swept else name

    def name_of(self, row: PaperRow) -> str:
        """The name that jobs use for a row."""
        return row.key.rpartition("-p")[0] if self.swept else row.key
