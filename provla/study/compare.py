"""Arms against the baseline: which runs belong together, and what the rule says of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from provla.core.files import fingerprint
from provla.statistics.checks import mcnemar, mean_interval, permutation
from provla.statistics.moments import Array, Moments, moments_of_episodes, moments_of_runs
from provla.statistics.power import Components, Design, resolvable
from provla.statistics.rule import ALPHA, ENOUGH, Differences, compare, spreads_differ
from provla.statistics.trial import try_out
from provla.study.findings import (
    BETTER,
    EQUIVALENT,
    UNKNOWN,
    UNRESOLVED,
    WORSE,
    Arm,
    Comparison,
    Family,
    Verdict,
    is_rate,
    outcomes_of,
)
from provla.study.study import Run, Study

Runs = Mapping[str, Sequence[Run]]


def compare_arms(verdict: Verdict, trial: bool = True) -> None:
    """Gives every arm its comparison, and the verdict its families. trial: whether the rule is tried on made-up studies
    of this one's components.
    """
    study, base = verdict.study, verdict.study.sweep.baseline
    done = {arm.name: counted(study, arm.name) for arm in verdict.arms}
    done = {name: runs for name, runs in done.items() if runs}
    if base not in done:
        return
    groups: dict[str, list[str]] = {}
    for name in done:
        if name != base:
            groups.setdefault(_shared(done[base], done[name]), []).append(name)
    total = sum(map(len, groups.values()))
    for shared, names in groups.items():
        rows = _rows({name: done[name] for name in [base, *names]}, shared)
        family = Family([base, *names], moments_of(study, rows, bool(shared)), shared, ALPHA * len(names) / total, 1.0)
        family.spread = float(spreads_differ(family.moments))
        verdict.families.append(family)
        _judge_family(verdict, family, rows, total)
        if trial and min(family.moments.counts) >= ENOUGH and math.isfinite(verdict.wanted):
            rates, tasks = _rates(study, rows[base])
            family.trial = try_out(family.moments, 0, verdict.wanted, rates, tasks)
    for arm in verdict.arms:
        _own_interval(verdict, arm)


def counted(study: Study, arm: str) -> list[Run]:
    """The runs of an arm that a verdict rests on."""
    return [run for run in study.of(arm) if run.status == "completed" and math.isfinite(run.value)]


def _shared(ours: Sequence[Run], theirs: Sequence[Run]) -> str:
    """What the runs of two arms have in common, one by one."""
    for what, keys in (("weights", _weights), ("demonstrations", _draws)):
        mine, other = keys(ours), keys(theirs)
        alike = set(mine) & set(other)
        single = len(set(mine)) == len(mine) and len(set(other)) == len(other)
        if single and len(alike) >= 2 and len(alike) == min(len(mine), len(other)):
            return what
    return ""


def _weights(runs: Sequence[Run]) -> list[str]:
    return [run.weights for run in runs]


def _draws(runs: Sequence[Run]) -> list[str]:
    """Which demonstrations each run learned from, where those of one arm differ: a draw of its own for each."""
    found = []
    for run in runs:
        try:
            node = json.loads((run.folder / "config.json").read_text())["dataset"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        found.append(fingerprint({key: value for key, value in node.items() if key != "data_dir"}))
    return found if len(set(found)) == len(found) > 1 else []


def _rows(runs: Runs, shared: str) -> Runs:
    """Each arm's runs; where they share something, only what all have, in one order."""
    if not shared:
        return runs
    keys = _weights if shared == "weights" else _draws
    tables = {name: dict(zip(keys(own), own, strict=True)) for name, own in runs.items()}
    order = [key for key in next(iter(tables.values())) if all(key in table for table in tables.values())]
    return {name: [table[key] for key in order] for name, table in tables.items()}


def moments_of(study: Study, rows: Runs, shared: bool = False) -> Moments:
    """Of the arms' runs: from single episodes where all met the same ones. shared: row by row they have something in
    common.
    """
    if study.crossed:
        found = [outcomes_of(study, runs) for runs in rows.values()]
        moments = moments_of_episodes([y for y, _ in found], [task for task, _ in found[0][1]], shared)
    else:
        moments = moments_of_runs([np.array([run.value for run in runs]) for runs in rows.values()], shared)
    if shared:
        return moments
    # Arms that share weights with one another, if not with the baseline, are no trainings of their own.
    own = {frozenset(_weights(runs)): len(runs) - 1 for runs in rows.values()}
    return replace(moments, df=min(moments.df, float(sum(own.values()))))


def _rates(study: Study, runs: Sequence[Run]) -> tuple[Array | None, list[str]]:
    """The baseline's rates on each task, in the order of their names, where results are zeros and ones."""
    if not (study.crossed and is_rate(study.metric)):
        return None, []
    outcomes, episodes = outcomes_of(study, runs)
    tasks = [task for task, _ in episodes]
    names = np.array(tasks)
    return np.array([outcomes[:, names == name].mean() for name in np.unique(names)]), tasks


def _judge_family(verdict: Verdict, family: Family, rows: Runs, total: int) -> None:
    found, m = compare(family.moments, 0, family.alpha), family.moments
    components = Components.of(m)
    for place, name in enumerate(family.arms[1:]):
        comparison = Comparison(
            seeds=[run.job.seed for run in rows[name]],
            difference=float(found.difference[place]),
            low=float(found.low[place]),
            high=float(found.high[place]),
            p=min(1.0, float(found.p[place]) * total / (len(family.arms) - 1)),
            error=float(found.error[place]),
            df=float(found.df[place]),
            reach=float(found.reach[place]),
            resolvable=resolvable(components, Design(m.counts, m.episodes, 0, place + 1, family.alpha)),
            shared=family.shared,
            own=bool(found.unequal),
        )
        _add_checks(verdict.study, comparison, rows[family.arms[0]], rows[name])
        comparison.word = _word(verdict, comparison, found, place, m.counts)
        next(arm for arm in verdict.arms if arm.name == name).comparison = comparison


def _word(verdict: Verdict, comparison: Comparison, found: Differences, place: int, counts: Sequence[int]) -> str:
    if not math.isfinite(comparison.difference):
        return UNKNOWN
    if min(counts[0], counts[place + 1]) < ENOUGH:  # what another training would give is not known
        return UNRESOLVED
    if bool(found.clear()[place]):
        return BETTER if (comparison.difference > 0) == verdict.higher_is_better else WORSE
    return EQUIVALENT if bool(found.equivalent(verdict.wanted)[place]) else UNRESOLVED


def _add_checks(study: Study, comparison: Comparison, theirs: Sequence[Run], mine: Sequence[Run]) -> None:
    values = [run.value for run in mine], [run.value for run in theirs]
    comparison.permutation = permutation(*values, paired=bool(comparison.shared))
    if not (study.crossed and is_rate(study.metric)):
        return
    others = {run.job.seed: run for run in theirs}
    pairs = [(run, others[run.job.seed]) for run in mine if run.job.seed in others]
    if pairs:
        ours, base = (outcomes_of(study, runs)[0] for runs in zip(*pairs, strict=True))
        comparison.wins, comparison.losses, comparison.mcnemar = mcnemar(ours, base)


def _own_interval(verdict: Verdict, arm: Arm) -> None:
    """An arm's own 95 % interval over trainings, on these episodes, with the variance of its family; by itself where
    what it shares with others, or their spreads, leave it alone.
    """
    from scipy.stats import t

    values = [run.value for run in counted(verdict.study, arm.name)]
    family = next((one for one in verdict.families if arm.name in one.arms and not one.shared), None)
    if family is None or family.spread < ALPHA:
        arm.low, arm.high = mean_interval(values)[1:] if values else (math.nan, math.nan)
    elif family.moments.df:
        half = float(t.isf(ALPHA / 2, family.moments.df)) * math.sqrt(float(family.moments.runs) / len(values))
        arm.low, arm.high = arm.mean - half, arm.mean + half
