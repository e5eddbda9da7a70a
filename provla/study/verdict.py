"""What a study found: per arm its means, its paired difference from the baseline, its costs, and one word.

Where the objective is a success rate, arms are paired on seeds and episodes; else on seeds. The word is

    better, worse        the interval of the paired difference excludes 0, Holm's p is below 0.05, and there are two
    seeds at least no difference found  neither, and the design would have seen a difference of the margin in four of
    five studies not resolvable       neither, and it would not have
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from provla.statistics import (
    detectable,
    factorial,
    holm,
    mcnemar,
    mean_interval,
    paired_bootstrap,
    paired_t,
)
from provla.study.findings import (
    ALPHA,
    BETTER,
    COSTS,
    NO_DIFFERENCE,
    NOT_RESOLVABLE,
    UNKNOWN,
    WORSE,
    Arm,
    Comparison,
    Rate,
    Verdict,
    is_rate,
    outcomes_of,
)
from provla.study.study import Episode, Run, Study, check_paired, missing_seeds
from provla.study.words import explain, reason_of


def judge(study: Study, margin: float) -> Verdict:
    """The verdict of a study, from what its folder holds. margin: a difference that would matter, as a rate, or as a
    share of the baseline's value where the objective is no rate. `ValueError` where runs met different episodes.
    """
    if not 0 < margin < 1:
        raise ValueError(
            f"margin={margin}: expected a difference between 0 and 1, such as 0.1 for ten points of success"
        )
    check_paired(study)
    verdict = Verdict(study, margin, [_arm(study, name) for name in study.sweep.arms])
    if study.sweep.kind == "grid":
        _compare(verdict)
        _factorial(verdict)
    _look_for_problems(verdict)
    explain(verdict)
    return verdict


def _arm(study: Study, name: str) -> Arm:
    runs = study.of(name)
    done = [run for run in runs if run.status == "completed"]
    values = [run.value for run in done if math.isfinite(run.value)]
    mean, low, high = mean_interval(values) if values else (math.nan,) * 3
    if is_rate(study.metric):
        low, high = (max(0.0, low), min(1.0, high)) if math.isfinite(low) else (low, high)
    outcomes: list[tuple[Episode, bool]] = [pair for run in done for pair in run.episodes.items()]
    tasks = {task: _rate([success for (t, _), success in outcomes if t == task]) for task in study.tasks}
    return Arm(
        name,
        [run.job.seed for run in done],
        mean,
        low,
        high,
        Counter(run.status for run in runs),
        _rate([s for _, s in outcomes]),
        tasks,
        _costs(done),
    )


def _rate(outcomes: Sequence[bool]) -> Rate:
    return Rate(sum(outcomes), len(outcomes))


def _costs(runs: Sequence[Run]) -> dict[str, float]:
    """Means over the runs of whatever they measured."""
    found: dict[str, float] = {}
    for key in COSTS:
        values = [
            value
            for run in runs
            if isinstance(value := ((run.result.parameters or {}) | run.result.as_json()).get(key), int | float)
        ]
        if values:
            found[key] = float(np.mean(values))
    return found


def _compare(verdict: Verdict) -> None:
    study = verdict.study
    baseline = {run.job.seed: run for run in study.of(study.sweep.baseline) if run.status == "completed"}
    for arm in verdict.arms:
        runs = {run.job.seed: run for run in study.of(arm.name) if run.status == "completed"}
        seeds = sorted(runs.keys() & baseline.keys())
        if arm.name == study.sweep.baseline or not seeds:
            continue
        mine, theirs = [runs[seed] for seed in seeds], [baseline[seed] for seed in seeds]
        arm.comparison = (
            _paired_episodes(study, seeds, mine, theirs) if study.simulated else _paired_seeds(seeds, mine, theirs)
        )
    found = [comparison for _, comparison in verdict.compared]
    for comparison, p in zip(found, holm([c.p for c in found]), strict=True):
        comparison.p_holm = p
        comparison.resolvable *= detectable(1.0, len(found)) / detectable(1.0)
        comparison.word = _word(verdict, comparison)


def _paired_episodes(study: Study, seeds: list[int], mine: Sequence[Run], theirs: Sequence[Run]) -> Comparison:
    arm, episodes = outcomes_of(study, mine)
    other, _ = outcomes_of(study, theirs)
    low, high, error = paired_bootstrap(arm - other, [task for task, _ in episodes])
    wins, losses, p = mcnemar(arm, other)
    error = max(error, 1 / arm.size)  # arms that never differed may still do so in one pair more
    return Comparison(seeds, float((arm - other).mean()), low, high, p, detectable(error), wins, losses)


def _paired_seeds(seeds: list[int], mine: Sequence[Run], theirs: Sequence[Run]) -> Comparison:
    a, b = [run.value for run in mine], [run.value for run in theirs]
    difference, low, high, p = paired_t(a, b)
    error = float(np.std(np.subtract(a, b), ddof=1) / math.sqrt(len(a))) if len(a) > 1 else math.nan
    return Comparison(seeds, difference, low, high, p, detectable(error))


def _word(verdict: Verdict, found: Comparison) -> str:
    if not math.isfinite(found.difference):
        return UNKNOWN
    if len(found.seeds) < 2:  # what another training would give is unknown
        return NOT_RESOLVABLE
    if found.p_holm < ALPHA and (found.low > 0 or found.high < 0):
        return BETTER if (found.difference > 0) == verdict.higher_is_better else WORSE
    scale = 1.0 if verdict.higher_is_better else abs(verdict.baseline.mean) if verdict.baseline else math.nan
    return NO_DIFFERENCE if found.resolvable <= verdict.margin * scale else NOT_RESOLVABLE


def axes_of(study: Study) -> dict[str, list[str]]:
    """The axes of a grid that vary, each with its values in the order they were asked."""
    keys = list(dict.fromkeys(key for job in study.sweep.jobs for key in job.axes if key != "seed"))
    values = {key: list(dict.fromkeys(job.axes[key] for job in study.sweep.jobs if key in job.axes)) for key in keys}
    return {key: found for key, found in values.items() if len(found) > 1}


def _factorial(verdict: Verdict) -> None:
    levels = axes_of(verdict.study)
    axes = list(levels)
    rows = [
        {"value": run.value, "seed": run.job.seed, **run.job.axes}
        for run in verdict.study.completed
        if math.isfinite(run.value)
    ]
    if len(axes) < 2 or any(key not in row for row in rows for key in axes):
        return
    cells = {tuple(row[key] for key in axes) for row in rows}
    wanted = set(itertools.product(*levels.values()))
    if {tuple(job.axes.get(key) for key in axes) for job in verdict.study.sweep.jobs} != wanted:
        return  # named arms that cross nothing
    if cells != wanted:
        verdict.notes.append(
            f"Main effects and interactions need every cell of the grid; {len(wanted - cells)} of {len(wanted)} have "
            "no completed run."
        )
        return
    verdict.effects = factorial(rows, axes)
    if not verdict.effects:
        verdict.notes.append(
            "Main effects and interactions need more runs than the grid has cells: give several seeds."
        )


def _look_for_problems(verdict: Verdict) -> None:
    study, add = verdict.study, verdict.problems.append
    for status in ("missing", "interrupted"):
        if found := [run for run in study.runs if run.status == status]:
            seeds = {
                arm: ", ".join(str(run.job.seed) for run in found if run.job.arm == arm)
                for arm in dict.fromkeys(run.job.arm for run in found)
            }
            what = "not started yet" if status == "missing" else "not at its end; the sweep's command goes on with it"
            add(f"{len(found)} {status} ({what}): {'; '.join(f'{arm} with seed {own}' for arm, own in seeds.items())}")
    for run in study.runs:
        if run.status in ("failed", "damaged"):
            add(f"{run.job.folder}: {run.status} ({reason_of(run)})")
        elif run.status == "completed" and not math.isfinite(run.value):
            add(f"{run.job.folder}: its {study.metric} is {run.value}; it counts nowhere")
    if study.sweep.kind == "grid":
        for arm, lacking in missing_seeds(study).items():
            if not any(run.status == "completed" for run in study.of(arm)):
                continue
            add(
                f"{arm} has no completed run with seed {', '.join(map(str, lacking))}, which other arms have; it is "
                "compared on the seeds that both have"
            )
        if not any(run.status == "completed" for run in study.of(study.sweep.baseline)):
            add(f"the baseline {study.sweep.baseline} has no completed run, so nothing is compared")
    if study.others:
        add(f"folders that this sweep did not ask for, and that count nowhere: {', '.join(study.others)}")
    commits = {str(run.result.made.get("commit")) for run in study.completed}
    if len(commits) > 1:
        add(f"the runs were made by {len(commits)} versions of the code: {', '.join(sorted(commits))}")
    machines = {machine for run in study.completed if (machine := _machine(run))}
    if len(machines) > 1:
        add(
            f"the runs were made on {len(machines)} kinds of machine: {'; '.join(sorted(machines))}; a seed's run is "
            "equal on one machine only, so a difference between arms may be one between machines"
        )


def _machine(run: Run) -> str:
    """What the machine of a run is, as far as it can change a result; empty where the run does not say."""
    found = run.result.made.get("machine")
    return ", ".join(f"{key} {value}" for key, value in sorted(found.items())) if isinstance(found, dict) else ""
