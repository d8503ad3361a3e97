"""hpcdat: distributed (DAT) and concurrent (ConAdv) adversarial training on many machines.

The names below are imported when they are first used, so that ``import hpcdat`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_MODULE_OF = {
    "LAMB": "hpcdat.optim.lamb",
    "LARS": "hpcdat.optim.lars",
    "MomentumLALR": "hpcdat.optim.lamb",
    "PGD": "hpcdat.attacks.pgd",
    "QuantizedSum": "hpcdat.exchange.horovod_compression",
    "certify": "hpcdat.api",
    "evaluate": "hpcdat.api",
    "train": "hpcdat.api",
}

__all__ = ["LAMB", "LARS", "PGD", "MomentumLALR", "QuantizedSum", "certify", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'hpcdat' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
