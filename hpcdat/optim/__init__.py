"""The outer minimisation oracle (A4) and its learning rate."""

from __future__ import annotations

import torch
from torch import nn

from hpcdat.config.sections import Optimizer
from hpcdat.optim.lamb import LAMB
from hpcdat.optim.lars import LARS


def build_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The optimiser that the job names, over two groups of parameters.

    Weights (two or more dimensions) are decayed and, with ``lamb`` and ``lars``, get a layer-wise
    rate, with ``lamb`` that of eq. (3). Biases and batch norm (one dimension) are neither decayed
    nor rescaled: their norms start at zero or say nothing about a layer's scale.

    Args:
        model: its parameters are optimised.
        settings: the resolved ``optimizer`` section.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "layerwise": True},
        {"params": [p for p in parameters if p.dim() <= 1], "layerwise": False, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.name == "lamb":
        return LAMB(
            groups,
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            c_l=settings.c_l,
            c_u=settings.c_u,
        )
    if settings.name == "lars":
        return LARS(
            groups,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            trust_coefficient=settings.trust_coefficient,
        )
    return torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, foreach=True
    )
