"""Read pinned requirements."""

from __future__ import annotations

from pathlib import Path

from hpcdat.install.steps import InstallError


def read_pins(file: Path) -> list[str]:
    """The pins of a requirements file and of the files it includes with ``-r``.

    Raises:
        InstallError: a file cannot be read.
    """
    try:
        lines = [line.partition("#")[0].strip() for line in file.read_text().splitlines()]
    except OSError as error:
        raise InstallError(f"the pinned packages cannot be read: {file}: {error.strerror}") from None
    pins = []
    for line in filter(None, lines):
        included = line.removeprefix("-r ")
        pins += [line] if included == line else read_pins(file.parent / included.strip())
    return pins


def version_of(package: str, pins: list[str]) -> str | None:
    """The version that a package is pinned to, as in ``torch==2.14.1``; None if it is not pinned."""
    return next((pin.split("==")[1].split()[0] for pin in pins if pin.startswith(f"{package}==")), None)
