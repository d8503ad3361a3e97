"""README at most 800 words long; every link of README and docs leads somewhere, on GitHub as in the site."""

import re
from urllib.parse import unquote

import pytest

from tests.conftest import CHECKOUT
from tests.docs.pages import hand_written, headings, links

PAGES = [str(page.relative_to(CHECKOUT)) for page in hand_written()]


def broken(page, text):
    """The links of a page that lead nowhere."""
    for link in links(text):
        path, _, anchor = unquote(link).partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (
            anchor and anchor not in headings(text if not path else target.read_text())
        ):
            yield link


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    file = CHECKOUT / page
    assert not [*broken(file, file.read_text())]


def test_broken_links_are_found():
    page = CHECKOUT / "docs" / "start" / "install.md"
    text = (
        "# A title: `x`\n[a](#a-title-x) [b](#b) [c](install.md#laptop-or-workstation) [d](install.md#d) "
        "[e](e.md) ![f](f.svg) [g](https://example.org)"
    )
    assert [*broken(page, text)] == ["#b", "install.md#d", "e.md", "f.svg"]


def test_readme_is_short():
    assert len((CHECKOUT / "README.md").read_text().split()) <= 800
