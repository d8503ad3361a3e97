"""Set up the environment from scratch: ``python3 -m hpcdat.install``.

This runs before anything is installed, so these modules use only the standard library.
"""
