"""Layer-wise adaptive rate scaling over momentum: LARS (You et al. 2017), the ConAdv paper's optimiser."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hpcdat.optim.layerwise import LayerwiseOptimizer, layer_rates


class LARS(LayerwiseOptimizer):
    """v_i <- m v_i + eta lambda_i (g_i + w theta_i) and theta_i <- theta_i - v_i for every layer i.

    lambda_i = c ||theta_i|| / (||g_i|| + w ||theta_i||) is the layer's own rate. The common rate eta is
    inside the momentum, as in You et al. 2017 and in TensorFlow's LARS that the paper's code trains with:
    momentum keeps the rate at which each step was taken. In torch's SGD the rate is outside the momentum;
    the two differ whenever the rate changes.

    A tensor whose weights or gradient have norm zero takes lambda = 1. A group with
    ``layerwise=False`` takes lambda = 1 always.

    Args:
        params: parameters or groups; a group may set its own ``layerwise`` (bool).
        lr: eta, > 0.
        momentum: m, in [0, 1).
        weight_decay: w, >= 0.
        trust_coefficient: c, > 0.

    Raises:
        ValueError: a value out of its range.

    Example:
        >>> from hpcdat import LARS
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(layer.weight)
        >>> optimizer = LARS(layer.parameters(), lr=1.0, trust_coefficient=0.1)
        >>> layer(torch.tensor([[3.0, 3.0]])).sum().backward()
        >>> optimizer.step()  # lambda = 0.1 * sqrt(2) / (3 * sqrt(2))
        >>> layer.weight.data
        tensor([[0.9000, 0.9000]])
    """

    buffers = ("v",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        if lr <= 0 or weight_decay < 0 or trust_coefficient <= 0:
            raise ValueError(
                f"lr {lr} and trust_coefficient {trust_coefficient} must be > 0, "
                f"weight_decay {weight_decay} >= 0"
            )
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum {momentum} must lie in [0, 1)")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "layerwise": True,
        }
        super().__init__(params, defaults)

    def update(  # noqa: D102
        self, group: dict[str, Any], theta: list[Tensor], g: list[Tensor], *buffers: list[Tensor]
    ) -> None:
        (v,) = buffers
        decay = group["weight_decay"]
        step = torch._foreach_add(g, theta, alpha=decay) if decay else torch._foreach_mul(g, 1.0)
        if group["layerwise"]:
            torch._foreach_mul_(step, local_rates(theta, g, group["trust_coefficient"], decay))
        torch._foreach_mul_(v, group["momentum"])
        torch._foreach_add_(v, step, alpha=group["lr"])
        torch._foreach_sub_(theta, v)


def local_rates(theta: list[Tensor], g: list[Tensor], coefficient: float, decay: float) -> list[Tensor]:
    """lambda_i of each layer; 1 where the norm of its weights or gradient is zero.

    Args:
        theta, g: weights and gradients, one tensor a layer.
        coefficient: c.
        decay: w.

    Returns:
        One scalar tensor a layer.
    """
    return layer_rates(
        theta, g, lambda theta_norms, g_norms: coefficient * theta_norms / (g_norms + decay * theta_norms)
    )
