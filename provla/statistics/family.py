"""Several comparisons with one baseline, at once: what a t must exceed so that none of them errs in 95 of 100 studies.

Comparisons share the baseline's error, so their t are correlated; Dunnett (1955) takes that into account, where Holm's
or Bonferroni's correction does not. scipy's `dunnett` does the same for plain samples; here degrees of freedom may be
fractions, and arms of unequal numbers of trainings.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

KNOTS = 48  # of the Gauss-Hermite rule over the baseline's error
NODES = 64  # of the Gauss-Legendre rule over the error's own spread


def dunnett(t: float, df: float, shares: tuple[float, ...], two_sided: bool = True) -> float:
    """The chance that any of the comparisons exceeds t where no arm differs: Dunnett's adjusted p of the value t.

    shares: of each comparison's variance, the baseline's part (one half where both have as many trainings): the square
    root of the product of two is their correlation. two_sided: |t|, else t.
    """
    points, weights = _hermite()
    spread_of_error, likely = _chi(df)
    wide, inside = spread_of_error[:, None], np.ones((NODES, KNOTS))
    for share in shares:
        centre, spread = np.sqrt(share) * points, np.sqrt(1 - share)
        part = _normal((t * wide - centre) / spread)
        inside *= part - _normal((-t * wide - centre) / spread) if two_sided else part
    return float(1 - likely @ (inside @ weights))


@cache
def critical(df: float, shares: tuple[float, ...], alpha: float = 0.05, two_sided: bool = True) -> float:
    """What t, or |t|, exceeds in α of the studies in any comparison, where no arm differs."""
    from scipy.optimize import brentq
    from scipy.stats import t as student

    tail = alpha / 2 if two_sided else alpha
    low, high = student.isf(tail, df), student.isf(tail / len(shares), df)
    if len(shares) == 1:
        return float(low)
    return float(brentq(lambda x: dunnett(x, df, shares, two_sided) - alpha, 0.98 * low, 1.02 * high, xtol=1e-4))


def critical_at(
    df: NDArray[np.float64], shares: tuple[float, ...], alpha: float = 0.05, two_sided: bool = True
) -> NDArray[np.float64]:
    """`critical` for many degrees of freedom: exact on a grid, a line in 1/df between."""
    grid = np.concatenate([np.arange(1, 12), np.geomspace(12, 2000, 16)])
    grid = grid[max(0, int(np.searchsorted(grid, df.min())) - 1) : int(np.searchsorted(grid, df.max())) + 1]
    if len(grid) == 0:
        grid = np.array([2000.0])
    known = [critical(float(one), shares, alpha, two_sided) for one in grid]
    return np.interp(-1 / np.maximum(df, 1e-9), -1 / grid, known)


@cache
def _hermite() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points, weights = np.polynomial.hermite_e.hermegauss(KNOTS)
    return points, weights / weights.sum()


@cache
def _chi(df: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values of χ/√df, and how likely they are."""
    from scipy.stats import chi

    low, high = chi.ppf([1e-10, 1 - 1e-10], df)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    points = low + (high - low) * (nodes + 1) / 2
    likely = weights * chi.pdf(points, df)
    return points / np.sqrt(df), likely / likely.sum()


def _normal(x: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import ndtr

    found: NDArray[np.float64] = ndtr(x)
    return found
