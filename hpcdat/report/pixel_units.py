"""Radii and step sizes of a page's texts in one unit: 255ths of a pixel's range, or [0, 1]."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hpcdat.report.sweep_files import in_255ths, value_text

NUMBER = r"\d*\.?\d+(?:e-?\d+)?(?:/255)?(?!\d|[./]\d| eps)"
"""A length in text; not a multiple of eps."""
NAMED = re.compile(rf"(\b(?:eps|step_size|steps of):? )({NUMBER})(?:(, the paper's )({NUMBER}))?")
"""A length with its name, as ``eps 8/255`` or ``attack.eps: 0.1, the paper's 0.0314``."""
IN_255THS = re.compile(r"\b\d+(?:\.\d+)?/255\b")


class PixelUnit:
    """The unit of a page: 255ths, unless one of its radii is a short decimal, such as 0.1.

    Args:
        texts: of the page.

    Attributes:
        note: which unit it is; empty if the page has neither radii nor step sizes.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        lengths = [_length(found[2]) for text in texts for found in NAMED.finditer(text)]
        self._fine = in_255ths(lengths)
        unit = "255ths of a pixel's range" if self._fine else "[0, 1] pixel units"
        self.note = f"Radii (eps) and step sizes are in {unit}." if lengths else ""

    def __call__(self, text: str) -> str:
        """The text with all its radii and step sizes in the page's unit."""
        if not self.note:
            return text
        text = NAMED.sub(self._named, text)
        # Values without a name, as in the header of a sweep.
        return text if self._fine else IN_255THS.sub(lambda found: self._text(found[0]), text)

    def _named(self, found: re.Match[str]) -> str:
        theirs = f"{found[3]}{self._text(found[4])}" if found[3] else ""
        return f"{found[1]}{self._text(found[2])}{theirs}"

    def _text(self, length: str) -> str:
        return value_text("eps", _length(length), fine=self._fine)


def _length(text: str) -> float:
    """In [0, 1] pixel units."""
    number, _, divisor = text.partition("/")
    return float(number) / float(divisor or 1)
