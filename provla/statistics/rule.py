"""The rule: is an arm better than the baseline over new trainings and new episodes, and how sure is that.

Student's t. A comparison's variance between trainings is half that of its own two arms and half that of all arms
together: all arms know together what two of three trainings each do not, and an arm that varies more than the others
still counts for itself. What other episodes would change is added; degrees of freedom are Satterthwaite's (1946),
intervals simultaneous, by Dunnett (1955). Where the arms' spreads differ by Bartlett's test (1937), each comparison
uses its own two arms alone (Welch 1947), corrected by Bonferroni. docs/statistics.md shows what the rule keeps and
sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from provla.statistics.family import critical_at, dunnett
from provla.statistics.moments import Array, Moments

NAME = "half-pooled t, Satterthwaite, Dunnett; Welch and Bonferroni where spreads differ; two one-sided tests"
ALPHA = 0.05
LEVEL = 0.05  # of the test of equal spread
OWN = 0.5  # what a comparison's own two arms count of its variance between trainings
ENOUGH = 3  # trainings of each arm: fewer give no word


@dataclass(frozen=True)
class Differences:
    """Arms against the baseline, in their order without it. Arrays are (…,A−1), over studies side by side; p: adjusted.

    low, high: simultaneous intervals, 1 − α together. reach: half of the interval by which differences are called
    equivalent: one-sided, so 1 − 2α. unequal (…): each comparison used its own two arms.
    """

    difference: Array
    error: Array
    df: Array
    p: Array
    low: Array
    high: Array
    reach: Array
    unequal: Array

    def clear(self) -> Array:
        """Whether a simultaneous interval excludes 0: better, or worse."""
        return (self.low > 0) | (self.high < 0)

    def equivalent(self, margin: float) -> Array:
        """Whether a difference lies within ± margin, by two one-sided tests (Schuirmann 1987)."""
        return np.asarray(np.abs(self.difference) + self.reach < margin)


def compare(m: Moments, base: int, alpha: float = ALPHA) -> Differences:
    """Needs two trainings of an arm at least: else all but the differences is nan."""
    arms = [arm for arm in range(len(m.counts)) if arm != base]
    means = m.means
    difference = means[..., arms] - means[..., [base]]
    unequal = spreads_differ(m) < LEVEL
    apart = np.broadcast_to(unequal[..., None], difference.shape)
    own, whole = _own(m, base, arms), _pooled(m, base, arms)
    between, free = (np.where(apart, a, b) for a, b in zip(own, _half(m, base, arms, own, whole), strict=True))
    error, df = _with_other_episodes(m, between, free)
    inverse = 1 / np.array(m.counts)
    shares = tuple(round(float(inverse[base] / (inverse[base] + inverse[arm])), 6) for arm in arms)
    alone, k = (0.5,), len(arms)
    two = np.where(apart, _at(df, alone, alpha / k), _at(df, shares, alpha))
    one = np.where(apart, _at(df, alone, alpha / k, False), _at(df, shares, alpha, False))
    with np.errstate(invalid="ignore"):
        t = np.abs(difference) / error
    p = _p(t, df, apart, shares) if t.ndim == 1 else np.full(t.shape, np.nan)
    return Differences(
        difference, error, df, p, difference - two * error, difference + two * error, one * error, unequal
    )


def spreads_differ(m: Moments) -> Array:
    """p of Bartlett's test that all arms have one variance of run values (…); 1 where nothing can be tested."""
    from scipy.stats import chi2

    free = np.array([count - 1 for count in m.counts], dtype=float)
    if min(m.counts) < ENOUGH or (m.blocked and len(free) == 2):
        return np.ones(m.runs.shape)
    whole, pooled = free.sum(), (m.spreads * free).sum(-1) / free.sum()
    least = np.maximum(1e-12, 1e-4 * pooled)[..., None]  # an arm without any spread is a finding, not log 0
    found = whole * np.log(np.maximum(pooled, 1e-12)) - (free * np.log(np.maximum(m.spreads, least))).sum(-1)
    scale = 1 + ((1 / free).sum() - 1 / whole) / (3 * (len(free) - 1))
    return np.where(pooled <= 1e-12, 1.0, chi2.sf(found / scale, len(free) - 1))


def _pooled(m: Moments, base: int, arms: list[int]) -> tuple[Array, Array]:
    """A difference's variance between trainings, and its degrees of freedom, from all arms."""
    inverse = 1 / np.array(m.counts)
    variance = (inverse[arms] + inverse[base]) * m.runs[..., None]
    return variance, np.full(variance.shape, float(m.df))


def _own(m: Moments, base: int, arms: list[int]) -> tuple[Array, Array]:
    """The same from a comparison's own two arms, in blocks from its differences; nan where one has one training."""
    if m.blocked:
        found = [(m.values[arm] - m.values[base]).var(-1, ddof=1) / m.counts[base] for arm in arms]
        return np.stack(found, -1), np.full((*m.runs.shape, len(arms)), m.counts[base] - 1.0)
    counts = np.array(m.counts, dtype=float)
    free = np.where(counts > 1, counts - 1, np.nan)
    parts = m.spreads / counts
    own = parts[..., arms] + parts[..., [base]]
    below = parts[..., arms] ** 2 / free[arms] + parts[..., [base]] ** 2 / free[base]
    return own + 0 * free[arms] + 0 * free[base], np.maximum(1.0, own**2 / np.maximum(below, 1e-300))


def _half(
    m: Moments, base: int, arms: list[int], own: tuple[Array, Array], whole: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Of both."""
    variance = OWN * own[0] + (1 - OWN) * whole[0]
    if m.blocked:  # two estimates of the same rows: as if one moved with the other
        root = OWN * own[0] / np.sqrt(own[1]) + (1 - OWN) * whole[0] / np.sqrt(whole[1])
        free = variance**2 / np.maximum(root**2, 1e-300)
    else:
        free = _satterthwaite(m, base, arms, variance)
    known = np.isfinite(own[0]) & (variance > 0)  # runs that are all alike tell nothing of their arm
    return np.where(known, variance, whole[0]), np.where(known, np.maximum(1.0, free), whole[1])


def _satterthwaite(m: Moments, base: int, arms: list[int], variance: Array) -> Array:
    counts = np.array(m.counts, dtype=float)
    free = np.maximum(1.0, counts - 1)
    for_all = (1 - OWN) * (counts - 1) / max(1.0, m.df)  # of each arm's variance in that of all
    below = np.zeros(variance.shape)
    for place, arm in enumerate(arms):
        weights = for_all * (1 / counts[arm] + 1 / counts[base])
        weights[arm] += OWN / counts[arm]
        weights[base] += OWN / counts[base]
        below[..., place] = ((weights * m.spreads) ** 2 / free).sum(-1)
    return np.asarray(variance**2 / np.maximum(below, 1e-300))


def _with_other_episodes(m: Moments, between: Array, free: Array) -> tuple[Array, Array]:
    """Standard error and degrees of freedom of a difference, what other episodes would change included."""
    if not m.episodes:  # runs that are all alike, to how many digits is not known, are no certainty
        return np.sqrt(np.where(between > 0, between, np.nan)), free
    rounding = (0.5 / m.episodes) ** 2 / max(m.counts)  # half an episode of each run
    variance = between + (2 * m.interaction / m.episodes)[..., None]
    if not m.df_pool:
        return np.sqrt(np.maximum(variance, rounding)), free
    harmonic = float(np.mean(1 / np.array(m.counts)))
    plus, minus = 2 * m.pool / m.episodes, 2 * harmonic * m.residual / m.episodes
    below = between**2 / free + (plus**2 / m.df_pool + minus**2 / max(1.0, m.df_residual))[..., None]
    df = np.where((m.interaction > 0)[..., None], variance**2 / np.maximum(below, 1e-300), free)
    return np.sqrt(np.maximum(variance, rounding)), np.maximum(1.0, df)


def _at(df: Array, shares: tuple[float, ...], alpha: float, two_sided: bool = True) -> Array:
    known = np.nan_to_num(np.maximum(df, 1.0), nan=1.0)
    return np.where(df > 0, critical_at(known, shares, alpha, two_sided), np.nan)


def _p(t: Array, df: Array, apart: Array, shares: tuple[float, ...]) -> Array:
    """Adjusted p of each comparison of one study: Dunnett's, or Bonferroni's where each used its own arms."""
    from scipy.stats import t as student

    alone = np.minimum(1.0, len(t) * 2 * student.sf(t, df))
    known = np.isfinite(t) & (df > 0)
    pairs = zip(t, df, known, strict=True)
    together = [dunnett(float(x), float(free), shares) if ok else np.nan for x, free, ok in pairs]
    return alone if len(t) == 1 else np.where(apart, alone, together)
