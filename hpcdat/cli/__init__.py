"""The command line."""

from hpcdat.cli.app import main

__all__ = ["main"]
