"""The HTML page of a report: one file that fetches nothing, for screens, small ones too, and for paper."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jinja2
from markupsafe import Markup, escape

from hpcdat.report.pixel_units import PixelUnit
from hpcdat.report.section import Card, Plot, Section

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("hpcdat.report", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
"""Loads the templates in this folder (page.html.j2, its style and its script)."""
ASIDE = re.compile(r" (\[[^\]]*\]|± [\d.,]+|\([^()]*\))")
"""An interval, a spread or a remark behind a number."""


def html_page(
    title: str, sections: Sequence[Section], made: str, cards: Sequence[Card], plots: Sequence[Plot]
) -> str:
    """The page.

    Args:
        title: heading.
        sections: tables with their plots and notes.
        made: when and by what it was made.
        cards: the headlines.
        plots: further plots, after the tables.

    Returns:
        HTML with all radii and step sizes in one unit.
    """
    texts = [text for card in cards for text in (card.value, *card.lines)]
    texts += [plot.caption for plot in plots]
    for section in sections:
        texts += [section.title, *section.notes, *section.page_table.texts]
    unit = PixelUnit(texts)
    return TEMPLATES.get_template("page.html.j2").render(
        title=title,
        sections=sections,
        made=made,
        cards=cards,
        plots=plots,
        unit=unit,
        cell=lambda text: _cell(unit(text)),
    )


def _cell(text: str) -> Markup:
    """A cell with its number in one piece, its interval in another, and small lines below."""
    first, *others = text.split("\n")
    main = ASIDE.sub(lambda found: f' <span class="aside">{found[1]}</span>', str(escape(first)))
    # Its parts are escaped above.
    return Markup(main) + Markup("").join(Markup("<small>{}</small>").format(line) for line in others)  # noqa: S704
