"""Layer-wise adaptive learning rate (LALR), eq. (3) of DAT, over Adam's direction: LAMB, Algorithm A2."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hpcdat.optim.layerwise import LayerwiseOptimizer, layer_rates


class LAMB(LayerwiseOptimizer):
    """theta_i <- theta_i - eta * tau(||theta_i||) / ||u_i|| * u_i for every layer i, eq. (3).

    u is Adam's direction m / sqrt(v + zeta) with bias-corrected moments (Algorithm A2: zeta stands
    inside the root), plus ``weight_decay * theta``, which A2 leaves out and Sec. 4.1 of the
    supplement asks for. tau clips the norm to [c_l, c_u].

    A tensor whose weights or direction have norm zero takes the step eta * u: with c_l = 0,
    eq. (3) taken literally would never move a layer that starts at zero. A group with
    ``layerwise=False`` takes eta * u always.

    A2 writes the corrected moments over the moments themselves; as in Adam and You et al. 2019
    the correction is applied to a copy here.

    Args:
        params: parameters or groups; a group may set its own ``layerwise`` (bool).
        lr: eta, > 0.
        betas: decays of the first and second moment, in [0, 1).
        zeta: added to the second moment under the root, > 0.
        weight_decay: >= 0.
        c_l, c_u: clip of the layer's norm, 0 <= c_l <= c_u.

    Raises:
        ValueError: a value out of its range.
    """

    buffers = ("m", "v")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        zeta: float = 1e-12,
        weight_decay: float = 0.0,
        c_l: float = 0.0,
        c_u: float = 10.0,
    ) -> None:
        if lr <= 0 or zeta <= 0 or weight_decay < 0:
            raise ValueError(f"lr {lr} and zeta {zeta} must be > 0, weight_decay {weight_decay} >= 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {betas} must lie in [0, 1)")
        if not 0 <= c_l <= c_u:
            raise ValueError(f"0 <= c_l <= c_u is needed, got {c_l} and {c_u}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "zeta": zeta,
            "weight_decay": weight_decay,
            "c_l": c_l,
            "c_u": c_u,
            "layerwise": True,
        }
        super().__init__(params, defaults)

    def update(  # noqa: D102
        self, group: dict[str, Any], theta: list[Tensor], g: list[Tensor], *kept: list[Tensor]
    ) -> None:
        m, v = kept
        group["t"] = t = group.get("t", 0) + 1
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(m, g, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, g, g, value=1 - beta2)

        root = torch._foreach_div(v, 1 - beta2**t)
        torch._foreach_add_(root, group["zeta"])
        torch._foreach_sqrt_(root)
        u = list(torch._foreach_div(m, 1 - beta1**t))
        torch._foreach_div_(u, root)
        if group["weight_decay"]:
            torch._foreach_add_(u, theta, alpha=group["weight_decay"])
        if group["layerwise"]:
            torch._foreach_mul_(u, trust_ratios(theta, u, group["c_l"], group["c_u"]))
        torch._foreach_add_(theta, u, alpha=-group["lr"])


def trust_ratios(theta: list[Tensor], u: list[Tensor], c_l: float, c_u: float) -> list[Tensor]:
    """tau(||theta_i||) / ||u_i|| of eq. (3) for each layer; 1 where one of the norms is zero.

    Args:
        theta, u: weights and direction, one tensor a layer.
        c_l, c_u: clip of the layer's norm.

    Returns:
        One scalar tensor a layer.
    """
    return layer_rates(theta, u, lambda theta_norms, u_norms: theta_norms.clamp(c_l, c_u) / u_norms)
