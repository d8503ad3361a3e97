"""Files of sysfs, and the places of PCI devices in it."""

from __future__ import annotations

import re
from pathlib import Path

_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def folders(parent: Path) -> list[Path]:
    """What is in a folder, by name; nothing if there is no such folder."""
    return sorted(parent.iterdir()) if parent.is_dir() else []


def text_of(file: Path) -> str:
    """A file's text without the line break; empty if it cannot be read."""
    try:
        return file.read_text().strip()
    except OSError:
        # Interfaces that are down answer some files with an error.
        return ""


def number_in(file: Path) -> int | None:
    """The number in a file, not negative; None if there is none."""
    text = text_of(file)
    return int(text) if text.isdecimal() else None


def driver_of(device: Path) -> str:
    """The driver of a device, such as ``mlx5_core``; empty if none is named."""
    link = device / "device" / "driver"
    return link.resolve().name if link.exists() else ""


def pci_address(device: Path) -> str:
    """The PCI address of a device, such as ``0000:17:00.0``; empty for other devices."""
    name = (device / "device").resolve().name
    return name if _PCI_ADDRESS.fullmatch(name) else ""
