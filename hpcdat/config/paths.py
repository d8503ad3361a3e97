"""Paths that users write, with ``~`` and environment variables in them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

VARIABLE = re.compile(r"\$(?:\$|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)\})")
"""``$NAME``, ``${NAME}``, or ``$$`` for a dollar sign; any other dollar sign is one."""
LONGEST_NAME = 255
"""Bytes of the name of a file, on all usual file systems."""


def expand(text: str) -> str:
    """Replace a leading ``~`` or ``~user``, and ``$NAME`` and ``${NAME}`` of the environment.

    Raises:
        ValueError: there can be no such path, a variable is not set or empty, or a home folder is unknown.
    """
    if not text or "\0" in text:
        raise ValueError("expected a path" + (" without null characters" if text else "; . is this folder"))
    home, rest = "", text
    if text.startswith("~"):
        user, slash, rest = text.partition("/")
        home, rest = os.path.expanduser(user), slash + rest  # noqa: PTH111  (Path.expanduser fails for an unknown user)
        if home == user or (user == "~" and os.environ.get("HOME") == ""):
            raise ValueError(f"the home folder of {user} is unknown; write the whole path, or ./{user}")
    path = home + VARIABLE.sub(_value, rest)
    if max(map(len, os.fsencode(path).split(b"/"))) > LONGEST_NAME:
        raise ValueError(f"expected a path; a name in it is longer than {LONGEST_NAME} bytes")
    return path


def escape(path: str | Path) -> str:
    """The text that :func:`expand` reads as this path, with its dollar signs and ``~`` as they are."""
    text = re.sub(r"\$(?=[$A-Za-z_{])", "$$", str(path))
    return f"./{text}" if text.startswith("~") else text


def expand_path(value: Any) -> Any:
    """Expand a path that is given as text, and make it a Path; anything else is left to pydantic.

    Raises:
        ValueError: as for :func:`expand`.
    """
    return Path(expand(value)) if isinstance(value, str) else value


def _value(match: re.Match[str]) -> str:
    name = match["name"] or match["braced"]
    if name is None:
        return "$"
    if not os.environ.get(name):
        raise ValueError(
            f"the environment variable {name} is not set or empty; set it, or write $$ for a dollar sign"
        )
    return os.environ[name]


ExpandedPath = Annotated[Path, BeforeValidator(expand_path), PlainSerializer(escape, when_used="json")]
"""A path of a setting: expanded when it is read, escaped when it is written to a file."""
ExpandedName = Annotated[
    str,
    BeforeValidator(lambda value: expand(value) if isinstance(value, str) else value),
    PlainSerializer(escape, when_used="json"),
]
"""As :data:`ExpandedPath`, for a path relative to another one."""
