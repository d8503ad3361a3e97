"""The command line."""

import os

from hpcdat.distributed.launcher import SERVED
from hpcdat.distributed.stop_signals import hold_launchers_request

__all__ = ["main"]


def main() -> None:
    """Run ``hpcdat``."""
    if any(rank in os.environ for _, rank, _, _ in SERVED):
        hold_launchers_request()
    # Slow, so that a launcher may meanwhile request a stop.
    from hpcdat.cli.app import main as run

    run()
