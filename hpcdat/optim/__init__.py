"""The outer minimisation oracle (A4) and its learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hpcdat.config.sections import Optimizer
from hpcdat.optim.lamb import LAMB, MomentumLALR
from hpcdat.optim.lars import LARS


def build_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The optimiser that the job names.

    Every parameter tensor is decayed and, except with ``sgd``, has its own rate. With ``exclude: vectors``
    those of one dimension, biases and batch norm, are in a second group, which is neither decayed nor
    rescaled.

    Args:
        model: its parameters are optimised, except frozen and empty ones.
        settings: the resolved ``optimizer`` section.
    """
    parameters = [p for p in model.parameters() if p.requires_grad and p.numel()]
    groups: list[dict[str, Any]] = [{"params": parameters, "layerwise": True}]
    if settings.exclude == "vectors":
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "layerwise": True},
            {"params": [p for p in parameters if p.dim() <= 1], "layerwise": False, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
    rates = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    eq_3 = {"c_l": settings.c_l, "c_u": settings.c_u}
    match settings.name:
        case "lamb":
            return LAMB(groups, **rates, **eq_3, betas=(settings.beta1, settings.beta2))
        case "lalr-momentum":
            return MomentumLALR(groups, **rates, **eq_3, momentum=settings.momentum)
        case "lars":
            trust = settings.trust_coefficient
            return LARS(groups, **rates, momentum=settings.momentum, trust_coefficient=trust)
    decay, momentum = settings.weight_decay, settings.momentum
    return torch.optim.SGD(groups, lr=settings.lr, momentum=momentum, weight_decay=decay, foreach=True)
