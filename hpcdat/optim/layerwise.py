"""What optimisers with a learning rate for each layer share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor


class LayerwiseOptimizer(torch.optim.Optimizer):
    """Base of optimisers that scale the step of every layer, a parameter tensor, by a rate of its own.

    Steps of a group with ``layerwise=False`` are not scaled.

    Attributes:
        buffers: names of the tensors that the optimiser stores for each parameter; they start at zero.
    """

    buffers: ClassVar[tuple[str, ...]]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is accepted
        """Update the parameters by the gradients in ``.grad``; a parameter without one stays as it is."""
        for group in self.param_groups:
            theta = [p for p in group["params"] if p.grad is not None]
            if not theta:
                continue
            for p in theta:
                if not self.state[p]:
                    for name in self.buffers:
                        self.state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
            buffers = [[self.state[p][name] for p in theta] for name in self.buffers]
            self.update(group, theta, [p.grad for p in theta], *buffers)

    @abstractmethod
    def update(
        self, group: dict[str, Any], theta: list[Tensor], g: list[Tensor], *buffers: list[Tensor]
    ) -> None:
        """Update the layers of a group in place.

        Args:
            group: its settings.
            theta, g: weights and gradients, one tensor a layer.
            buffers: the optimiser's own tensors, likewise, in the order of :attr:`buffers`.
        """


def layer_rates(
    theta: list[Tensor],
    u: list[Tensor],
    rate: Callable[[Tensor, Tensor], Tensor],
    *,
    clip: tuple[float, float] = (0.0, math.inf),
) -> list[Tensor]:
    """The rate of each layer as a function of two norms; 1 where one of them is zero.

    Args:
        theta: weights, one tensor a layer.
        u: directions or gradients, likewise.
        rate: from tau(||theta_i||) and ||u_i|| of all layers, (layers,) each, to their rates.
        clip: least and greatest value of tau.

    Returns:
        One scalar tensor a layer.
    """
    tau = torch.stack(torch._foreach_norm(theta)).clamp(*clip)
    u_norms = torch.stack(torch._foreach_norm(u))
    defined = (tau > 0) & (u_norms > 0)
    return list(torch.where(defined, rate(tau, u_norms), 1.0).unbind())
