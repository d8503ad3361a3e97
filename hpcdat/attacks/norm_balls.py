"""The l-inf and l2 balls around images, intersected with [0, 1]: the feasible sets of attacks.

A ball provides a uniform sample, the direction of steepest ascent, the projection, and a rounding that stays
inside the set.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LinfBall:
    """{x + d : max |d_i| <= eps} intersected with [0, 1].

    Args:
        x: centres (N, ...), floating point in [0, 1].
        eps: radius, [0, 1] units.
    """

    def __init__(self, x: Tensor, eps: float) -> None:
        self.x = x
        self.eps = eps
        self.low = _inside(x, (x.double() - eps).clamp(min=0), eps)
        self.high = _inside(x, (x.double() + eps).clamp(max=1), eps)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Perturbations drawn uniformly from the ball, not clipped to [0, 1]."""
        noise = torch.rand(self.x.shape, generator=generator, dtype=self.x.dtype, device=self.x.device)
        return (2 * noise - 1) * self.eps

    def steepest(self, gradient: Tensor) -> Tensor:
        """sign(g): the unit step of steepest ascent; 0 where g is 0 or NaN."""
        return gradient.nan_to_num(nan=0.0).sign()

    def project(self, x: Tensor) -> Tensor:
        """The nearest point of the set to x."""
        return torch.minimum(torch.maximum(x, self.low), self.high)

    def round_inside(self, x: Tensor) -> Tensor:
        """Return x, since the bounds that it was projected onto are rounded inwards."""
        return x


class L2Ball:
    """{x + d : ||d||_2 <= eps} intersected with [0, 1], for each sample.

    Args:
        x: centres (N, ...), floating point in [0, 1].
        eps: radius, [0, 1] units.
    """

    PROJECTION_ITERATIONS = 5
    """Fixed-point iterations for t; the last ones change only its last digits."""

    def __init__(self, x: Tensor, eps: float) -> None:
        self.x = x
        self.eps = eps

    def sample(self, generator: torch.Generator) -> Tensor:
        """Perturbations drawn uniformly from the ball, not clipped to [0, 1]: direction times u^(1/n)."""
        like: dict[str, Any] = {"generator": generator, "dtype": self.x.dtype, "device": self.x.device}
        direction = self.steepest(torch.randn(self.x.shape, **like))
        count, pixels = len(self.x), self.x[0].numel()
        radius = torch.rand(count, **like) ** (1 / pixels)
        return direction * (self.eps * _per_sample(radius, self.x))

    def steepest(self, gradient: Tensor) -> Tensor:
        """G / ||g||_2 for each sample; 0 where g is 0 or not finite."""
        # Scaled by the largest entry first, since squares of tiny or huge entries underflow or overflow.
        gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        largest = _per_sample(gradient.flatten(1).abs().amax(1), gradient)
        scaled = torch.where(largest > 0, gradient / largest, 0)
        return scaled / _norm(scaled).clamp(min=0.5).to(scaled.dtype)

    def project(self, x: Tensor) -> Tensor:
        """The nearest point of the set to x, or one slightly closer to the centre.

        It is clip(centre + t * delta, 0, 1) with the largest t <= 1 that stays in the ball. Given the clipped
        pixels, t has a closed form. The iteration starts with none clipped; t grows with every pixel that is,
        so a few iterations suffice and none leaves the ball. Scaling first and clipping afterwards, as is
        common, would use only a part of the radius.
        """
        delta = x - self.x
        wide = torch.promote_types(delta.dtype, torch.float32)
        room = torch.where(delta > 0, 1 - self.x, self.x).to(wide)
        length = delta.abs().to(wide)
        t = torch.zeros(1, dtype=wide, device=x.device)
        for _ in range(self.PROJECTION_ITERATIONS):
            clipped = t * length >= room
            clipped_square = _per_sample((room.square() * clipped).flatten(1).sum(1), delta)
            free_square = _per_sample((length.square() * ~clipped).flatten(1).sum(1), delta)
            t = (((self.eps**2 - clipped_square).clamp(min=0)) / free_square).sqrt().clamp(max=1)
            # 0 / 0: every pixel is clipped, or delta is 0.
            t = t.nan_to_num(nan=1.0)
        return (self.x + delta * t.to(delta.dtype)).clamp(0, 1)

    def round_inside(self, x: Tensor) -> Tensor:
        """Move x towards its centre where rounding has moved it out of the ball."""
        for shrink in (2**-20, 2**-12, 2**-6, 1.0):
            delta = x.double() - self.x.double()
            norm = _norm(delta)
            drawn = (self.x.double() + delta * (self.eps / norm * (1 - shrink))).to(x.dtype)
            # Unconditional, since testing whether any sample is outside would synchronise with the GPU.
            x = torch.where(norm > self.eps, drawn, x)
        return x


BALLS: dict[str, type[LinfBall] | type[L2Ball]] = {"linf": LinfBall, "l2": L2Ball}
"""The balls by the name of their norm."""


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def _norm(delta: Tensor) -> Tensor:
    """The l2 norm of each sample, (N, 1, ...), at least in float32."""
    wide = torch.promote_types(delta.dtype, torch.float32)
    return _per_sample(torch.linalg.vector_norm(delta.flatten(1), dim=1, dtype=wide), delta)


def _inside(x: Tensor, bound: Tensor, eps: float) -> Tensor:
    """The float64 bound rounded to x's dtype, or the next float towards x where that exceeds eps."""
    rounded = bound.to(x.dtype)
    outside = (rounded.double() - x.double()).abs() > eps
    return torch.where(outside, torch.nextafter(rounded, x), rounded)
