"""``python -m hpcdat`` is the command ``hpcdat``."""

from hpcdat.cli import main

main()
