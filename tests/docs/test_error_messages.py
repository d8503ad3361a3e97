"""The messages that the page of error messages explains are those of the code."""

import ast
from functools import cache

from tests.conftest import CHECKOUT
from tests.docs.pages import DOCS, tokens

SHORTEST = 9
"""Characters of a text in the code that is taken for a part of a message."""


@cache
def texts():
    """The texts in the package's code, without what is filled in."""
    return {
        node.value
        for file in (CHECKOUT / "hpcdat").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) >= SHORTEST
    }


def unknown(messages):
    """The messages of which less than half stands in the code; their ends may be left out."""
    known = texts()
    found = []
    for message in messages:
        covered = set()
        for text in known:
            if (place := message.find(text)) >= 0:
                covered |= {*range(place, place + len(text))}
            elif (place := message.find(text[:SHORTEST])) >= 0 and text.startswith(message[place:]):
                covered |= {*range(place, len(message))}
        if len(covered) < len(message) / 2:
            found.append(message)
    return found


def shown():
    """The messages on the page."""
    blocks = tokens((DOCS / "reference" / "errors.md").read_text())
    return [line for block in blocks if block.type == "fence" for line in block.content.splitlines()]


def test_messages_are_of_the_code():
    messages = shown()
    assert len(messages) > 30
    assert not unknown(messages)


def test_other_messages_are_found():
    invented = ["runs/mine is locked by process 4711 on node1: please wait until it has ended"]
    assert unknown(invented) == invented
