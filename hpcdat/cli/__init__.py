"""The command line."""

import contextlib

from hpcdat.distributed.launcher import LauncherError, launched
from hpcdat.distributed.stop_signals import hold_launchers_request

__all__ = ["main"]


def main() -> None:
    """Run ``hpcdat``."""
    # What the variables of an unknown launcher mean is said later.
    with contextlib.suppress(LauncherError):
        if launched().size > 1:
            hold_launchers_request()
    # This takes a second, in which a launcher may request a stop.
    from hpcdat.cli.app import main as run

    run()
