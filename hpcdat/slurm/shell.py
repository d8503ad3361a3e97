"""Values in a batch script."""

from __future__ import annotations

import re
import shlex

from hpcdat.config.paths import VARIABLE


def quote_expanding(text: str) -> str:
    """Quote a word for a shell that expands a leading ``~``, ``$NAME`` and ``${NAME}`` in it, nothing else.

    The script ends with a message if a variable is not set.
    """
    head, rest = re.match(r"(~(?=/|$))?(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    words, position = [_variable("HOME")] if head else [], 0
    for match in VARIABLE.finditer(rest):
        name = match["name"] or match["braced"]
        words += [_literal(rest[position : match.start()]), _variable(name) if name else "'$'"]
        position = match.end()
    return "".join([*words, _literal(rest[position:])]) or "''"


def _literal(text: str) -> str:
    return shlex.quote(text) if text else ""


def _variable(name: str) -> str:
    return f'"${{{name}?is not set on this node, but the profile uses it}}"'
