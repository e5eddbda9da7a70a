"""Every number of a verdict against a worked example, or the library's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import NormalIndPower

from provla import statistics as s


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


def test_paired_bootstrap_with_one_seed_is_scipys() -> None:
    rng = np.random.default_rng(1)
    difference = rng.choice([-1.0, 0.0, 1.0], (1, 200), p=[0.1, 0.6, 0.3])
    low, high, error = s.paired_bootstrap(difference, ["one"] * 200)
    expected = stats.bootstrap((difference[0],), np.mean, method="percentile", n_resamples=10_000, rng=2)
    assert error == pytest.approx(expected.standard_error, rel=0.05)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.01)


def test_paired_bootstrap_resamples_both_levels_and_tasks_apart() -> None:
    rng = np.random.default_rng(0)
    # Seeds that differ by themselves: episodes alone would see no spread at all.
    seeds_only = np.repeat([[-0.3], [0.0], [0.3]], 100, 1)
    assert s.paired_bootstrap(seeds_only, ["task"] * 100)[2] == pytest.approx(
        np.std([-0.3, 0, 0.3]) / math.sqrt(3), rel=0.05
    )
    # Episodes that differ by themselves: seeds alone would see none.
    episodes_only = np.repeat(rng.standard_normal((1, 100)), 3, 0)
    assert s.paired_bootstrap(episodes_only, ["task"] * 100)[2] == pytest.approx(episodes_only[0].std() / 10, rel=0.05)
    # Tasks that differ, each all of one kind: no resample leaves the shares.
    tasks = np.repeat([[1.0] * 50 + [0.0] * 50], 3, 0)
    assert s.paired_bootstrap(tasks, ["a"] * 50 + ["b"] * 50) == pytest.approx((0.5, 0.5, 0.0), abs=1e-12)


def test_mcnemar_is_the_exact_binomial_of_the_discordant_pairs() -> None:
    arm = np.array([1] * 40 + [1] * 12 + [0] * 2 + [0] * 46)
    baseline = np.array([1] * 40 + [0] * 12 + [1] * 2 + [0] * 46)
    wins, losses, p = s.mcnemar(arm, baseline)
    assert (wins, losses) == (12, 2)
    assert p == pytest.approx(stats.binomtest(2, 14, 0.5).pvalue)
    assert p == pytest.approx(2 * (1 + 14 + 91) / 2**14)  # by hand
    assert s.mcnemar(arm, arm) == (0, 0, 1.0)


def test_paired_t() -> None:
    a, b = [0.10, 0.12, 0.09], [0.13, 0.14, 0.10]
    difference, low, high, p = s.paired_t(a, b)
    found = stats.ttest_rel(a, b)
    assert (difference, p) == pytest.approx((-0.02, found.pvalue))
    half = 4.303 * np.std([-0.03, -0.02, -0.01], ddof=1) / math.sqrt(3)
    assert (low, high) == pytest.approx((-0.02 - half, -0.02 + half), abs=1e-4)
    assert math.isnan(s.paired_t([1.0], [2.0])[3])


def test_holm_worked_example() -> None:
    # ×3, ×1, ×2, ×4, then never below the one before.
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with_gap = s.holm([0.01, math.nan, 0.04])
    assert with_gap[0] == pytest.approx(0.02)
    assert math.isnan(with_gap[1])
    assert s.holm([]) == []


def test_spread_of_seeds_is_what_chance_does_not_explain() -> None:
    rates = [0.4, 0.5, 0.6]  # variance 0.01, of which 0.5 · 0.5 / 100 = 0.0025 is chance
    assert s.spread_of_seeds(rates, 100) == pytest.approx(math.sqrt(0.0075))
    assert s.spread_of_seeds([0.5, 0.5], 100) == 0


def test_the_smallest_difference_is_found_four_times_in_five() -> None:
    size = s.smallest_difference(3, 100)
    assert size == pytest.approx((1.95996 + 0.84162) * math.sqrt(2 * 0.25 / 300), rel=1e-4)
    # statsmodels, in standard deviations.
    assert size == pytest.approx(0.5 * NormalIndPower().solve_power(nobs1=300, alpha=0.05, power=0.8), rel=1e-4)
    assert math.ceil(100 * size) == 12  # as the plan says: 3 seeds × 100 episodes resolve 12 points
    rng = np.random.default_rng(0)
    arm, baseline = (rng.binomial(300, rate, 20_000) / 300 for rate in (0.5 + size / 2, 0.5 - size / 2))
    found = np.abs(arm - baseline) > 1.95996 * math.sqrt(2 * 0.25 / 300)
    assert found.mean() == pytest.approx(0.8, abs=0.02)
    assert s.smallest_difference(3, 100, comparisons=6) > size
    assert s.smallest_difference(3, 100, seed_spread=0.05) > size


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
    rows = [{"a": a, "b": b, "seed": t, "value": 10 * int(a) + 2 * int(b) + t + r} for (a, b, t), r in residual.items()]
    effects = {row["effect"]: row for row in s.factorial(rows, ["a", "b"])}
    # Sums of squares: a 8 · 5² = 200, b 8 · 1² = 8, a × b 0; the residual 8 over 8 − 5 = 3 degrees of freedom.
    assert effects["a"]["F"] == pytest.approx(200 / (8 / 3))
    assert effects["b"]["F"] == pytest.approx(8 / (8 / 3))
    assert effects["a × b"]["F"] == pytest.approx(0, abs=1e-9)
    assert effects["a"]["p"] == pytest.approx(stats.f.sf(75, 1, 3))
    assert effects["a"]["eta_squared"] == pytest.approx(200 / 208)
    # No degrees of freedom for the error.
    assert s.factorial([row for row in rows if row["seed"] == 0], ["a", "b"]) == []


def test_rank_correlation() -> None:
    assert s.rank_correlation([1, 2, 3, 4], [10, 8, 7, 1]) == pytest.approx(-1)
    # 1 − 6 Σd² / (n (n² − 1))
    assert s.rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert math.isnan(s.rank_correlation([1, 2], [1, 2]))
