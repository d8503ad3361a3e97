"""Files that sysfs shows on several kinds of nodes, written after public documentation and drivers' sources.

A node is a text file in ``tests/hardware/nodes``: lines of path, tab, text; or path, tab, ``->`` and the path
that a link leads to. Lines with ``#`` name the sources. None of these files was copied from a real machine.
"""

import os

from tests.conftest import CHECKOUT

NODES = CHECKOUT / "tests" / "hardware" / "nodes"
KINDS = sorted(file.stem for file in NODES.glob("*.txt"))


def unpack(kind, root):
    """Write the files of a kind of node below a folder, and return it."""
    for line in (NODES / f"{kind}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        path, _, text = line.partition("\t")
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            target = root / text.removeprefix("-> ")
            target.mkdir(parents=True, exist_ok=True)
            file.symlink_to(os.path.relpath(target, file.parent))
        else:
            file.write_text(f"{text}\n")
    return root
