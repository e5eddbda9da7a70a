"""What a study found: per arm its mean, its difference from the baseline, its costs, and one word.

    better, worse   the simultaneous interval of the difference excludes 0
    equivalent      the difference lies within ± margin, by two one-sided tests
    unresolved      neither, or fewer than three trainings: this design cannot tell

over new trainings and new episodes of the same tasks; `statistics.rule` is the rule, docs/statistics.md its proof.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from provla.statistics.checks import factorial
from provla.statistics.rule import ALPHA
from provla.statistics.trial import TOO_MANY
from provla.study.compare import compare_arms, counted
from provla.study.findings import COSTS, Arm, Family, Rate, Verdict
from provla.study.study import Episode, Run, Study, check_paired, machine_of, missing_seeds
from provla.study.words import explain, reason_of


def judge(study: Study, margin: float, trial: bool = True) -> Verdict:
    """The verdict of a study, from what its folder holds. margin: a difference that would matter, as a rate, or as a
    share of the baseline's value where the objective is no rate. trial: whether the rule is tried on made-up studies of
    this one's components. `ValueError` where runs met different episodes.
    """
    if not 0 < margin < 1:
        raise ValueError(
            f"margin={margin}: expected a difference between 0 and 1, such as 0.1 for ten points of success"
        )
    check_paired(study)
    verdict = Verdict(study, margin, [_arm(study, name) for name in study.sweep.arms])
    if study.sweep.kind == "grid":
        compare_arms(verdict, trial)
        _factorial(verdict)
    _look_for_problems(verdict)
    explain(verdict)
    return verdict


def _arm(study: Study, name: str) -> Arm:
    done = [run for run in study.of(name) if run.status == "completed"]
    values = [run.value for run in counted(study, name)]
    mean = float(np.mean(values)) if values else math.nan
    outcomes: list[tuple[Episode, float]] = [pair for run in done for pair in run.episodes.items()]
    tasks = {task: _rate([success for (t, _), success in outcomes if t == task]) for task in study.tasks}
    states, seeds = Counter(run.status for run in study.of(name)), [run.job.seed for run in done]
    return Arm(name, seeds, mean, math.nan, math.nan, states, _rate([s for _, s in outcomes]), tasks, _costs(done))


def _rate(outcomes: Sequence[float]) -> Rate:
    """Of successes; of scores there is no rate."""
    return Rate(round(sum(outcomes)), len(outcomes)) if all(one in (0, 1) for one in outcomes) else Rate(0, 0)


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


def axes_of(study: Study) -> dict[str, list[str]]:
    """The axes of a grid that vary, each with its values in the order they were asked."""
    keys = list(dict.fromkeys(key for job in study.sweep.jobs for key in job.axes if key != "seed"))
    values = {key: list(dict.fromkeys(job.axes[key] for job in study.sweep.jobs if key in job.axes)) for key in keys}
    return {key: found for key, found in values.items() if len(found) > 1}


def _factorial(verdict: Verdict) -> None:
    levels = axes_of(verdict.study)
    axes = list(levels)
    rows = [{"value": run.value, **run.job.axes} for run in verdict.study.completed if math.isfinite(run.value)]
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
                "compared on fewer trainings"
            )
        if not any(run.status == "completed" for run in study.of(study.sweep.baseline)):
            add(f"the baseline {study.sweep.baseline} has no completed run, so nothing is compared")
    if study.others:
        add(f"folders that this sweep did not ask for, and that count nowhere: {', '.join(study.others)}")
    commits = {str(run.result.made.get("commit")) for run in study.completed}
    if len(commits) > 1:
        add(f"the runs were made by {len(commits)} versions of the code: {', '.join(sorted(commits))}")
    machines = {machine for run in study.completed if (machine := machine_of(run))}
    if len(machines) > 1:
        add(
            f"the runs were made on {len(machines)} kinds of machine: {'; '.join(sorted(machines))}; a seed's run is "
            "equal on one machine only, so a difference between arms may be one between machines"
        )

    for family in verdict.families:
        add_family_problems(verdict, family)


def add_family_problems(verdict: Verdict, family: Family) -> None:
    add, trial = verdict.problems.append, family.trial
    if trial and trial.false > TOO_MANY:
        add(
            f"this study's own figures, tried on {trial.studies:,} made-up studies without any difference, gave a word "
            f"in {trial.false:.1%} of them, where {ALPHA:.0%} is asked: read its words with care"
        )
    if family.spread < ALPHA:
        add(
            f"the arms do not vary alike between trainings (Bartlett's test, p {family.spread:.3f}), so each "
            "comparison used its own two arms alone, which sees less"
        )
