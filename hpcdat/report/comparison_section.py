"""A paper's table as a section of a report: our numbers beside those that it states."""

from __future__ import annotations

from collections.abc import Sequence

from hpcdat.evaluation.intervals import with_interval
from hpcdat.report.comparison import Compared, Comparison
from hpcdat.report.comparison_notes import comparison_notes, differences_of, setups
from hpcdat.report.comparison_plots import plot_comparison, plot_seconds
from hpcdat.report.quantities import QUANTITIES
from hpcdat.report.result_table import mean_and_spread
from hpcdat.report.runs import folder_names
from hpcdat.report.section import Plot, Section, Table

CAPTION = "Our numbers, and those that the paper states; notes below the table say what is comparable."
"""What the plot of a table shows."""
SECONDS = (
    "Seconds of an epoch: C, in gradient exchanges, and the rest of T, which is computation unless exchanges "
    "overlapped it."
)
"""What the plot of C and computation shows."""


def comparison_section(comparison: Comparison) -> Section:
    """A paper's table: for each quantity ours and, if the paper states it, the paper's and their ratio."""
    quantities = [
        key for key in comparison.table.quantities if any(key in row.ours for row in comparison.rows)
    ]
    stated = {key for row in comparison.rows for key in row.paper}
    header = ["row", "the paper's", "ours"]
    for key in quantities:
        header += [QUANTITIES[key].header, *(["paper", "ours / paper"] if key in stated else [])]
    rows = []
    for compared in comparison.rows:
        cells = [
            compared.row.label,
            compared.row.setup,
            "; ".join(setups(compared, comparison)),
        ]
        for key in quantities:
            ratio = compared.ratio(key)
            cells.append(_measured(compared, key))
            if key in stated:
                cells.append(_stated(compared, key))
                cells.append("" if ratio is None else f"{ratio:.3g}")
        rows.append(cells)
    table = comparison.table
    seconds = plot_seconds(comparison) if "c" in table.quantities else ""
    return Section(
        table.name,
        table.title,
        header,
        rows,
        3,
        plot_comparison(comparison),
        comparison_notes(comparison),
        caption=CAPTION,
        table=_page_table(comparison, quantities),
        more=[Plot(f"{table.name}-seconds", "C and computation", seconds, SECONDS)] if seconds else [],
    )


def _page_table(comparison: Comparison, quantities: Sequence[str]) -> Table:
    """Ours and the paper's as rows below each other; their ratio only where both did the same work."""
    called = folder_names(comparison.runs)
    groups: list[list[list[str]]] = []
    unsorted = set()
    for compared in comparison.rows:
        name = f"{compared.row.label}\n{compared.row.setup}"
        group = []
        if compared.runs:
            names = [called[run.folder] for run in compared.runs]
            own = "\n".join(["ours", *names, *setups(compared, comparison)])
            group.append([name, own, *(_measured(compared, key) or "-" for key in quantities)])
        else:
            unsorted.add(len(groups))
        if compared.paper:
            theirs = "paper" if compared.runs or compared.row.cited else "paper\nnot run"
            group.append([name, theirs, *(_stated(compared, key) or "-" for key in quantities)])
        ratios = [compared.ratio(key) for key in quantities]
        if any(ratios) and not any(differences_of(run, compared) for run in compared.runs):
            group.append([name, "ours / paper", *("-" if r is None else f"{r:.3g}" for r in ratios)])
        groups.append(group)
    header = ["Row", "Whose", *(QUANTITIES[key].header for key in quantities)]
    return Table(header, groups, 2, frozenset(unsorted))


def _measured(compared: Compared, key: str) -> str:
    """Our number: mean and spread over several runs, with an interval for an accuracy of a single one."""
    quantity, measured = QUANTITIES[key], compared.measured(key)
    if not measured:
        return _number(compared.ours.get(key), quantity.digits)
    images = next(filter(None, map(quantity.images, compared.runs)), None) if quantity.images else None
    if len(measured) == 1 and images:
        return with_interval(measured[0] / 100, images, quantity.digits)
    return mean_and_spread(measured, quantity.digits)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _stated(compared: Compared, quantity: str) -> str:
    """The paper's number, with its spread over the seeds if it states one."""
    digits = QUANTITIES[quantity].digits
    spread = compared.row.spreads.get(quantity)
    return _number(compared.paper.get(quantity), digits) + (f" ± {spread:g}" if spread else "")
