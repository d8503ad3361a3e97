"""How all plots of reports look: colours, markers, legends, and figures as SVG text."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from textwrap import fill
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLOURS = ("#2176c0", "#c05c00", "#1f8a5b", "#9a55c4", "#d0454c", "#0f8594", "#8a7400", "#7a7a7a")
"""Of the lines of a plot. Each has a contrast of 3 or more with a white and with a nearly black page."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Markers of the lines of a plot, which distinguish them without colours."""
DASHES = ("-", "--", "-.", ":")
"""Of lines that need them beside colour and marker."""
OURS, PAPERS = COLOURS[0], COLOURS[1]
"""Colours of our numbers and of the paper's."""
REST = "#7fa7cf"
"""Colour of T without C, and of TA beside RA."""
HATCH = "////"
"""Hatching of the paper's bars and of C in T, which distinguishes them without colours."""
OUTLINE: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.6}
"""Of bars."""
FONTS = "'DejaVu Sans', Verdana, sans-serif"
"""The font that sizes are computed for, and those as wide."""
LEGEND_WIDTH = 44
"""Characters in a line of a legend; names of run folders may be longer."""


def line_style(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of a plot's line; different for the first 32."""
    place = number % len(COLOURS)
    dashes = DASHES[number // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": dashes, "markersize": 5}


def bar_figure(panels: int, rows: int) -> Figure:
    """An empty figure for panels of horizontal bars beside each other."""
    return Figure(figsize=(4.2 + 2.6 * panels, 1.2 + 0.38 * rows), layout="constrained")


def stack_seconds(
    axes: Axes, communication: Sequence[float | None], total: Sequence[float | None]
) -> dict[Artist, list[str]]:
    """Draw C and the rest of T as bars, from the bottom upwards; a row without T stays empty.

    Args:
        axes: without bars.
        communication, total: C and T in seconds; None if unknown or, for C, if nothing is exchanged.

    Returns:
        Titles of the bars, for :func:`svg`.
    """
    known = [(place, c or 0.0, t) for place, (c, t) in enumerate(zip(communication, total, strict=True)) if t]
    places, c = [place for place, *_ in known], [c for _, c, _ in known]
    # If exchanges overlap the backward pass, C is part of T, not added to it.
    rest = [max(t - c, 0.0) for _, c, t in known]
    first = axes.barh(places, c, color=OURS, hatch=HATCH, label="C", **OUTLINE)
    second = axes.barh(places, rest, left=c, color=REST, label="computation (T - C)", **OUTLINE)
    titles: dict[Artist, list[str]] = {}
    for bars, name, values in ((first, "C", c), (second, "T - C", rest)):
        titles |= {bar: [f"{name}: {value:.3g} s"] for bar, value in zip(bars, values, strict=True)}
    return titles


def plain(text: str) -> str:
    """Text in which matplotlib finds no formulas."""
    return text.replace("$", r"\$")


def wrapped(text: str) -> str:
    """A long name in several lines, without formulas."""
    return plain(fill(text, LEGEND_WIDTH))


def legend_beside(axes: Axes) -> None:
    """Place the legend to the right of the axes, long names in several lines."""
    legend = axes.legend(
        fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, frameon=False
    )
    for text in legend.get_texts():
        text.set_text(fill(text.get_text(), LEGEND_WIDTH))


def legend_below(axes: Axes) -> None:
    """Place the legend below the axes, where it covers nothing."""
    axes.legend(
        fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=3, ncols=2, frameon=False
    )


def legend_under(figure: Figure) -> None:
    """Place one legend for all panels under them, and make room for it."""
    entries: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    lines = -(-len(entries) // 2) * (1 + max((label.count("\n") for label in entries), default=0))
    figure.set_figheight(figure.get_figheight() + 0.19 * lines)
    figure.legend(
        list(entries.values()),
        list(entries),
        fontsize=8,
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )


def svg(figure: Figure, titles: Mapping[Artist, Sequence[str]] | None = None) -> str:
    """The figure as SVG text, in the style of all plots.

    Black parts have the colour of the text around the plot; by itself it is black on white.

    Args:
        figure: as drawn.
        titles: texts that browsers show when the mouse is over the points of a line, one for each point, or
            over a bar.
    """
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    named = {f"with-title-{number}": artist for number, artist in enumerate(titles or {})}
    for name, artist in named.items():
        artist.set_gid(name)
    file = io.StringIO()
    # Text stays text: it can be searched and read aloud.
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    # Without the XML prologue: an HTML page has its own document type.
    text = file.getvalue()[file.getvalue().index("<svg") :]
    for name, artist in named.items():
        text = _with_titles(text, name, artist, (titles or {})[artist])
    # Several plots share a page, in which names must be unique.
    text = re.sub(r' id="(?:[A-Za-z0-9.]+_\d+|with-title-\d+)"', "", text)
    text = re.sub(r"#000000\b", "currentColor", text)
    # Matplotlib repeats its list of a dozen fonts in every text.
    text = re.sub(r"font-family: [^;\"]*", f"font-family: {FONTS}", text)
    return text.replace("<svg ", '<svg style="color: #000; background: #fff; fill: currentColor" ', 1)


def _with_titles(text: str, name: str, artist: Artist, titles: Sequence[str]) -> str:
    """Put titles into the points of a line, or into a bar."""
    head, found, tail = text.partition(f'<g id="{name}">')
    tag, waiting = "use" if isinstance(artist, Line2D) else "path", iter(titles)
    tail = re.sub(
        rf"<{tag}\b([^>]*)/>",
        lambda match: f"<{tag}{match[1]}><title>{escape(next(waiting))}</title></{tag}>",
        tail,
        count=len(titles),
    )
    return head + found + tail
