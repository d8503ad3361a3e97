"""The common style of the documentation's pictures: text that stays text, on a white card."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from hpcdat.storage.atomic_files import check_writable, write_text

FOLDER = Path(__file__).resolve().parents[1] / "how-it-works" / "pictures"
"""Where the pages expect the pictures."""
WIDTH = 7.2
"""Inches: the width of a page's text, so that a picture is shown at its own size."""
SMALL, NORMAL = 9, 10
"""Sizes of text, points."""
INK, FRAME = "#1a1a1a", "#6b6b6b"
"""Colours of text and of lines."""
BLUE, ORANGE, GREEN, GREY = "#cfe2f3", "#fde9c8", "#dcefd8", "#ececec"
"""Pale colours of areas. What an area means is also written in it or next to it."""


def card(height: float) -> Figure:
    """An empty picture.

    Args:
        height: inches.
    """
    return Figure(figsize=(WIDTH, height), facecolor="white")


def save(figure: Figure, file: Path) -> None:
    """Write a picture as SVG; the same figure gives the same bytes.

    Args:
        figure: from :func:`card`.
        file: is written.
    """
    style = {"svg.fonttype": "none", "svg.hashsalt": file.stem, "font.family": ["DejaVu Sans", "sans-serif"]}
    text = io.StringIO()
    with mpl.rc_context(style):
        figure.savefig(text, format="svg", metadata={"Date": None})
    write_text(file, text.getvalue())


def output(description: str, default: str) -> Path:
    """The file that the command line names.

    Args:
        description: of the picture, for ``--help``.
        default: name of the file in :data:`FOLDER`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--out", type=_file, default=FOLDER / default, metavar="FILE", help="SVG file (default: %(default)s)"
    )
    file: Path = parser.parse_args().out
    return file


def _file(text: str) -> Path:
    file = Path(text)
    try:
        check_writable(file)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{file} cannot be written: {error.strerror}") from None
    return file
