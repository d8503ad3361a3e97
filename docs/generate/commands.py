"""The page of the command line, from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from hpcdat.cli.app import app

if TYPE_CHECKING:
    from typer.core import TyperGroup

HEAD = """# Command line

Every command prints its own part of this page with `--help`. `KEY=VALUE` settings and options may stand in
any order.
"""


def page() -> str:
    """The page, in Markdown."""
    return "\n".join([HEAD, *_command("hpcdat", typer.main.get_command(app), "##")])


def _command(name: str, command: TyperGroup, heading: str) -> Iterator[str]:
    context = command.context_class(command, info_name=name)
    usage = command.get_usage(context).removeprefix("Usage: ")
    yield f"{heading} {name}\n\n```text\n{' '.join(usage.split())}\n```\n"
    yield _help(command.help or "")
    yield f"```{{program}} {name}\n```\n"
    for parameter in command.get_params(context):
        if record := parameter.get_help_record(context):
            # Beside a name of the value its type says nothing more.
            term = record[0].partition(" <")[0] if getattr(parameter, "metavar", None) else record[0]
            yield f"`````{{option}} {term}\n{record[1]}\n`````\n"
    for inner, child in getattr(command, "commands", {}).items():
        yield from _command(f"{name} {inner}", child, "##" if name == "hpcdat" else "###")


def _help(text: str) -> str:
    """The help as Markdown: the paragraphs that keep their line breaks are lists of commands."""
    parts = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if "\b" not in paragraph:
            parts.append(paragraph)
            continue
        title, _, lines = paragraph.replace("\b\n", "").lstrip("\n").partition("\n")
        parts.append(f"{title}\n\n```text\n{inspect.cleandoc(lines)}\n```")
    return "\n\n".join(parts) + "\n"
