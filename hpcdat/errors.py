"""Errors a user can act on, and the exit codes they end in."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAILURE = 1
    WRONG_INPUT = 2
    STOPPED_RESUMABLE = 75
    """stopped early on request; the same command goes on (EX_TEMPFAIL of sysexits.h)"""
    INTERRUPTED = 130
    """ended at once by a second Ctrl-C"""


class HpcdatError(Exception):
    """An expected failure; its message is shown without a traceback.

    Args:
        message: what was wrong, where, and what to do.
        everywhere: whether all workers raise it together, so that one of them may tell.
    """

    exit_code = Exit.FAILURE

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


class InputError(HpcdatError):
    """Something the user gave is wrong: job, folder, data or checkpoint."""

    exit_code = Exit.WRONG_INPUT


class WorkerError(HpcdatError):
    """Something a worker could not do."""


class Stopped(HpcdatError):
    """The run was asked to stop; its checkpoint is written and the same command goes on."""

    exit_code = Exit.STOPPED_RESUMABLE
