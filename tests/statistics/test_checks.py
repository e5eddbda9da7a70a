"""What stands beside the rule, against worked examples, or the library's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from provla.statistics import checks as s


def test_wilson() -> None:
    assert s.wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)  # z² / (n + z²)
    for successes, episodes in ((7, 20), (99, 100)):
        expected = stats.binomtest(successes, episodes).proportion_ci(method="wilson")
        assert s.wilson(successes, episodes) == pytest.approx((expected.low, expected.high))
    assert s.wilson(0, 0) == (0, 1)


def test_mean_interval_is_students() -> None:
    values = [0.65, 0.6, 0.67]
    mean, low, high = s.mean_interval(values)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 2, mean, stats.sem(values)))
    # By hand: t(0.975, 2) = 4.303, standard error = 0.03606 / √3.
    assert high - mean == pytest.approx(4.303 * 0.03606 / math.sqrt(3), abs=1e-4)
    assert math.isnan(s.mean_interval([0.5])[1])


def test_mcnemar_is_the_exact_binomial_of_the_discordant_pairs() -> None:
    arm = np.array([1] * 40 + [1] * 12 + [0] * 2 + [0] * 46)
    baseline = np.array([1] * 40 + [0] * 12 + [1] * 2 + [0] * 46)
    wins, losses, p = s.mcnemar(arm, baseline)
    assert (wins, losses) == (12, 2)
    assert p == pytest.approx(stats.binomtest(2, 14, 0.5).pvalue)
    assert p == pytest.approx(2 * (1 + 14 + 91) / 2**14)  # by hand
    assert s.mcnemar(arm, arm) == (0, 0, 1.0)


def test_permutation_tries_every_arrangement() -> None:
    assert s.permutation([3, 4, 5], [0, 1, 2]) == pytest.approx(2 / 20)  # of 6 over 3, two are as far apart
    assert s.permutation([0, 1, 2], [0, 1, 2]) == 1
    assert s.permutation([1, 2, 3, 4], [0, 0, 0, 0], paired=True) == pytest.approx(2 / 16)
    assert math.isnan(s.permutation([1.0], [2.0]))
    # Beyond the limit, arrangements are drawn; the answer is scipy's own t, nearly.
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.4, 1, 30), rng.normal(0, 1, 30)
    assert s.permutation(list(a), list(b)) == pytest.approx(stats.ttest_ind(a, b).pvalue, abs=0.01)


def test_factorial_of_a_balanced_grid_by_hand() -> None:
    # y = 10 a + 2 b + seed, plus a residual orthogonal to both main effects, the interaction and the seeds.
    residual = {
        ("0", "0", 0): 1,
        ("0", "0", 1): -1,
        ("0", "1", 0): -1,
        ("0", "1", 1): 1,
        ("1", "0", 0): 1,
        ("1", "0", 1): -1,
        ("1", "1", 0): -1,
        ("1", "1", 1): 1,
    }
    rows = [
        {"a": a, "b": b, "block": t, "value": 10 * int(a) + 2 * int(b) + t + r} for (a, b, t), r in residual.items()
    ]
    effects = {row["effect"]: row for row in s.factorial(rows, ["a", "b"])}
    # Sums of squares: a 8 · 5² = 200, b 8 · 1² = 8, a × b 0; the residual 8 over 8 − 5 = 3 degrees of freedom.
    assert effects["a"]["F"] == pytest.approx(200 / (8 / 3))
    assert effects["b"]["F"] == pytest.approx(8 / (8 / 3))
    assert effects["a × b"]["F"] == pytest.approx(0, abs=1e-9)
    assert effects["a"]["p"] == pytest.approx(stats.f.sf(75, 1, 3))
    assert effects["a"]["eta_squared"] == pytest.approx(200 / 208)
    # No degrees of freedom for the error.
    assert s.factorial([row for row in rows if row["block"] == 0], ["a", "b"]) == []


def test_rank_correlation() -> None:
    assert s.rank_correlation([1, 2, 3, 4], [10, 8, 7, 1]) == pytest.approx(-1)
    # 1 − 6 Σd² / (n (n² − 1))
    assert s.rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert math.isnan(s.rank_correlation([1, 2], [1, 2]))
