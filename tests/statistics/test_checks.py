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


def outcomes(both: int, only: int, only_base: int, neither: int) -> list[list[int]]:
    pairs = [(1, 1)] * both + [(1, 0)] * only + [(0, 1)] * only_base + [(0, 0)] * neither
    return [list(column) for column in zip(*pairs, strict=True)]


def test_a_paired_interval_is_newcombes_and_has_a_width_at_the_ends() -> None:
    # A worked example of the paper (table II, method 10).
    assert s.paired_interval(*outcomes(36, 12, 2, 0)) == pytest.approx((0.2, 0.0569, 0.3404), abs=1e-4)
    for all_alike in (outcomes(20, 0, 0, 0), outcomes(0, 0, 0, 20)):
        middle, low, high = s.paired_interval(*all_alike)
        assert (middle, low) == (0, -high)
        assert high == pytest.approx(1 - s.wilson(20, 20)[0])
    middle, low, high = s.paired_interval(*outcomes(0, 0, 20, 0))  # each episode was lost
    assert (middle, low) == (-1, -1)
    assert -0.8 < high < -0.7
    ours, swapped = s.paired_interval(*outcomes(70, 20, 5, 25)), s.paired_interval(*outcomes(70, 5, 20, 25))
    assert ours == pytest.approx((-swapped[0], -swapped[2], -swapped[1]))


@pytest.mark.parametrize(("rates", "shared"), [((0.95, 0.8), 0.8), ((0.5, 0.4), 0.7), ((0.95, 0.5), 0.3)])
def test_a_paired_interval_covers_the_difference_in_95_of_100(rates: tuple[float, float], shared: float) -> None:
    drawn = np.random.default_rng(0).multivariate_normal([0, 0], [[1, shared], [shared, 1]], (1000, 120))
    found = [s.paired_interval(*(each < stats.norm.ppf(rates)).T) for each in drawn]
    hits = np.mean([low <= rates[0] - rates[1] <= high for _, low, high in found])
    assert 0.935 < hits < 0.985


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
