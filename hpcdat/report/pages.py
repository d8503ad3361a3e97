"""A report on disk: Markdown, CSV, plots and one self-contained HTML page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from hpcdat.errors import InputError
from hpcdat.report.html_page import html_page
from hpcdat.report.section import Card, Plot, Section
from hpcdat.storage.atomic_files import write_text


def write_report(
    sections: Sequence[Section],
    folder: Path,
    title: str,
    *,
    maker: str = "hpcdat report",
    cards: Sequence[Card] = (),
    plots: Sequence[Plot] = (),
) -> list[Path]:
    """Write report.md, report.csv and report.html, and each plot as SVG.

    Args:
        sections: in the order of the report.
        folder: created if missing.
        title: title of the page.
        maker: the command that makes it.
        cards: headlines of the HTML page.
        plots: of the HTML page, after its tables.

    Returns:
        The files written.

    Raises:
        InputError: the folder cannot be created or written.
    """
    made = f"Made by {maker}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC."
    markdown = "\n".join([f"# {title}", "", *(section.markdown for section in sections), made, ""])
    table = io.StringIO()
    writer = csv.writer(table)
    for section in sections:
        writer.writerow(["table", *section.header])
        writer.writerows([section.title, *row] for row in section.rows)
    page = html_page(title, sections, made, cards, plots)
    texts = {"report.md": markdown, "report.csv": table.getvalue(), "report.html": page}
    every = [*(plot for section in sections for plot in section.plots), *plots]
    texts |= {f"{plot.name}.svg": plot.svg for plot in every}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written: {error.strerror}") from None
    return [folder / name for name in texts]
