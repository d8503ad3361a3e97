"""The sections of a job for what is measured of a model: robust accuracy and certificates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hpcdat.config.presets import PRESETS, Preset
from hpcdat.config.sections import MAY_CHANGE, Finite, Fraction, Norm
from hpcdat.config.settings import Settings


class Evaluation(Settings):
    """The measurement of TA and RA on the test images."""

    preset: Preset = "none"
    """`robustbench-linf`, `robustbench-l2`, `robustbench-imagenet-linf`: threat model of a RobustBench
    leaderboard, which sets `norm`, `eps` and, if left out, `autoattack`"""
    norm: Norm | None = None
    """norm of the ball; left out: the training `attack.norm`, without training `linf`"""
    eps: Fraction | None = None
    """radius of the attack, [0, 1] units; left out: the training `attack.eps`"""
    steps: int = Field(20, ge=1)
    """PGD steps"""
    step_size: Fraction | None = None
    """step size, [0, 1] units; left out: 2.5 eps / steps"""
    random_start: bool = True
    """start from a uniform random point of the ball, seeded by `seed` and the number of the batch"""
    restarts: int = Field(1, ge=1)
    """number of random starts; an image is robust if the attack fails from all of them. Sweeps start once"""
    batch_size: Annotated[int, MAY_CHANGE] = Field(100, ge=1)
    """images per batch; independent of the number of workers"""
    fold_batch_norm: Annotated[bool, MAY_CHANGE] = True
    """attack, and certify, with batch norm folded into the convolutions, where the network allows it, which
    is faster and rounds differently; the network as it is decides which images an attack has broken"""
    autoattack: Annotated[Annotated[int, Field(ge=0)] | Literal["all"] | None, MAY_CHANGE] = None
    """`hpcdat evaluate`: number of images, or `all`, on which AA is measured unless `--autoattack` says
    otherwise; 0 or left out: none, with a preset as many as the leaderboard has"""
    fast_bound: Annotated[bool, MAY_CHANGE] = False
    """`hpcdat evaluate`: measure the accuracy under a margin attack from twelve random starts too, an upper
    bound on robust accuracy that is usually below RA"""
    every: int = Field(0, ge=0)
    """measure TA and RA after every so many epochs too, on the images of `early_stopping.held_out` if there
    are any; 0: only at the end. Not part of the training time T"""

    def with_usual_step_size(self, *, eps: float, steps: int) -> Evaluation:
        """These settings with this radius and number of steps, and the default step size 2.5 eps / steps."""
        return self.model_copy(update={"eps": eps, "steps": steps, "step_size": 2.5 * eps / steps})

    @property
    def has_usual_step_size(self) -> bool:
        """Whether the step size is the default one."""
        if self.eps is None:
            return self.step_size is None
        return self == self.with_usual_step_size(eps=self.resolved_eps, steps=self.steps)

    def resolved(self, norm: Norm = "linf", eps: float | None = None) -> Evaluation:
        """These settings with those filled in that are left out.

        Args:
            norm, eps: of the attack in training, if there is one.
        """
        preset = PRESETS.get(self.preset)
        if preset:
            norm, eps = preset.norm, preset.eps
        filled = self.model_copy(
            update={
                "norm": self.norm or norm,
                "eps": eps if self.eps is None else self.eps,
                "autoattack": preset.images if preset and self.autoattack is None else self.autoattack,
            }
        )
        if filled.eps is None or filled.step_size is not None:
            return filled
        return filled.with_usual_step_size(eps=filled.eps, steps=filled.steps)

    @property
    def resolved_norm(self) -> Norm:
        """The norm; only for the settings of a resolved job, which always have one."""
        assert self.norm is not None
        return self.norm

    @property
    def resolved_eps(self) -> float:
        """The radius; only for the settings of a resolved job, which always have one."""
        assert self.eps is not None
        return self.eps


class Certification(Settings):
    """Certified robustness by randomised smoothing (`hpcdat certify`): Cohen et al. 2019."""

    sigma: Annotated[list[Annotated[Finite, Field(gt=0)]], Field(min_length=1)] | None = None
    """standard deviations of the Gaussian noise, [0, 1] units; left out: that of `smoothing`, without it
    Table 2's 0.12 and 0.25"""
    n0: int = Field(100, ge=1)
    """noisy samples that choose the class"""
    n: int = Field(100_000, ge=1)
    """noisy samples that bound its probability"""
    alpha: float = Field(0.001, gt=0, lt=1)
    """largest probability that the certificate of an image is wrong"""
    every: int = Field(1, ge=1)
    """certify every n-th test image; Cohen et al. take 20 on CIFAR-10 and 100 on ImageNet"""
    batch_size: int = Field(1000, ge=1)
    """noisy samples per batch; random numbers depend on it, not on the number of workers"""

    def resolved(self) -> Certification:
        """These settings with those filled in that are left out."""
        return self.model_copy(update={"sigma": self.sigma or [0.12, 0.25]})
