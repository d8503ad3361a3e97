"""The pages of the documentation, as Markdown's tokens."""

import re
import sys
from itertools import pairwise

import pytest

from tests.conftest import CHECKOUT

DOCS = CHECKOUT / "docs"
NEEDED = "needs the packages of the documentation: pip install 'hpcdat[docs]'"
pytest.importorskip("sphinx", reason=NEEDED)
markdown_it = pytest.importorskip("markdown_it", reason=NEEDED)
sys.path.insert(0, str(DOCS))


def hand_written():
    """README, CONTRIBUTING and the pages of docs/, without the generated ones."""
    from generate.extension import PAGES

    pages = [page for page in DOCS.rglob("*.md") if "_build" not in page.parts]
    generated = {DOCS / "reference" / name for name in PAGES}
    return [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted({*pages} - generated)]


def tokens(text):
    """The blocks of a page; those of text have their parts as children."""
    return markdown_it.MarkdownIt("commonmark").enable("table").parse(text)


def headings(text):
    """The anchors of a page's headings, as GitHub makes them."""
    found = []
    blocks = tokens(text)
    for opening, inline in pairwise(blocks):
        if opening.type == "heading_open":
            parts = [child.content for child in inline.children if child.type in ("text", "code_inline")]
            title = "".join(parts)
            found.append(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"))
    return found


def links(text):
    """The targets of a page's links and pictures."""
    for block in tokens(text):
        for child in block.children or []:
            if child.type in ("link_open", "image"):
                yield child.attrs["href" if child.type == "link_open" else "src"]


def code(text):
    """The code of a page: with True whole blocks, with False code within text."""
    for block in tokens(text):
        if block.type == "code_block" or (block.type == "fence" and block.info.strip() in ("", "bash", "sh")):
            yield True, block.content
        for child in block.children or []:
            if child.type == "code_inline":
                yield False, child.content
