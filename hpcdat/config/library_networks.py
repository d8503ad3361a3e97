"""Whether torchvision has a network, without importing it, which takes seconds."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path


def in_torchvision(name: str) -> bool:
    """Whether the installed torchvision defines a classification network of this name."""
    spec = find_spec("torchvision")
    folders = spec.submodule_search_locations if spec else None
    definition = re.compile(rf"^@register_model\(.*\n(?:@.*\n)*def {re.escape(name)}\(", re.MULTILINE)
    return any(
        definition.search(file.read_text(encoding="utf-8"))
        for folder in folders or ()
        for file in Path(folder, "models").glob("*.py")
    )
