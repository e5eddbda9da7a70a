"""The rule, its parts against other people's implementations, and what it keeps and sees in made-up studies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from provla.statistics.family import critical, critical_at, dunnett
from provla.statistics.latent import World, share_of, studies
from provla.statistics.moments import moments_of_episodes, moments_of_runs
from provla.statistics.power import Components, Design, best_episodes, power, resolvable
from provla.statistics.rule import compare, spreads_differ
from provla.statistics.trial import try_out

TASKS = list(np.repeat(["pull", "push"], 20))


def made(
    arms: int = 3, trainings: int = 4, seed: int = 0, number: int = 1, difference: float = 0.0, **world: Any
) -> list[NDArray[Any]]:
    rates = np.tile([0.4, 0.6], (arms, 1))
    rates[1:] += difference
    spread = np.full(arms, world.pop("spread", 0.08))
    return next(studies(World(rates, spread, **world), [trainings] * arms, [20, 20], number, seed))


# Components of variance.


def test_components_are_those_of_a_mixed_model() -> None:
    """statsmodels' REML, which equals the analysis of variance on balanced data where no component is negative."""
    import pandas as pd
    import statsmodels.formula.api as smf

    y = [one[0] for one in made(arms=2, trainings=5, seed=5, spread=0.15, interaction=0.2)]
    m = moments_of_episodes(y, TASKS)
    assert m.interaction > 0
    assert m.training > 0
    rows = [
        {"y": y[a][s, e], "arm": a, "task": TASKS[e], "episode": e, "training": f"{a}/{s}", "cell": f"{a}/{e}"}
        for a in range(2)
        for s in range(5)
        for e in range(40)
    ]
    frame = pd.DataFrame(rows).assign(whole=1)
    parts = {"episode": "0 + C(episode)", "training": "0 + C(training)", "cell": "0 + C(cell)"}
    fit = smf.mixedlm("y ~ C(arm) * C(task)", frame, groups="whole", vc_formula=parts).fit(reml=True)
    found = dict(zip(fit.model.exog_vc.names, fit.vcomp, strict=True))
    # The training's component is over both tasks here, as the run's value is.
    assert found["cell"] == pytest.approx(float(m.interaction), rel=0.05)
    assert fit.scale == pytest.approx(float(m.residual), rel=0.05)
    assert found["training"] == pytest.approx(float(m.training), rel=0.15)


def test_components_of_made_up_studies_come_out_as_asked() -> None:
    world = World(np.full((3, 2), 0.5), np.full(3, 0.08), difficulty=0.25, interaction=0.1)
    found = [moments_of_episodes(y, TASKS) for y in studies(world, [4] * 3, [20, 20], 4000)]
    means = {key: np.concatenate([getattr(m, key) for m in found]).mean() for key in ("runs", "pool", "residual")}
    assert means["pool"] - means["residual"] / 4 == pytest.approx(0.1**2, rel=0.05)
    assert means["runs"] - means["residual"] / 40 == pytest.approx(0.08**2, rel=0.05)
    assert sum((0.25**2, 0.1**2, 0.08**2, means["residual"])) == pytest.approx(0.25, rel=0.02)  # p (1 − p), in all


def test_a_block_leaves_the_comparison() -> None:
    rng = np.random.default_rng(0)
    block, own = 5 * rng.standard_normal(6), rng.standard_normal((2, 6))
    values = [block + own[0], block + own[1] + 1]
    found = compare(moments_of_runs(values, blocked=True), 0)
    paired = stats.ttest_rel(values[1], values[0])
    assert found.p[0] == pytest.approx(paired.pvalue)
    assert (found.low[0], found.high[0]) == pytest.approx(tuple(paired.confidence_interval()), rel=1e-3)


def test_the_latent_correlation_gives_the_covariance() -> None:
    for rate, variance in ((0.5, 0.01), (0.9, 0.02), (0.2, 0.05)):
        z, rho = stats.norm.ppf(rate), share_of(variance, rate)
        both = stats.multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf([z, z])
        assert both - rate**2 == pytest.approx(variance, abs=1e-5)
    assert share_of(0.0, 0.5) == 0


# Several comparisons.


def test_dunnett_is_the_published_table_s_and_scipys() -> None:
    # Dunnett 1964, two-sided 5 %: (comparisons, degrees of freedom) → critical value.
    table = {(1, 10): 2.23, (2, 10): 2.57, (3, 10): 2.76, (6, 10): 3.07, (3, 20): 2.54, (9, 20): 2.95, (2, 5): 3.03}
    for (k, df), value in table.items():
        assert critical(float(df), (0.5,) * k) == pytest.approx(value, abs=0.006)
    assert critical(20.0, (0.5, 0.5), two_sided=False) == pytest.approx(2.03, abs=0.006)
    rng = np.random.default_rng(3)
    samples = [rng.normal(size=n) for n in (6, 4, 5, 7)]
    theirs = stats.dunnett(*samples[1:], control=samples[0], rng=np.random.default_rng(0))
    shares = tuple((1 / 6) / (1 / 6 + 1 / n) for n in (4, 5, 7))
    ours = [dunnett(abs(float(t)), 18.0, shares) for t in theirs.statistic]
    assert ours == pytest.approx(theirs.pvalue, abs=2e-3)


def test_the_line_between_degrees_of_freedom_is_near_enough() -> None:
    df = np.array([2.3, 3.7, 9.4, 25.0, 700.0])
    exact = [critical(float(one), (0.5,) * 6) for one in df]
    assert critical_at(df, (0.5,) * 6) == pytest.approx(exact, rel=0.02)


# The rule.


def test_two_arms_are_welchs() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=5), rng.normal(0.5, 1, size=7)
    found, welch = compare(moments_of_runs([a, b]), 0), stats.ttest_ind(b, a, equal_var=False)
    # Of two arms with unequal numbers the pooled half weighs otherwise; with equal ones it does not.
    even = compare(moments_of_runs([a, b[:5]]), 0)
    assert even.p[0] == pytest.approx(stats.ttest_ind(b[:5], a, equal_var=False).pvalue)
    assert found.p[0] == pytest.approx(welch.pvalue, rel=0.2)


def test_equal_spread_is_bartletts() -> None:
    rng = np.random.default_rng(2)
    values = [rng.normal(0, width, size=n) for width, n in ((1, 5), (3, 6), (0.5, 4))]
    assert spreads_differ(moments_of_runs(values)) == pytest.approx(stats.bartlett(*values).pvalue)


def test_runs_that_are_all_alike_are_no_certainty() -> None:
    """At a ceiling nothing varies: half an episode of each run is what cannot be told apart."""
    full, less = np.ones((3, 40), np.uint8), np.ones((3, 40), np.uint8)
    found = compare(moments_of_episodes([full, less, less], TASKS), 0)
    assert found.error == pytest.approx(0.5 / 40 / math.sqrt(3))
    assert not found.clear().any()
    # Of runs whose episodes are not known, equal values give no word, however far apart.
    alike = compare(moments_of_runs([np.full(3, 0.5), np.full(3, 0.9)]), 0)
    assert not alike.clear().any()
    assert math.isnan(alike.low[0])


def test_other_episodes_widen_the_interval() -> None:
    """What other episodes would change widens the interval, as it must where arms differ by episode."""
    y = [one[0] for one in made(trainings=6, interaction=0.3, seed=3)]
    m = moments_of_episodes(y, TASKS)
    runs = moments_of_runs([one.mean(-1) for one in y])
    assert (compare(m, 0).error > compare(runs, 0).error).all()


@pytest.mark.parametrize(
    ("arms", "trainings", "spread", "rate"),
    [(2, 3, 0.05, 0.5), (7, 3, 0.0, 0.5), (7, 3, 0.1, 0.5), (3, 5, 0.05, 0.9), (7, 8, 0.08, 0.3)],
)
def test_words_are_rare_where_nothing_differs(arms: int, trainings: int, spread: float, rate: float) -> None:
    """The quick form of `benchmarks/verdict.py`: 1,500 studies, so 6 % is asked with two standard errors of room."""
    world = World(np.full((arms, 2), rate), np.full(arms, spread))
    false, covered = [], []
    for y in studies(world, [trainings] * arms, [20, 20], 1500, seed=11):
        found = compare(moments_of_episodes(y, TASKS), 0)
        false.append(found.clear().any(-1))
        covered.append(((found.low <= 0) & (found.high >= 0)).all(-1))
    assert np.concatenate(false).mean() < 0.06 + 2 * math.sqrt(0.06 * 0.94 / 1500)
    assert np.concatenate(covered).mean() > 0.93


def test_a_pooled_t_alone_would_err_where_the_baseline_varies_more() -> None:
    """Why a comparison's own two arms count half: seven arms, the baseline's trainings twice as far apart."""
    rng = np.random.default_rng(0)
    widths = [2.0] + [1.0] * 6
    values = [width * rng.standard_normal((8000, 4)) for width in widths]
    m = moments_of_runs(values)
    ours = compare(m, 0).clear().any(-1).mean()
    t = np.abs(m.means[:, 1:] - m.means[:, :1]) / np.sqrt(m.runs / 2)[:, None]
    pooled = (t > critical(21.0, (0.5,) * 6)).any(-1).mean()
    assert pooled > 0.11
    assert ours < 0.08


# Power.


@pytest.mark.parametrize(("arms", "trainings"), [(2, 3), (3, 5), (7, 3)])
def test_what_is_resolvable_is_seen_in_four_of_five_studies(arms: int, trainings: int) -> None:
    components = Components(0.06**2, 0.25 - 0.2**2 - 0.06**2)
    design = Design((trainings,) * arms, 40)
    size = resolvable(components, design)
    assert power(size, components, design) == pytest.approx(0.8, abs=0.005)
    world = World(np.full((arms, 2), 0.5 - size / 2), np.full(arms, 0.06))
    world.rates[1:] += size
    seen = [
        compare(moments_of_episodes(y, TASKS), 0).clear().mean(-1)
        for y in studies(world, [trainings] * arms, [20, 20], 1500, seed=4)
    ]
    assert 0.75 < np.concatenate(seen).mean() < 0.85


def test_two_trainings_resolve_nothing() -> None:
    assert math.isnan(resolvable(Components(0.0025, 0.25), Design((2, 3), 100)))
    assert math.isnan(resolvable(Components(0.0025, 0.25), Design((3, 3, 2), 100, arm=2)))


def test_a_budget_s_best_split() -> None:
    # Cost C_t + E C_e, variance σ_u² + σ_ε² / E: their product is least at E* = √(C_t σ_ε² / (C_e σ_u²)).
    components = Components(0.04**2, 0.2)
    best = best_episodes(components, 600.0, 2.0)
    assert best == pytest.approx(math.sqrt(300 * 0.2 / 0.0016))
    product = {e: (600 + 2 * e) * components.of_run(e) for e in range(10, 1000)}
    assert min(product, key=lambda e: product[e]) == pytest.approx(best, abs=1)
    assert math.isinf(best_episodes(Components(0.0, 0.2), 600.0, 2.0))


def test_a_report_s_own_trial() -> None:
    y = [one[0] for one in made(trainings=5, seed=8)]
    m = moments_of_episodes(y, TASKS)
    found = try_out(m, 0, 0.2, np.array([0.4, 0.6]), TASKS)
    assert found.false < 0.07
    assert 0.93 < found.covered < 0.99
    assert found.equivalent < 0.07
    # It sees what the formula says of a difference of that size.
    assert found.seen == pytest.approx(power(0.2, Components.of(m), Design(m.counts, 40)), abs=0.1)
    score = try_out(moments_of_runs([np.array([1.0, 2, 3, 2]), np.array([2.0, 2, 1, 3])]), 0, 5.0)
    assert score.seen > 0.9
