"""The jobs that come with hpcdat: their names, what they are, and copies of them."""

from __future__ import annotations

import difflib
import re
import textwrap
from itertools import takewhile
from pathlib import Path

from hpcdat.config.yaml_text import load
from hpcdat.errors import InputError, shorten
from hpcdat.storage.atomic_files import write_text

FOLDER = (Path(__file__).resolve().parents[1] / "jobs").resolve()
"""Their folder, which is part of the package; in a checkout a link to its folder ``jobs``."""

LONGEST_SENTENCE = 100
"""Characters of a comment that a list of the jobs shows."""


def shipped_jobs() -> dict[str, str]:
    """What each job is, from its comment's first sentence, by its name, such as ``conadv/32k/aa``."""
    return {
        path.relative_to(FOLDER).with_suffix("").as_posix(): _first_sentence(path)
        for path in sorted(FOLDER.rglob("*.yaml"))
    }


def _first_sentence(path: Path) -> str:
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    comment = " ".join(line.lstrip("# ") for line in lines)
    # Not after an abbreviation, which a small letter or a number follows.
    return textwrap.shorten(re.split(r"(?<=\.) (?=[A-Z])", comment)[0], LONGEST_SENTENCE, placeholder=" ...")


def find_shipped(name: str) -> Path:
    """The file of a job.

    Args:
        name: as :func:`shipped_jobs` has it; ``.yaml`` may follow.

    Raises:
        InputError: there is none of this name.
    """
    name = name.removesuffix(".yaml")
    names = list(shipped_jobs())
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        advice = f"did you mean {' or '.join(close)}?" if close else "`hpcdat jobs` lists them"
        raise InputError(f"{shorten(name)}: no such job comes with hpcdat; {advice}")
    return FOLDER / f"{name}.yaml"


def copy_shipped(name: str, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Copy a job and the jobs that it is ``like``, at the same places below the folder.

    Args:
        name: of the job.
        folder: created if it does not exist.
        overwrite: replace files that are there and differ.

    Returns:
        The files, the job's own first.

    Raises:
        InputError: there is no such job, or a file is there already or cannot be written.
    """
    sources = _with_ancestors(find_shipped(name))
    copies = {folder / source.relative_to(FOLDER): source.read_text(encoding="utf-8") for source in sources}
    try:
        different = [
            path for path, text in copies.items() if path.exists() and path.read_bytes() != text.encode()
        ]
        if different and not overwrite:
            raise InputError(
                f"{different[0]} exists and differs: choose another folder, or replace it with --overwrite"
            )
        for path, text in copies.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be written: {error.strerror}") from None
    return list(copies)


def _with_ancestors(path: Path) -> list[Path]:
    """A job and those that it takes settings from, each the one named by the ``like`` of the one before."""
    found = [path]
    while like := load(found[-1].read_text(encoding="utf-8"))[0].get("like"):
        found.append((found[-1].parent / like).resolve())
    return found
