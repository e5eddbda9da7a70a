"""What stands beside the rule: intervals of one arm, tests of two, effects of a grid. statsmodels and scipy compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
ARRANGEMENTS = 20_000  # of runs: up to here all are tried, beyond as many are drawn


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


def mcnemar(arm: Array, baseline: Array) -> tuple[int, int, float]:
    """Pairs that only the arm, and that only the baseline, succeeded in, and the exact p of McNemar's test (1947), by
    statsmodels.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    both, only, only_base, neither = _pairs(arm, baseline)
    return only, only_base, float(test([[both, only], [only_base, neither]], exact=True).pvalue)


def _pairs(arm: Array, baseline: Array) -> tuple[int, int, int, int]:
    """Episodes that both succeeded in, the arm alone, the baseline alone, and neither."""
    arm, baseline = np.asarray(arm, dtype=bool), np.asarray(baseline, dtype=bool)
    split = (arm & baseline, arm & ~baseline, ~arm & baseline, ~arm & ~baseline)
    both, only, only_base, neither = (int(part.sum()) for part in split)
    return both, only, only_base, neither


def paired_interval(arm: Array, baseline: Array, confidence: float = 0.95) -> tuple[float, float, float]:
    """Difference of two success rates on the same episodes and its interval, by Wilson's of both and their correlation
    (Newcombe 1998, Statistics in Medicine 17:2635, method 10): it has a width where all succeed, and where all fail.
    """
    both, only, only_base, neither = _pairs(arm, baseline)
    n = both + only + only_base + neither
    rates = (both + only) / n, (both + only_base) / n
    (low, high), (low_base, high_base) = (wilson(won, n, confidence) for won in (both + only, both + only_base))
    shared = both * neither - only * only_base
    margins = (both + only) * (only_base + neither) * (both + only_base) * (only + neither)
    phi = (max(shared - n / 2, 0.0) if shared > 0 else shared) / margins**0.5 if margins else 0.0
    below, above, below_base, above_base = rates[0] - low, high - rates[0], rates[1] - low_base, high_base - rates[1]
    down = below**2 - 2 * phi * below * above_base + above_base**2
    up = above**2 - 2 * phi * above * below_base + below_base**2
    middle = rates[0] - rates[1]
    return middle, middle - down**0.5, middle + up**0.5


def permutation(arm: Sequence[float], baseline: Sequence[float], paired: bool = False) -> float:
    """Two-sided p of a difference of means under every arrangement of the runs (Fisher 1935), by scipy; paired: of the
    signs. Never below two over the number of arrangements: 0.1 for three against three.
    """
    from scipy.stats import permutation_test

    def difference(x: Array, y: Array, axis: int = -1) -> Array:
        return np.asarray(np.mean(x, axis=axis) - np.mean(y, axis=axis))

    if min(len(arm), len(baseline)) < 2 or (paired and len(arm) != len(baseline)):
        return float("nan")
    found = permutation_test(
        (np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)),
        difference,
        permutation_type="samples" if paired else "independent",
        vectorized=True,
        n_resamples=ARRANGEMENTS,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def factorial(rows: Sequence[Mapping[str, Any]], factors: Sequence[str]) -> list[dict[str, Any]]:
    """Analysis of variance (type II) of `value` in the rows: main effects and two-way interactions of the factors;
    `block` in the rows: what runs of one block share.

    Returns a row per effect: effect, df, F, p, eta_squared (its share of its own and the error's variation, "partial").
    Empty where the design leaves no degrees of freedom for the error.
    """
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    names = {factor: f"x{number}" for number, factor in enumerate(factors)}
    kept = ({"value": row["value"], "block": str(row.get("block"))} for row in rows)
    frame = pd.DataFrame([one | {names[f]: str(row[f]) for f in factors} for one, row in zip(kept, rows, strict=True)])
    terms = [f"C({names[f]})" for f in factors]
    pairs = [(a, b) for i, a in enumerate(factors) for b in factors[i + 1 :]]
    block = " + C(block)" if frame["block"].nunique() > 1 else ""
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
