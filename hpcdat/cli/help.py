"""``hpcdat help``."""

from __future__ import annotations

import difflib
import pydoc
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from hpcdat.cli.worker_process import reported_once
from hpcdat.errors import InputError, shorten

FOLDER = Path(__file__).resolve().parents[1] / "help"
"""A Markdown file for each topic, headed ``# TOPIC: what it is about``."""


def topics() -> dict[str, str]:
    """What each topic is about, by the topic's name."""
    files = sorted(FOLDER.glob("*.md"))
    return {file.stem: file.read_text().partition("\n")[0].partition(": ")[2] for file in files}


def complete_topic(incomplete: str) -> list[str]:
    """The topics that begin with what has been typed."""
    return [topic for topic in topics() if topic.startswith(incomplete)]


def help_(
    context: typer.Context,
    topic: Annotated[
        str | None,
        typer.Argument(help="Topic.", metavar="TOPIC", show_default=False, autocompletion=complete_topic),
    ] = None,
) -> None:
    """Explain a topic, or list the topics.

    \b
    Examples:
      hpcdat help
      hpcdat help exchange
    """
    if topic is None:
        about = topics()
        width = max(map(len, about))
        print("Topics of `hpcdat help TOPIC`:\n")
        print("\n".join(f"  {name:<{width}}  {text}" for name, text in about.items()))
        print("\n`hpcdat COMMAND --help` explains a command.")
        return
    text = reported_once(lambda: _text_of(topic, _commands(context)))
    if sys.stdout.isatty() and text.count("\n") >= shutil.get_terminal_size().lines:
        pydoc.pager(text)
    else:
        print(text, end="")


def _commands(context: typer.Context) -> list[str]:
    return list(getattr(context.find_root().command, "commands", ()))


def _text_of(topic: str, commands: list[str]) -> str:
    """The text of a topic.

    Raises:
        InputError: there is no such topic.
    """
    about = topics()
    if topic in about:
        return (FOLDER / f"{topic}.md").read_text()
    if topic in commands:
        raise InputError(f"{topic} is a command, not a topic: `hpcdat {topic} --help` explains it")
    close = difflib.get_close_matches(topic, about, n=2)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise InputError(f"no help on {shorten(topic)}{hint} (topics: {', '.join(about)})")
