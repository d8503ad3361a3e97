"""Expected errors, and the exit codes of the commands."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

LONGEST_ECHO = 80
"""Characters of a user's value that an error message repeats."""


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    """done"""
    FAILURE = 1
    """failure; the same command resumes a run from its newest checkpoint"""
    WRONG_INPUT = 2
    """invalid input: command line, job, data, folder, or something that the machine lacks"""
    STOPPED_RESUMABLE = 75
    """stopped early on request; the same command resumes (EX_TEMPFAIL of sysexits.h)"""
    INTERRUPTED = 130
    """ended immediately by a second Ctrl-C"""


class HpcdatError(Exception):
    """An expected failure; its message is shown without a traceback.

    Args:
        message: what was wrong, where, and what to do.
        everywhere: whether all workers raise it together, so that only rank 0 reports it.
    """

    exit_code = Exit.FAILURE

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


class InputError(HpcdatError):
    """The user's input is wrong: job, folder, data or checkpoint."""

    exit_code = Exit.WRONG_INPUT


class WorkerError(HpcdatError):
    """A worker failed."""


class Stopped(HpcdatError):
    """The command stopped early on request; the same command resumes."""

    exit_code = Exit.STOPPED_RESUMABLE


def shorten(value: object) -> str:
    """A user's value as an error message repeats it: on one line, at most :data:`LONGEST_ECHO` characters."""
    text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in str(value))
    return text if len(text) <= LONGEST_ECHO else text[: LONGEST_ECHO - 3] + "..."


def first_few(names: Sequence[str], shown: int = 5) -> str:
    """The first names and the number of the others: ``a, b, c, d, e and 3 more``."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
