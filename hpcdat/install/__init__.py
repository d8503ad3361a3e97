"""The environment, made from nothing: ``python3 -m hpcdat.install``.

Runs before anything is installed, so these modules use the standard library alone.
"""
