"""What a study's policies survive: success under each factor, arm by arm, and the differences from the baseline."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from provla.statistics.rule import ALPHA, compare
from provla.study.compare import counted, moments_of
from provla.study.findings import Verdict
from provla.study.study import Run, Study
from provla.study.tables import Cell, Table, text
from provla.study.words import signed


def survival_table(verdict: Verdict) -> Table | None:
    """A row for each factor: what each arm is left with, and how far that is from the baseline's; None where no run was
    judged under any. Each factor is compared by the study's rule, on its own.
    """
    study = verdict.study
    arms = [arm.name for arm in verdict.arms if counted(study, arm.name)]
    runs = {name: counted(study, name) for name in arms}
    factors = list(dict.fromkeys(factor for own in runs.values() for run in own for factor in run.under))
    if not factors:
        return None
    base = study.sweep.baseline
    names = [*([base] if base in runs else []), *(name for name in arms if name != base)]
    rows: list[list[Cell]] = [[text("none"), *(_share(runs[name]) for name in names)]]
    for factor in factors:
        under = {name: [_under(run, factor) for run in runs[name] if factor in run.under] for name in names}
        rows.append([text(factor), *_row(study, under, names)])
    note = (
        "Success over all trainings and, for every arm but the baseline, the difference from it in points with the "
        f"{1 - ALPHA:.0%} interval that holds for all arms of a row at once, over new trainings and new episodes; each "
        "factor by itself. Where a policy can read no other words, there is no figure."
    )
    return Table("perturb", "What it survives", ["under", *names], rows, note)


def _under(run: Run, factor: str) -> Run:
    return replace(run, episodes=run.under[factor])


def _mean(runs: list[Run]) -> float:
    return float(np.mean([value for run in runs for value in run.episodes.values()])) if runs else math.nan


def _share(runs: list[Run]) -> Cell:
    mean = _mean(runs)
    return (mean, f"{100 * mean:.0f} %") if math.isfinite(mean) else (None, "–")


def _row(study: Study, under: dict[str, list[Run]], names: list[str]) -> list[Cell]:
    judged = [name for name in names if under[name]]
    cells = {name: _share(under[name]) for name in names}
    if study.sweep.baseline in judged and len(judged) > 1 and min(len(under[name]) for name in judged) > 1:
        own = replace(study, runs=[run for name in judged for run in under[name]])
        found = compare(moments_of(own, {name: under[name] for name in judged}), 0)
        for place, name in enumerate(judged[1:]):
            edges = (signed(float(one[place]), True) for one in (found.difference, found.low, found.high))
            middle, low, high = edges
            cells[name] = cells[name][0], f"{cells[name][1]}, {middle} ({low} to {high})"
    return [cells[name] for name in names]
