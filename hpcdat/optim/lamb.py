"""Layer-wise adaptive learning rates (LALR), eq. (3) of DAT: over Adam's direction and over momentum."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hpcdat.optim.layerwise import LayerwiseOptimizer, layer_rates


class LALR(LayerwiseOptimizer):
    """theta_i <- theta_i - eta * tau(||theta_i||) / ||u_i|| * u_i for every layer i, eq. (3).

    A layer is any parameter tensor, including biases and batch-norm weights, as in the paper's public code.
    tau clips the norm to [c_l, c_u]. A subclass gives the direction u, which eq. (3) leaves open.

    Where tau or the norm of the direction is zero, the step is eta * u, as in the public code: with
    c_l = 0, eq. (3) taken literally would never move a layer that starts at zero. A group with
    ``layerwise=False`` takes eta * u always.

    Args:
        params: parameters or groups; a group may set its own ``layerwise`` (bool).
        lr: eta, > 0.
        weight_decay: >= 0.
        c_l, c_u: clip of the layer's norm, 0 <= c_l <= c_u.
        others: settings of the direction.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, weight_decay: float, c_l: float, c_u: float, **others: Any
    ) -> None:
        if lr <= 0 or weight_decay < 0:
            raise ValueError(f"lr {lr} must be > 0, weight_decay {weight_decay} >= 0")
        if not 0 <= c_l <= c_u:
            raise ValueError(f"0 <= c_l <= c_u is needed, got {c_l} and {c_u}")
        eq_3 = {"lr": lr, "weight_decay": weight_decay, "c_l": c_l, "c_u": c_u, "layerwise": True}
        super().__init__(params, eq_3 | others)

    def update(  # noqa: D102
        self, group: dict[str, Any], theta: list[Tensor], g: list[Tensor], *buffers: list[Tensor]
    ) -> None:
        u = self.direction(group, theta, g, *buffers)
        if group["layerwise"]:
            torch._foreach_mul_(u, trust_ratios(theta, u, group["c_l"], group["c_u"]))
        torch._foreach_add_(theta, u, alpha=-group["lr"])

    @abstractmethod
    def direction(
        self, group: dict[str, Any], theta: list[Tensor], g: list[Tensor], *buffers: list[Tensor]
    ) -> list[Tensor]:
        """The direction u of each layer of a group, in new tensors; the arguments are those of ``update``."""


class LAMB(LALR):
    """LALR over Adam's direction: LAMB, Algorithm A2.

    u is m / sqrt(v + zeta) with bias-corrected moments (zeta stands inside the root), plus
    ``weight_decay * theta``, which A2 leaves out: Sec. 4.1 of the supplement asks for a decay of 1e-4, and
    the public code adds it there, before the norm of u is taken.

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

    Example:
        >>> from hpcdat import LAMB
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(layer.weight)
        >>> optimizer = LAMB(layer.parameters(), lr=0.1)
        >>> layer(torch.tensor([[1.0, -2.0]])).sum().backward()
        >>> optimizer.step()  # u = (1, -1); the layer's norm sqrt(2) over that of u is 1
        >>> layer.weight.data
        tensor([[0.9000, 1.1000]])
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
        if zeta <= 0:
            raise ValueError(f"zeta {zeta} must be > 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {betas} must lie in [0, 1)")
        super().__init__(params, lr, weight_decay, c_l, c_u, betas=betas, zeta=zeta)

    def direction(  # noqa: D102
        self, group: dict[str, Any], theta: list[Tensor], g: list[Tensor], *buffers: list[Tensor]
    ) -> list[Tensor]:
        m, v = buffers
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
        return u


class MomentumLALR(LALR):
    """LALR over momentum: LARS with a clip, as Algorithm 1 of You et al. 2019 has it.

    u is the moving average m <- beta m + (1 - beta) (g + weight_decay * theta). It differs from
    :class:`~hpcdat.optim.lars.LARS`, which follows You et al. 2017: there the norm is the gradient's, is
    not clipped, and the rate multiplies what goes into the momentum.

    Args:
        params: parameters or groups; a group may set its own ``layerwise`` (bool).
        lr: eta, > 0.
        momentum: beta, in [0, 1).
        weight_decay: >= 0.
        c_l, c_u: clip of the layer's norm, 0 <= c_l <= c_u.

    Raises:
        ValueError: a value out of its range.

    Example:
        >>> from hpcdat import MomentumLALR
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(layer.weight)
        >>> optimizer = MomentumLALR(layer.parameters(), lr=0.1, momentum=0.0)
        >>> layer(torch.tensor([[3.0, 3.0]])).sum().backward()
        >>> optimizer.step()  # u = (3, 3), rescaled to the layer's norm
        >>> layer.weight.data
        tensor([[0.9000, 0.9000]])
    """

    buffers = ("m",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        c_l: float = 0.0,
        c_u: float = 10.0,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum {momentum} must lie in [0, 1)")
        super().__init__(params, lr, weight_decay, c_l, c_u, momentum=momentum)

    def direction(  # noqa: D102
        self, group: dict[str, Any], theta: list[Tensor], g: list[Tensor], *buffers: list[Tensor]
    ) -> list[Tensor]:
        (m,) = buffers
        decayed = torch._foreach_add(g, theta, alpha=group["weight_decay"]) if group["weight_decay"] else g
        torch._foreach_lerp_(m, list(decayed), 1 - group["momentum"])
        return list(torch._foreach_mul(m, 1.0))


def trust_ratios(theta: list[Tensor], u: list[Tensor], c_l: float, c_u: float) -> list[Tensor]:
    """tau(||theta_i||) / ||u_i|| of eq. (3) for each layer; 1 where one of the two is zero.

    Args:
        theta, u: weights and direction, one tensor a layer.
        c_l, c_u: clip of the layer's norm.

    Returns:
        One scalar tensor a layer.
    """
    return layer_rates(theta, u, lambda tau, u_norms: tau / u_norms, clip=(c_l, c_u))
