"""From counts to certified radii: the bound of Clopper and Pearson 1934, Theorem 1 of Cohen et al. 2019."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm

Floats = NDArray[np.float64]


def lower_bound(count: ArrayLike, n: int, alpha: float) -> Floats:
    """The exact one-sided lower confidence bound of a probability.

    For any probability p, the bound of a binomial (n, p) count exceeds p with probability at most alpha.

    Args:
        count: successes, integers in [0, n].
        n: trials, >= 1.
        alpha: in (0, 1).

    Returns:
        Bounds in [0, 1), of count's shape: the p at which so many successes or more have probability alpha.
    """
    count = np.asarray(count)
    # For count 0, where the beta distribution is not defined, the bound is 0.
    return np.where(count > 0, beta.ppf(alpha, np.maximum(count, 1), n - count + 1), 0.0)


def certified_radius(count: ArrayLike, n: int, alpha: float, sigma: float) -> Floats:
    """R = sigma Phi^-1(p_A): Theorem 1 of Cohen et al. 2019 with p_B = 1 - p_A, as in CERTIFY.

    Args:
        count: those of the n samples that are of class A; integers in [0, n].
        n, alpha: as for :func:`lower_bound`, which gives p_A.
        sigma: standard deviation of the noise, [0, 1] units, > 0.

    Returns:
        l2 radii, [0, 1] units, >= 0, of count's shape; NaN where p_A < 1/2, when CERTIFY abstains.
    """
    p_a = lower_bound(count, n, alpha)
    return np.where(p_a >= 0.5, sigma * norm.ppf(p_a), np.nan)


def largest_radius(n: int, alpha: float, sigma: float) -> float:
    """The radius of an image whose n samples are all of one class: sigma Phi^-1(alpha^(1/n))."""
    return float(certified_radius(n, n, alpha, sigma))
