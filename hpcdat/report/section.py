"""What a report consists of: sections with a table, plots and notes, and the headlines of its HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?(?=$|[\s%(\[±])")
"""What the cell of a column of numbers begins with."""


@dataclass(frozen=True)
class Card:
    """A headline.

    Attributes:
        title: what it is about.
        value: the answer, with its unit.
        lines: of what, and under which conditions.
    """

    title: str
    value: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Plot:
    """A plot with its heading.

    Attributes:
        name: name of its file, without extension.
        title: heading.
        svg: the plot, as SVG.
        caption: a sentence that says what it shows; the alternative text too.
    """

    name: str
    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        header: headings of the columns.
        groups: rows that stay together when the table is sorted, by the first of them; their first cell is
            that of the first row. A cell is text; what follows its first line is small.
        names: number of columns at the left that name a row.
        unsorted: places of the groups that stand at the end when the table is sorted.
    """

    header: Sequence[str]
    groups: Sequence[Sequence[Sequence[str]]]
    names: int
    unsorted: frozenset[int] = frozenset()

    @property
    def numbers(self) -> list[bool]:
        """For each column, whether it is sorted by numbers: all its cells that have digits begin with one."""
        columns = []
        for place in range(len(self.header)):
            cells = [row[place] for group in self.groups for row in group]
            known = [cell for cell in cells if re.search(r"\d", cell)]
            columns.append(bool(known) and all(NUMBER.match(cell) for cell in known))
        return columns

    @property
    def texts(self) -> list[str]:
        """All its texts."""
        return [*self.header, *(cell for group in self.groups for row in group for cell in row)]


@dataclass(frozen=True)
class Section:
    """One table of a report, with its plot and notes.

    Attributes:
        name: name of the plot's file, without extension.
        title: heading.
        header, rows: text of the table.
        names: number of columns at the left that hold text.
        plot: SVG; empty if there is none.
        notes: printed below the table.
        caption: a sentence that says what the plot shows.
        table: the table as the HTML page has it; None: as it is.
        more: further plots of the HTML page, which Markdown does not show.
    """

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int
    plot: str
    notes: Sequence[str]
    caption: str = ""
    table: Table | None = None
    more: Sequence[Plot] = field(default=())

    @property
    def markdown(self) -> str:
        """Title, table, plot and notes."""
        aligned = ["left"] * self.names + ["right"] * (len(self.header) - self.names)
        table = tabulate(self.rows, self.header, tablefmt="github", disable_numparse=True, colalign=aligned)
        plot = [f"![{self.title}]({self.name}.svg)", ""] if self.plot else []
        return "\n".join(
            [f"## {self.title}", "", table, "", *plot, *(f"- {note}" for note in self.notes), ""]
        )

    @property
    def plots(self) -> list[Plot]:
        """All its plots."""
        own = [Plot(self.name, self.title, self.plot, self.caption or self.title)] if self.plot else []
        return [*own, *self.more]

    @property
    def page_table(self) -> Table:
        """The table as the HTML page has it."""
        return self.table or Table(self.header, [[row] for row in self.rows], self.names)
