"""Statistics of a study: intervals, paired tests, corrections, power. statsmodels and scipy compute; this says what of.

Legend: S seeds, E episodes; outcomes (S,E) are 0 or 1, and row s of two arms is the same seed, column e the same
episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
RESAMPLES = 10_000


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate (Wilson 1927), by statsmodels; (0, 1) where nothing was tried."""
    from statsmodels.stats.proportion import proportion_confint

    if episodes == 0:
        return 0.0, 1.0
    low, high = proportion_confint(successes, episodes, alpha=1 - confidence, method="wilson")
    return float(low), float(high)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean over seeds and its interval by Student's t; (mean, nan, nan) for a single value."""
    from statsmodels.stats.weightstats import DescrStatsW

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    low, high = DescrStatsW(np.asarray(values, dtype=float)).tconfint_mean(alpha=1 - confidence)
    return mean, float(low), float(high)


def paired_bootstrap(
    difference: Array, strata: Sequence[Any], confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Percentile interval of a mean paired difference (S,E), and its standard error: seeds and episodes are both
    resampled.

    Every seed met the same episodes, so the two are crossed: a resample draws S rows, and within each stratum (task)
    its columns, with replacement. strata: (E,). With one seed, only episodes are resampled. Returns (low, high,
    standard error).
    """
    rng = np.random.default_rng(seed)
    seeds, episodes = difference.shape
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds  # (R, S)
    columns = np.zeros((RESAMPLES, episodes))
    names = np.asarray([str(s) for s in strata])
    for name in np.unique(names):
        here = np.flatnonzero(names == name)
        columns[:, here] = rng.multinomial(len(here), np.full(len(here), 1 / len(here)), RESAMPLES) / episodes
    means = ((rows @ difference) * columns).sum(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high), float(means.std(ddof=1))


def mcnemar(arm: Array, baseline: Array) -> tuple[int, int, float]:
    """Pairs that only the arm, and that only the baseline, succeeded in, and the exact p of McNemar's test (1947), by
    statsmodels.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    arm, baseline = np.asarray(arm, dtype=bool), np.asarray(baseline, dtype=bool)
    table = [
        [int((arm & baseline).sum()), int((arm & ~baseline).sum())],
        [int((~arm & baseline).sum()), int((~arm & ~baseline).sum())],
    ]
    return table[0][1], table[1][0], float(test(table, exact=True).pvalue)


def paired_t(arm: Sequence[float], baseline: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean paired difference over seeds, its 95 % interval by Student's t, and p (scipy's `ttest_rel`); nan with one
    seed.
    """
    from scipy.stats import ttest_rel

    difference = float(np.mean(np.subtract(arm, baseline)))
    if len(arm) < 2 or np.ptp(np.subtract(arm, baseline)) == 0:
        return difference, float("nan"), float("nan"), float("nan")
    found: Any = ttest_rel(arm, baseline)
    interval = found.confidence_interval(0.95)
    return difference, float(interval.low), float(interval.high), float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p (1979), by statsmodels; nan stays nan and is not counted."""
    from statsmodels.stats.multitest import multipletests

    found = np.asarray(p_values, dtype=float)
    known = ~np.isnan(found)
    if known.any():
        found[known] = multipletests(found[known], method="holm")[1]
    return [float(p) for p in found]


def spread_of_seeds(rates: Sequence[float], episodes: int) -> float:
    """Standard deviation of success rates between seeds beyond what `episodes` of chance explain (method of moments, at
    least 0).
    """
    if len(rates) < 2:
        return 0.0
    rate = float(np.mean(rates))
    return float(np.sqrt(max(0.0, float(np.var(rates, ddof=1)) - rate * (1 - rate) / episodes)))


def smallest_difference(
    seeds: int,
    episodes: int,
    rate: float = 0.5,
    seed_spread: float = 0.0,
    comparisons: int = 1,
    power: float = 0.8,
    alpha: float = 0.05,
) -> float:
    """The smallest true difference of success rates that a paired design finds with the given power (normal
    approximation).

    Of the difference's variance, outcomes give 2 p (1 − p) / (S E), as if the arms' outcomes on one episode were
    independent (pairing can only help), and seeds 2 σ² / S. comparisons: the first of as many tests under Holm.
    """
    variance = 2 * rate * (1 - rate) / (seeds * episodes) + 2 * seed_spread**2 / seeds
    return detectable(float(np.sqrt(variance)), comparisons, power, alpha)


def detectable(standard_error: float, comparisons: int = 1, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true difference that a two-sided z test of this standard error finds with the given power."""
    from scipy.stats import norm

    return float(norm.ppf(1 - alpha / comparisons / 2) + norm.ppf(power)) * standard_error


def factorial(rows: Sequence[Mapping[str, Any]], factors: Sequence[str]) -> list[dict[str, Any]]:
    """Analysis of variance (type II) of `value` in the rows: main effects and two-way interactions of the factors,
    seeds as blocks.

    Returns a row per effect: effect, df, F, p, eta_squared (its share of its own and the error's variation, "partial").
    Empty where the design leaves no degrees of freedom for the error.
    """
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    names = {factor: f"x{number}" for number, factor in enumerate(factors)}
    frame = pd.DataFrame(
        [{"value": row["value"], "seed": str(row["seed"]), **{names[f]: str(row[f]) for f in factors}} for row in rows]
    )
    terms = [f"C({names[f]})" for f in factors]
    pairs = [(a, b) for i, a in enumerate(factors) for b in factors[i + 1 :]]
    block = " + C(seed)" if frame["seed"].nunique() > 1 else ""
    model = ols(
        f"value ~ {' + '.join([*terms, *(f'C({names[a]}):C({names[b]})' for a, b in pairs)])}{block}", frame
    ).fit()
    if model.df_resid < 1:
        return []
    table = anova_lm(model, typ=2)
    shown = {f"C({names[f]})": f for f in factors} | {f"C({names[a]}):C({names[b]})": f"{a} × {b}" for a, b in pairs}
    error = float(table.loc["Residual", "sum_sq"])
    return [
        {
            "effect": label,
            "df": int(table.loc[term, "df"]),
            "F": float(table.loc[term, "F"]),
            "p": float(table.loc[term, "PR(>F)"]),
            "eta_squared": float(table.loc[term, "sum_sq"]) / (float(table.loc[term, "sum_sq"]) + error or 1.0),
        }
        for term, label in shown.items()
    ]


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's, by scipy; nan where there are fewer than three pairs or one side does not vary."""
    from scipy.stats import spearmanr

    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(spearmanr(x, y)[0])
