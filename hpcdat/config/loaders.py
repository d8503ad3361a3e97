"""Which loader of images is installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal


def dali_is_installed() -> bool:
    """Whether DALI is installed; it is not imported, which takes a second."""
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False


def installed_loader() -> Literal["dali", "torchvision"]:
    """The default of ``data.loader``."""
    return "dali" if dali_is_installed() else "torchvision"
